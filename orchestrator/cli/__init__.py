"""The program `orchestrator`: commands and terminal views only. A command imports what it needs when it is
called, so that help answers at once.
"""

from __future__ import annotations


def main() -> None:
    """Run this process's command line and exit: 0 done, 1 the run failed, 2 bad input, 3 stopped by a
    budget, 4 drained.
    """
    import sys

    from orchestrator.cli import stop_signals

    starts_a_run = sys.argv[1:2] in (["run"], ["resume"])
    if starts_a_run:
        stop_signals.listen()
    from orchestrator.cli.app import run_command_line

    code = run_command_line(sys.argv[1:])
    if starts_a_run:
        stop_signals.finish()
    sys.exit(code)
