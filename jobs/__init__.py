"""Jobs, one short file each. A job defines which stages run in which order; `orchestrator run NAME` finds
`jobs/NAME.py` and `conf/NAME.yaml`.

A job is a coroutine `run(job)`. Other packages add jobs with an entry point in the group `orchestrator.job`.
"""
