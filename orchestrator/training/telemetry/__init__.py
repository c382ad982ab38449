"""What a run reports to people: trackers (MLflow), recorded rollouts, summary metrics and learning curves."""
