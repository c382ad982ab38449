"""Rollouts: the `Engine` port (`engine.py`), its fake (`scripted.py`) and its implementations (`engines/`)."""
