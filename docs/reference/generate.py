"""Write docs/reference/config.md and docs/reference/cli.md from the code: python docs/reference/generate.py

A test compares the files with what this script would write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import typer

from orchestrator.cli.app import app
from orchestrator.cli.cost.app import app as cost_app
from orchestrator.config.compose import ConfigFiles, conf_dir
from orchestrator.config.resume_rules import CHANGEABLE, FIXED, MAY_GROW
from orchestrator.config.run_config import RunConfig

REFERENCE = Path(__file__).resolve().parent
GENERATED = "<!-- Written by docs/reference/generate.py: change the code, then run it. -->"

CONFIG_INTRODUCTION = """\
A job is composed with [Hydra](https://hydra.cc) from the files in `conf/`, then checked: a key that is not
listed here, a value out of its range, or a combination that can't work is refused before anything starts,
with what is allowed.

```
orchestrator run grpo task=chain_sum learner.world_size=2     # an option of a group, a value
orchestrator run r1_demo seed=1 stages.grpo.steps=50          # for every stage, for one stage
orchestrator config grpo task=chain_sum                       # print it, start nothing
orchestrator config schema                                    # JSON Schema of all of it
```

`key=value` changes a value and `group=option` chooses a file of a group. Where keys are free (`task.options`,
`model.architecture`, `reward.components`), `+key=value` adds a key, `~key` removes one, and
`reward.components={accuracy: 1.0}` replaces the whole mapping. Text needs no quotes beyond those of the shell
(`team=R&D`, `'task.template=Solve {question}'`), unless it holds commas or begins with a bracket or a quote:
`'project="a, b"'`. `--config-dir DIR` adds a folder with your own groups, experiments and jobs.

An **experiment** is a file in `conf/experiment/` that changes groups and values together. The command line
wins over the experiment, the experiment over the job, the job over the groups."""

RESUME_INTRODUCTION = """\
`orchestrator resume RUN key=value ...` continues a run with other settings. Its length, resources and
monitoring may change. Anything that changes the mathematics of the training that the checkpoint belongs to
needs a new run. An entry such as `cluster` stands for all keys of the group.

A schedule of the learning rate keeps its length when `steps` changes. In a pipeline an override applies to
every stage, and `stages.<name>.<key>=<value>` to one of them."""

CLI_INTRODUCTION = """\
Every command takes `--help`. With `--json` it prints one JSON document on stdout; logs go to stderr. See
[exit codes](exit-codes.md) and [config](config.md)."""


def main() -> None:
    """Write both files."""
    (REFERENCE / "config.md").write_text(config_reference(), encoding="utf-8")
    (REFERENCE / "cli.md").write_text(cli_reference(), encoding="utf-8")


def config_reference() -> str:
    """The text of config.md."""
    schema = RunConfig.model_json_schema()
    own = {name: field for name, field in schema["properties"].items() if "$ref" not in field}
    parts = [
        "# Config",
        GENERATED,
        CONFIG_INTRODUCTION,
        "## Jobs",
        _options(conf_dir(), ConfigFiles.named_by().jobs()),
    ]
    parts += ["## Top level", _table(own, schema)]
    groups = ConfigFiles.named_by().groups()
    for name, field in schema["properties"].items():
        if "$ref" in field:
            parts += _section(name, field["$ref"], schema, groups)
    for name in ("price_book", "experiment"):
        parts += [f"## `{name}`", _options(conf_dir() / name, groups.get(name, []))]
    parts += ["## What may change when a run is resumed", RESUME_INTRODUCTION, _resume_table()]
    return "\n\n".join(parts) + "\n"


def _resume_table() -> str:
    """The tables of `resume_rules`. Keys that are fixed for the same reason share a row."""
    rows = ["| keys | on resume | reason |", "| --- | --- | --- |"]
    rows += [f"| {_code(CHANGEABLE)} | may change | |"]
    rows += [f"| `{key}` | may only grow | {reason} |" for key, reason in MAY_GROW.items()]
    for reason in dict.fromkeys(FIXED.values()):
        rows.append(f"| {_code(key for key in FIXED if FIXED[key] == reason)} | fixed | {reason} |")
    return "\n".join(rows)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def cli_reference() -> str:
    """The text of cli.md."""
    parts = ["# Command line", GENERATED, CLI_INTRODUCTION]
    for command in _commands(app):
        if command.name == "cost":
            parts.append(f"## `orchestrator cost`\n\n{command.help}")
            parts += _nested("orchestrator cost", _commands(cost_app))
        elif hasattr(command, "commands"):
            parts.append(f"## `orchestrator {command.name}`\n\n{command.help}")
            parts += _nested(f"orchestrator {command.name}", list(command.commands.values()))
        else:
            parts.append(_command(f"orchestrator {command.name}", command, "##"))
    return "\n\n".join(parts) + "\n"


def _section(
    name: str, reference: str, schema: Mapping[str, Any], groups: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    definition = _definition(reference, schema)
    yield f"## `{name}`"
    yield _text(definition.get("description", ""))
    if name in groups:
        yield _options(conf_dir() / name, groups[name])
    yield _table(definition["properties"], schema, f"{name}.")


def _options(folder: Path, names: Sequence[str]) -> str:
    """A line for each file, with its first comment."""
    lines = [f"- `{name}`: {_first_comment(folder / f'{name}.yaml')}" for name in names]
    return "\n".join(lines) or "None yet."


def _first_comment(path: Path) -> str:
    """The comment at the top of a config file, without Hydra's package directive."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return _text(" ".join(line[1:] for line in lines if "@package" not in line))


def _table(properties: Mapping[str, Any], schema: Mapping[str, Any], prefix: str = "") -> str:
    rows = ["| key | value | meaning |", "| --- | --- | --- |"]
    for name, field in properties.items():
        rows += _rows(prefix + name, field, schema)
    return "\n".join(rows)


def _rows(key: str, field: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    """One row, or one for each key of a nested part."""
    if "$ref" in field:
        for name, nested in _definition(field["$ref"], schema)["properties"].items():
            yield from _rows(f"{key}.{name}", nested, schema)
        return
    value = _value(field, schema).replace("|", "\\|")
    yield f"| `{key}` | {value} | {_text(field.get('description', '')).replace('|', '&#124;')} |"


def _value(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a value may be, in a few words."""
    if "$ref" in field:
        keys = ", ".join(f"`{key}`" for key in _definition(field["$ref"], schema)["properties"])
        return f"mapping of {keys}"
    if "enum" in field:
        return ", ".join(f"`{item}`" for item in field["enum"])
    if "anyOf" in field:
        kinds = [kind for kind in field["anyOf"] if kind.get("type") != "string" or not _is_money(field)]
        return " or ".join(_value(kind, schema) for kind in kinds)
    kind = field.get("type", "anything")
    if kind == "array":
        items = field.get("prefixItems") or [field.get("items", {})]
        return "list of " + ", ".join(_value(item, schema) for item in items)
    words = {"object": "mapping", "string": "text", "boolean": "true or false"}
    return words.get(kind, str(kind)) + _bounds(field)


def _is_money(field: Mapping[str, Any]) -> bool:
    """An exact decimal: a number that may also be written as text, which needs no words of its own."""
    return {"number", "string"} <= {kind.get("type") for kind in field["anyOf"]}


def _bounds(field: Mapping[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field]
    return f" {', '.join(bounds)}" if bounds else ""


def _definition(reference: str, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return schema["$defs"][reference.rpartition("/")[2]]


def _commands(program: typer.Typer) -> list[Any]:
    group: Any = typer.main.get_command(program)
    return list(group.commands.values())


def _nested(title: str, commands: Sequence[Any]) -> Iterator[str]:
    """The commands of a group, and those of the groups in it."""
    for command in commands:
        if hasattr(command, "commands"):
            yield from _nested(f"{title} {command.name}", list(command.commands.values()))
        else:
            yield _command(f"{title} {command.name}", command, "###")


def _command(title: str, command: Any, level: str) -> str:  # noqa: ANN401
    """A command: how it is called, what it does, its options."""
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    words = [_argument(argument) for argument in arguments]
    lines = [f"{level} `{' '.join([title, *words])}`", "", _text(command.help or "")]
    rows = [(_argument(argument), argument.help) for argument in arguments]
    rows += [("`, `".join(option.opts), _option_help(option)) for option in options if option.name != "help"]
    if rows:
        lines += ["", "| argument | meaning |", "| --- | --- |"]
        lines += [f"| `{name.replace('|', chr(92) + '|')}` | {_text(text or '')} |" for name, text in rows]
    return "\n".join(lines)


def _argument(argument: Any) -> str:  # noqa: ANN401
    name = (argument.metavar or argument.name).strip("[]").upper().replace("|SCHEMA", "")
    name = f"{name}..." if argument.nargs == -1 else name
    return name if argument.required else f"[{name}]"


def _option_help(option: Any) -> str:  # noqa: ANN401
    variable = option.envvar
    return f"{option.help}" + (f" (or the variable `{variable}`)" if variable else "")


def _text(text: str) -> str:
    """One line."""
    return " ".join(text.split())


if __name__ == "__main__":
    main()
