"""Rollouts: the `Engine` port (`engine.py`), its fake (`scripted.py`), its implementations (`engines/`)."""
