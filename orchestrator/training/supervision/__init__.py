"""Keeping workers alive: who gets the next task, what happens to the task of a lost worker, and how often."""
