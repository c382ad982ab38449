"""The audit of a run: it proves from the run's files alone that no group was lost, trained on twice, or
trained on beyond the staleness bound, and that all sampled tokens are accounted for.

account      the findings of an audit: violations, and the outcomes of groups and tokens
replay       replays groups.jsonl, what the controller recorded of every group
witnesses    what else a run has on disk: checkpoints, recorded rollouts, metrics, usage of the workers
auditor      puts them together
"""
