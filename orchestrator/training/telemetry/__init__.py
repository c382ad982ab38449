"""What a run tells people: trackers (MLflow), rollouts on disk to read, a step's sums, learning curves."""
