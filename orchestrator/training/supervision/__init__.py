"""Keeps workers alive: assigns tasks, replaces lost workers and retries their
tasks, within a failure budget.
"""
