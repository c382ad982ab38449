"""Engines whose rollouts have drawn lengths instead of the model's own, and a reward that always differs.

`async_speedup.py` installs them as a package of its own: they isolate the effect of the lengths on the speed
of a run.
"""
