"""Builds the `ConfigError`s of invalid configs, with the key, its value and what is allowed."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.config.run_config import RunConfig
from orchestrator.errors import ConfigError

_KEYS_SHOWN = 4


class InvalidConfigError(ConfigError):
    """Several problems of one config. Its fields are the first problem's; its text lists them all."""

    def __init__(self, problems: tuple[ConfigError, ...]) -> None:
        first = problems[0]
        super().__init__(first.key, first.value, first.allowed, first.hint)
        self.problems = problems
        self.args = (problems,)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class OtherVersionError(ConfigError):
    """The config of a run has the keys of another version of this program."""

    def __str__(self) -> str:
        return (
            f"{self.value} was written by another version of orchestrator: {self.hint}."
            " `orchestrator status`, `logs` and `rollouts` show the run. To resume or export it, use the"
            " version that wrote it (manifest.json names its commit); otherwise start a new run."
        )


def raise_if_other_version(path: Path, error: ValidationError) -> None:
    """Raise OtherVersionError if keys are missing from, or unknown in, the config of a run in `path`."""
    details = error.errors(include_url=False)
    differences = [
        f"{what} {_listed(keys)}"
        for kind, what in (("missing", "it lacks"), ("extra_forbidden", "this version does not know"))
        if (keys := [".".join(map(str, each["loc"])) for each in details if each["type"] == kind])
    ]
    if differences:
        raise OtherVersionError("config", str(path), "the keys of this version", "; ".join(differences))


def _listed(keys: Sequence[str]) -> str:
    more = len(keys) - _KEYS_SHOWN
    return ", ".join(keys[:_KEYS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def raise_if_any(problems: Sequence[ConfigError]) -> None:
    """Raise a single problem as it is, and several as one InvalidConfigError."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise InvalidConfigError(tuple(problems))


def not_one_of(key: str, value: str, allowed: Sequence[str]) -> ConfigError:
    """The error for a `value` of `key` that is not one of the `allowed` names."""
    return ConfigError(key, value, ", ".join(allowed), _did_you_mean(value, allowed))


def unknown_key(key: str, value: str, groups: Mapping[str, Sequence[str]]) -> ConfigError:
    """The error for `key=value` if the config has no such key. `groups` are valid keys too."""
    *parents, last = key.split(".")
    known = _keys_of(parents)
    if known is None:
        return ConfigError(key, value, "a key of the composed config", f"+{key}={value} adds it")
    if not parents:
        known = sorted({*known, *groups})
    return ConfigError(
        key, value, ", ".join(known), _did_you_mean(last, known) or f"there is no key {last} here"
    )


def from_pydantic(error: ValidationError) -> list[ConfigError]:
    """One error for each value that pydantic rejects."""
    return [_from_detail(detail) for detail in error.errors(include_url=False)]


def _from_detail(detail: ErrorDetails) -> ConfigError:
    path = [str(part) for part in detail["loc"]]
    key, value = ".".join(path), str(detail["input"])
    if detail["type"] == "extra_forbidden":
        return unknown_key(key, value, {})
    if detail["type"] == "missing":
        return ConfigError(key, "nothing", "a value", _description(path))
    if detail["type"] == "refused":
        refused = detail.get("ctx", {})
        key = ".".join((*path, refused["key"]))
        return ConfigError(key, refused["value"], refused["allowed"], refused["hint"])
    if detail["type"] == "path_type":
        return ConfigError(key, value, "a path", _description(path))
    expected = detail.get("ctx", {}).get("expected")
    allowed = str(expected or detail["msg"]).removeprefix("Input should be ").replace("'", "")
    allowed = allowed.partition(", unable to parse")[0]
    return ConfigError(key, value, allowed, _description(path))


def is_free_mapping(key: str) -> bool:
    """Whether the value of `key` is a mapping whose keys the user chooses, such as `reward.components`."""
    *parents, last = key.split(".")
    *_, model = _models_along(parents)
    field = None if model is None else model.model_fields.get(last)
    return field is not None and get_origin(field.annotation) is dict


def _did_you_mean(value: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(value, allowed, n=1)
    return f"did you mean {close[0]}?" if close else ""


def _models_along(path: Sequence[str]) -> Iterator[type[BaseModel] | None]:
    """RunConfig, followed by the model of each key in `path`; None for free mappings and unknown keys."""
    model: type[BaseModel] | None = RunConfig
    yield model
    for key in path:
        if model is not None and not (key.isdigit() and key not in model.model_fields):
            field = model.model_fields.get(key)
            model = None if field is None else _model_in(field.annotation)
        yield model


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        for argument in get_args(annotation):
            found = _model_in(argument)
            if found is not None:
                return found
    return None


def _keys_of(path: Sequence[str]) -> list[str] | None:
    *_, model = _models_along(path)
    return None if model is None else sorted(model.model_fields)


def _description(path: Sequence[str]) -> str:
    """The first sentence of the key's description in the schema."""
    *parents, last = path
    *_, model = _models_along(parents)
    field = None if model is None else model.model_fields.get(last)
    text = " ".join((field.description or "").split()) if field is not None else ""
    return text.split(". ")[0].rstrip(".")
