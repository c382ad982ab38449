"""Turns a job's name and overrides into a frozen, validated `RunConfig`.

compose          composes `conf/` with Hydra, whose types are not used outside this module
run_config       the pydantic models of a whole run; each component owns the model of its own group
rules            consistency rules between groups
component_rules  consistency rules between registered components
location         finds the `conf/` directory
errors           turns validation errors into `ConfigError`s: key, value, what is allowed
resume_rules     which keys may change when a run is resumed, and why the others may not
"""
