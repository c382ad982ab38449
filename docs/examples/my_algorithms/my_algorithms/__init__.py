"""An advantage estimator and a loss outside of the orchestrator's own package."""
