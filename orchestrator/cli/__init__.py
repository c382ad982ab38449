"""The program `orchestrator`: commands and terminal views only. A command imports what it needs when it is
called, so that help answers at once.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line of this process and exit: 0 success, 1 the run failed, 2 invalid input, 3 stopped
    by a budget, 4 stopped on request.
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
