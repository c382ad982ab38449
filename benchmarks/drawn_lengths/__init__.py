"""Engines whose rollouts have drawn lengths instead of the model's own, and a reward that always differs.

`async_speedup.py` installs them as a package of its own. They isolate the effect that lengths have on the
speed of a run.
"""
