"""Explains where the time of a run went, from its own files: the usage spans of its actors (`ledger/*.jsonl`)
and the step times in `metrics.jsonl`. Plain functions that start nothing and write nothing.

spans          read the usage spans of all actors and attempts
clocks         correct the clocks of hosts that contradict each other
steps          the time windows of the learner steps
critical_path  the chain of work that determined how long a step took
explanation    what the learner waited for, in one sentence, and what one more worker would change
trace          all spans as a Chrome/Perfetto trace
view           put these together for one run
"""
