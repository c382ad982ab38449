"""Run directories: their files, their state, and who may write them. Everything that reads a
run uses this package.

directory   the files of one run, and the single process that may write them
record      the content of state.json: the state of a run, its stages, its process
lease       one writer per run, across hosts and containers
process     whether the process of a run is still alive
files       atomic replacement and whole lines
status      find runs, and describe them for people and scripts
timeline    where the time of each step went, and what the learner waited for
"""
