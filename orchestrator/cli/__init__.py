"""The program `orchestrator`. A command imports what it needs when it is called: help answers at once."""

from __future__ import annotations


def main() -> None:
    """Carry out this process's command line, and exit: 0 done, 1 the run failed, 2 bad usage or config,
    3 stopped by budget, 4 drained.
    """
    import sys

    from orchestrator.cli.app import run_command_line

    sys.exit(run_command_line(sys.argv[1:]))
