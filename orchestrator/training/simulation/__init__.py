"""Runs the real loop, buffer and supervision in virtual time with fake workers and seeded faults:
hundreds of steps in seconds.
"""
