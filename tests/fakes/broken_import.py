"""A module of scorers that cannot be imported."""

raise RuntimeError("no licence")
