"""Processes that run code we do not control: the user's scorers today, tools later.

    GuardedProcess ---- control ----> guard ---- fork ----> program ---- whatever it starts
          |                            kills everything below it when the program ends,
          '------ Channel (JSON) ----- when the control connection closes, and when we die

This contains accidents, not attacks: the program has the user's rights, files and network. It does not get
the secrets in our environment, it cannot outlive us, and nothing that it sends is trusted or unpickled."""
