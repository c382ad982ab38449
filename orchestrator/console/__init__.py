"""Read-only views of runs: the self-contained report, charts and number formats."""
