"""Engines that sample with rounded weights, as engines with quantised weights do.

`rollout_correction.py` installs them as a package of its own.
"""
