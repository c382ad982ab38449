"""Runs code that we do not control, such as the user's scorers, in guarded processes. (Tools for models
are not supported yet.)

    GuardedProcess ---- control ----> guard ---- fork ----> program ---- whatever it starts
          |                            kills everything below it when the program ends,
          '------ Channel (JSON) ----- when the control connection closes, and when we die

This contains accidents, not attacks: the program has the user's rights, files and network. It does not get
the secrets in our environment, it cannot outlive us, and nothing that it sends is trusted or unpickled.
"""
