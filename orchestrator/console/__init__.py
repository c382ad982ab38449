"""Read-only views of runs for people: the self-contained report, charts and number formats."""
