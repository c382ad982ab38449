"""The auditor of a run: from its files alone it proves that no group was lost, none was trained twice, none
was trained beyond its staleness bound, and that the token account closes.

account      what an audit finds: violations, and what became of the groups and tokens
replay       replays groups.jsonl, what the controller recorded of every group
witnesses    what else a run has on disk: checkpoints, recorded rollouts, metrics, usage of the workers
auditor      puts them together
"""
