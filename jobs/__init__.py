"""One short file a job: which stages, in which order. `orchestrator run NAME` finds `jobs/NAME.py` and
`conf/NAME.yaml`.

A job is a coroutine `run(job)`. Another package adds one by an entry point of the group `orchestrator.job`.
"""
