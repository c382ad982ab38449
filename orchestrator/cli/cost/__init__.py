"""`orchestrator cost ...`: one module per group of commands."""
