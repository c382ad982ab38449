"""What a job needs, takes and costs, before it runs: arithmetic over shapes, without a tensor.

    config.json -> shape -> parameters -> memory of one accelerator -> does it fit
                         -> FLOPs      -> seconds of one step       -> accelerator-hours

Nothing here imports torch, transformers or Ray. The formulas are explained, with their sources, in
docs/reference/capacity.md; `benchmarks/planner.py` puts them beside what was measured.
"""
