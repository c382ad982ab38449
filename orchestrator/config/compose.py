"""Composes a job's config with Hydra and validates it as a frozen `RunConfig`. No Hydra
object leaves this module.

    compose("grpo", ["task=chain_sum", "learner.world_size=2"])

The values are in `conf/`: one file per job at the top level (`conf/grpo.yaml`) and one folder per config
group (`conf/task/`). Every problem with a config raises a `ConfigError` that names the key, its value and
what is allowed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from orchestrator.config.errors import (
    InvalidConfigError,
    from_pydantic,
    is_free_mapping,
    not_one_of,
    raise_if_any,
    raise_if_other_version,
    unknown_key,
)
from orchestrator.config.location import conf_dir
from orchestrator.config.resume_rules import CHANGEABLE, MAY_GROW, may_change, why_fixed
from orchestrator.config.rules import problems
from orchestrator.config.run_config import SECRETS, RunConfig, StageConfig
from orchestrator.errors import ConfigError
from orchestrator.masking import masked_keys

NOT_JOBS = frozenset({"run"})
"""Files at the top level of `conf/` that are not jobs themselves, but parts shared by all jobs."""

SEARCH_PATH = "hydra.searchpath"

STAGE_OVERRIDE = re.compile(r"^(\+\+|\+|~)?stages\.([a-z][a-z0-9_]*)\.(.+)$", re.DOTALL)
REFUSED_OVERRIDE = re.compile(r"Could not (?:override|delete from config\.|delete) '~?\+*([\w./@]+)")
"""The message of Hydra 1.3 and 1.4 about an override of an unknown key, which is named nowhere else."""
PLAIN_VALUE = re.compile(r"((?:\+\+?)?[A-Za-z_][\w./@:-]*=)(?!\s*['\"\[])((?!\{)[^\n]+|\{[^:\n]*\}[^\n]*)")
"""An override whose value may be plain text: it does not begin like a list, a mapping or a quoted string."""
OWN_KEYS = re.compile(r"^(\+\+|\+|~)?(experiment|job|stages)(=|@|$)")
"""Overrides that apply to a pipeline itself and are not passed on to its stages."""


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """The folders with config files: the project's own, followed by those in `hydra.searchpath`."""

    folders: tuple[Path, ...]

    @classmethod
    def named_by(cls, overrides: Sequence[Override] = ()) -> ConfigFiles:
        """The project's folder and those in `hydra.searchpath`. Raises ConfigError if one does not exist."""
        added: list[Path] = []
        for override in overrides:
            if override.get_key_element().lstrip("+") == SEARCH_PATH:
                value = override.value()
                texts = [str(item) for item in value] if isinstance(value, list) else [str(value)]
                added += [Path(text.removeprefix("file://")) for text in texts]
        for folder in added:
            if not (folder.is_absolute() and folder.is_dir()):
                raise ConfigError(SEARCH_PATH, str(folder), "[file:///DIR, ...], each a folder that exists")
        return cls((conf_dir(), *added))

    def jobs(self) -> list[str]:
        """Names of the available jobs."""
        found = {path.stem for folder in self.folders for path in folder.glob("*.yaml")}
        return sorted(found - NOT_JOBS)

    def groups(self) -> dict[str, list[str]]:
        """The options of each config group."""
        options: dict[str, set[str]] = {}
        for folder in self.folders:
            for group in (path for path in folder.iterdir() if path.is_dir()):
                options.setdefault(group.name, set()).update(path.stem for path in group.glob("*.yaml"))
        return {group: sorted(names) for group, names in sorted(options.items())}

    def compose(self, job: str, overrides: Sequence[str]) -> DictConfig:
        """Compose `job` with Hydra. Hydra's exceptions are not translated."""
        primary = next(folder for folder in self.folders if (folder / f"{job}.yaml").is_file())
        others = [quoted(f"file://{folder}") for folder in self.folders if folder != primary]
        searched = [f"{SEARCH_PATH}=[{','.join(others)}]"] if others else []
        with initialize_config_dir(str(primary), version_base="1.3"):
            return hydra_compose(job, [*overrides, *searched])


def quoted(text: str) -> str:
    """Quote any text as a string of Hydra's override grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def compose(job: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Compose, resolve and validate the config of `job` with Hydra `overrides`.

    A pipeline's overrides are passed on to its stages. The stages are composed here too, so that an invalid
    later stage is found before anything starts. `hydra.searchpath=[file:///DIR]` adds a folder with your own
    jobs and config groups. Raises ConfigError.
    """
    own, for_stages = _split_stage_overrides(overrides)
    config = validate(_with_home(_with_secrets_of_environment(_compose_values(job, own))))
    if config.job != job:
        hint = f"this experiment is for job {config.job}: orchestrator run {config.job} ..."
        raise ConfigError("job", config.job, job, hint)
    handed_down = [text for text in own if not OWN_KEYS.match(text)]
    config = _with_stage_overrides(config, handed_down, for_stages)
    _compose_stages(config)
    return config


def compose_stage(stage: StageConfig) -> RunConfig:
    """Compose the config of one stage of a pipeline. Raises ConfigError with keys of the stage's job."""
    return compose(stage.job, stage.overrides)


def _compose_stages(config: RunConfig) -> None:
    for stage in config.stages:
        try:
            compose_stage(stage)
        except ConfigError as error:
            found = error.problems if isinstance(error, InvalidConfigError) else (error,)
            raise_if_any(
                [ConfigError(f"stages.{stage.name}.{p.key}", p.value, p.allowed, p.hint) for p in found]
            )


def _with_home(values: Mapping[str, Any]) -> dict[str, Any]:
    """Expand a leading `~` in paths, because shells do not expand it after `key=`."""
    found = dict(values)
    for part, key in (("model", "path"), ("task", "path"), ("checkpoint", "store")):
        section = found.get(part)
        if isinstance(section, dict) and str(section.get(key)).startswith("~"):
            found[part] = {**section, key: str(Path(section[key]).expanduser())}
    if str(found.get("output_dir")).startswith("~"):
        found["output_dir"] = str(Path(found["output_dir"]).expanduser())
    return found


def validate(values: Mapping[str, Any]) -> RunConfig:
    """Validate plain data as a config that can be run. Raises ConfigError for the first problem, with a
    message that lists all of them.
    """
    config = _typed(values)
    raise_if_any(problems(config))
    return config


def load(path: Path) -> RunConfig:
    """Read a run directory's `config.yaml`. Raises ConfigError if it is missing or can't be run."""
    config = load_to_read(path)
    raise_if_any(problems(config))
    return config


def load_to_read(path: Path) -> RunConfig:
    """Read a run directory's `config.yaml` for commands that run nothing. The components that it names need
    not be installed. Raises ConfigError if the file is missing or malformed, OtherVersionError if it has the
    keys of another version.
    """
    values = _written(path)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise_if_other_version(path, error)
        raise_if_any(from_pydantic(error))
        raise


def _typed(values: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise_if_any(from_pydantic(error))
        raise


def _written(path: Path) -> dict[Any, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("config", str(path), "a readable config.yaml", error.strerror or "") from error
    except yaml.YAMLError as error:
        raise ConfigError("config", str(path), "a YAML file", " ".join(str(error).split())) from error
    if not isinstance(values, dict):
        raise ConfigError("config", str(path), "a YAML mapping")
    return _with_secrets_of_environment(values)


def _with_secrets_of_environment(values: dict[Any, Any]) -> dict[Any, Any]:
    """Replace URLs that were stored without their secrets by those in the environment."""
    found = dict(values)
    for (part, key), variable in SECRETS.items():
        known, settings = os.environ.get(variable), found.get(part)
        if known is not None and isinstance(settings, dict) and any(masked_keys(settings.get(key))):
            found[part] = {**settings, key: known}
    return found


def with_resume_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Apply the overrides of a resumed run to its `config`.

    Raises ConfigError for a key that `resume_rules` does not allow to change, with the reason.
    """
    own, for_stages = _split_stage_overrides(overrides)
    for text in [*own, *(text for texts in for_stages.values() for text in texts)]:
        _refuse_if_fixed(_parse(text))
    values = config.model_dump(mode="json")
    for override in map(_parse, own):
        part = values
        *parents, last = override.get_key_element().split(".")
        for parent in parents:
            part = part.get(parent)
            if not isinstance(part, dict):
                raise ConfigError("override", override.input_line or "", "a key of config.yaml")
        part[last] = override.value()
    _keep_schedule(config, values)
    resumed = _with_stage_overrides(validate(_with_home(values)), own, for_stages)
    _refuse_if_smaller(config, resumed)
    _compose_stages(resumed)
    return resumed


def _keep_schedule(before: RunConfig, values: dict[str, Any]) -> None:
    """Keep the original length of the learning rate schedule if the number of steps changes. Stretching the
    schedule would make the learning rate jump.
    """
    learner = values["learner"]
    if values["steps"] != before.steps and learner["schedule_steps"] is None:
        learner["schedule_steps"] = None if learner["schedule"] == "constant" else before.steps


def _refuse_if_smaller(before: RunConfig, resumed: RunConfig) -> None:
    old, new = before.model_dump(), resumed.model_dump()
    for key, reason in MAY_GROW.items():
        group, name = key.split(".")
        if new[group][name] < old[group][name]:
            raise ConfigError(key, str(new[group][name]), f"{old[group][name]} or more", reason)


def _refuse_if_fixed(override: Override) -> None:
    key = override.get_key_element()
    if override.is_add() or override.is_delete() or override.is_force_add():
        raise ConfigError(
            "override", override.input_line or "", "key=value", "a resumed run cannot add or delete keys"
        )
    if not may_change(key):
        reason = why_fixed(key)
        hint = (
            f"a resumed run keeps its {key}: {reason}; start a new run to change it"
            if reason
            else "unknown key (or a group: name one of its keys)"
        )
        raise ConfigError(key, str(override.value()), ", ".join((*CHANGEABLE, *MAY_GROW)), hint)


def _parse(text: str) -> Override:
    """Parse one override. A value that Hydra's grammar refuses (`epoch=3.jsonl`, `R&D`) is taken as text,
    unless it begins like a list, a mapping or a quoted string.
    """
    try:
        return OverridesParser.create().parse_overrides([text])[0]
    except HydraException as error:
        plain = PLAIN_VALUE.fullmatch(text)
        if plain is not None:
            return OverridesParser.create().parse_overrides([plain.group(1) + quoted(plain.group(2))])[0]
        reason = str(error).partition("\n")[0].strip()
        hint = f"{reason}. A value with special characters must be quoted twice: 'KEY=\"VALUE\"'"
        raise ConfigError("override", text, "key=value, +key=value or ~key", hint) from error


def _for_hydra(override: Override) -> list[str]:
    """The overrides to pass to Hydra. For mappings with free keys, `key={a: 1}` replaces the whole mapping;
    Hydra alone would merge the two and silently keep the keys that the override does not name.
    """
    text, key = override.input_line or "", override.get_key_element()
    if isinstance(override.value(), dict) and not key.startswith(("+", "~")) and is_free_mapping(key):
        return [f"~{key}", f"+{text}"]
    return [text]


def _compose_values(job: str, overrides: Sequence[str]) -> dict[str, Any]:
    parsed = [_parse(text) for text in overrides]
    files = ConfigFiles.named_by(parsed)
    if job not in files.jobs():
        raise not_one_of("job", job, files.jobs())
    groups = files.groups()
    for override in parsed:
        _refuse_what_hydra_misreads(override, groups)
    chosen = [override for override in parsed if SEARCH_PATH not in override.get_key_element()]
    own = [text for override in chosen for text in _for_hydra(override)]
    try:
        values = OmegaConf.to_container(files.compose(job, own), resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(
            str(error.full_key), "nothing", "a value", "the job sets no default for it"
        ) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _from_hydra(error, parsed, groups) from error
    if not isinstance(values, dict):
        raise ConfigError("job", job, "a file that holds a mapping")
    return {str(key): value for key, value in values.items()}


def _refuse_what_hydra_misreads(override: Override, groups: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError for a group option that is not a name, and for Hydra's own
    keys, which have no effect.
    """
    key, text = override.get_key_element().lstrip("+~"), override.input_line or ""
    if key in groups and not override.is_delete() and not isinstance(override.value(), str):
        raise not_one_of(key, text.partition("=")[2], groups[key])
    if key.split(".")[0] == "hydra" and key != SEARCH_PATH:
        raise ConfigError(
            "override", text, SEARCH_PATH, "it is the only one of Hydra's own keys that is supported"
        )


def _from_hydra(
    error: Exception, overrides: Sequence[Override], groups: Mapping[str, Sequence[str]]
) -> ConfigError:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        return not_one_of(group or "config", option, list(error.options or groups.get(group, ())))
    refused = REFUSED_OVERRIDE.search(str(error))
    for override in overrides:
        if override.is_sweep_override():
            return ConfigError(
                override.get_key_element(), override.input_line or "", "one value", _no_sweep(override)
            )
        if refused is not None and override.key_or_group == refused.group(1):
            return unknown_key(override.key_or_group, str(override.value()), groups)
    texts = ", ".join(override.input_line or "" for override in overrides)
    reason = " ".join(str(error).split()) or type(error).__name__
    return ConfigError("override", texts or "none", "overrides that compose", reason)


def _no_sweep(override: Override) -> str:
    key, _, value = (override.input_line or "").partition("=")
    return f"sweeps are not supported; a text with commas must be quoted twice: '{key}=\"{value}\"'"


def _split_stage_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Separate the overrides of the job itself from those of its stages, `stages.<name>.<key>=<value>`, which
    are returned by stage and without that prefix.
    """
    own: list[str] = []
    for_stages: dict[str, list[str]] = {}
    for text in overrides:
        match = STAGE_OVERRIDE.match(text)
        if match:
            prefix, stage, rest = match.groups()
            for_stages.setdefault(stage, []).append(f"{prefix or ''}{rest}")
        else:
            own.append(text)
    return own, for_stages


def _with_stage_overrides(
    config: RunConfig, handed_down: Sequence[str], for_stages: Mapping[str, Sequence[str]]
) -> RunConfig:
    names = [stage.name for stage in config.stages]
    for name, texts in for_stages.items():
        if name not in names:
            allowed = (
                ", ".join(f"stages.{known}.<key>" for known in names)
                or f"none: job {config.job} has no stages"
            )
            raise ConfigError(f"stages.{name}", texts[0], allowed)
    stages = tuple(
        stage.model_copy(
            update={"overrides": (*stage.overrides, *handed_down, *for_stages.get(stage.name, ()))}
        )
        for stage in config.stages
    )
    return config.model_copy(update={"stages": stages})
