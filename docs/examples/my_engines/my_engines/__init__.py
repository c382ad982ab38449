"""A rollout engine outside of the orchestrator's own package."""
