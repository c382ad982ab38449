"""From a job's name and overrides to a frozen, validated `RunConfig`.

compose       Hydra composes `conf/`; its objects end here
run_config    the pydantic models of a whole run; each component owns the model of its own group
rules         what groups must agree on
location      where `conf/` is
errors        validation errors as `ConfigError`: key, value, what is allowed
resume_rules  which keys may change when a run is resumed, and why the others may not
"""
