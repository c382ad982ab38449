"""Estimates the memory, time and cost of a job before it runs: arithmetic over shapes, without any tensor.

    config.json -> shape -> parameters -> memory of one accelerator -> does it fit
                         -> FLOPs      -> seconds of one step       -> accelerator-hours

Nothing here imports torch, transformers or Ray. docs/reference/capacity.md explains the formulas with their
sources; `benchmarks/planner.py` compares them with measurements.
"""
