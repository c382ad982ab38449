"""The read model of runs: everything that looks at a run goes through here.

directory   the files of one run, how they are written, and the record of its state
status      find runs, and describe them for people and scripts
"""
