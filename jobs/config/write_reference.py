"""`python -m transloom.jobs.config.write_reference` makes settings.json and docs/settings.md from docstrings."""

import dataclasses
import json
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from transloom.jobs.config.reference import FILE, Setting, readers
from transloom.jobs.config.schema import TASK_SECTIONS, Config
from transloom.model.build import ARCHITECTURES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
ENTRY = re.compile(r"(\w+): (.*)")
# Values that the types leave open.
CHOICES = {"engine.zero_stage": ("0", "1", "2", "3"), "cluster.gpus_per_worker": ("0", "1")}


def schema_settings() -> list[Setting]:
    """Every setting of the schema.

    Raises:
        ValueError: a setting's dataclass has no line for it.
    """
    settings: list[Setting] = []
    for name, hint in get_type_hints(Config).items():
        if name == "model":
            names, line = tuple(ARCHITECTURES), "which model it is; the section's other settings follow from that."
            settings.append(Setting("model.architecture", "", _kind(str), "transformer", names, line))
            owners = {f"model.architecture={key}": kind for key, kind in ARCHITECTURES.items()}
            settings += _merged({of: list(_walk(kind, "model.", of)) for of, kind in owners.items()})
        elif name in ("corpus", "tokenizer"):
            tasks = {f"task={task}": sections[name] for task, sections in TASK_SECTIONS.items()}
            settings += _merged({of: list(_walk(kind, f"{name}.", of)) for of, kind in tasks.items()})
        elif dataclasses.is_dataclass(hint):
            settings += _walk(hint, f"{name}.", "")
        else:
            settings += [setting for setting in _walk(Config, "", "") if setting.key == name]
    return settings


def _walk(kind: Any, prefix: str, of: str) -> Iterator[Setting]:
    """The settings of a section. Of `Config` itself those without sections."""
    lines, hints = attribute_lines(kind), get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            if kind is not Config:
                yield from _walk(hint, f"{key}.", of)
            continue
        if kind is Config and hint is Any:
            continue
        if field.name not in lines:
            raise ValueError(f"{key}: {kind.__name__} has no line for it under Attributes:")
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore
        yield Setting(key, of, _kind(hint), _typed(default), _choices(key, hint), lines[field.name])


def attribute_lines(kind: Any) -> dict[str, str]:
    """The text of each entry under `Attributes:` in a class's docstring, by name."""
    _, _, text = (kind.__doc__ or "").partition("Attributes:\n")
    lines: dict[str, str] = {}
    name = ""
    for row in text.split("\n"):
        if not row.strip():
            break
        indent = len(row) - len(row.lstrip())
        if indent == 8 and (entry := ENTRY.fullmatch(row.strip())):
            name = entry[1]
            lines[name] = entry[2]
        elif name:
            lines[name] += " " + row.strip()
    return {name: re.sub(r"\bNone\b", "null", line) for name, line in lines.items()}  # as it is typed


def _merged(settings: dict[str, list[Setting]]) -> list[Setting]:
    """One entry where a key is the same for several choices: for all of them without the choice."""
    owners: dict[Setting, list[str]] = {}
    for of, own in settings.items():
        for setting in own:
            owners.setdefault(dataclasses.replace(setting, of=""), []).append(of)

    def joined(choices: list[str]) -> str:
        key = choices[0].partition("=")[0]
        values = ", ".join(choice.partition("=")[2] for choice in choices)
        return "" if len(choices) == len(settings) else f"{key}={values}"

    merged = [dataclasses.replace(setting, of=joined(choices)) for setting, choices in owners.items()]
    order = {key: place for place, key in enumerate(dict.fromkeys(setting.key for setting in merged))}
    return sorted(merged, key=lambda setting: order[setting.key])


def _kind(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        inner = [_kind(argument) for argument in arguments if argument is not NoneType]
        return f"{' or '.join(inner)} or null"
    if origin is list:
        return "list"
    if origin is dict:
        return "dictionary"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "choice"
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(hint, "any")


def _choices(key: str, hint: Any) -> tuple[str, ...]:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return tuple(option.value for option in hint)
    return ("true", "false") if hint is bool else CHOICES.get(key, ())


def _typed(value: Any) -> str:
    """A value as it is typed on a command line."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    return json.dumps(value) if isinstance(value, str) and not value.isprintable() else str(value)


def page(settings: list[Setting]) -> str:
    """docs/settings.md: a table for each section."""
    parts = [
        "# Settings\n\n"
        "Every setting, as the schema has it: this page is made by `python -m transloom.jobs.config.write_reference`. "
        "`transloom help model.norm` shows one of them, `transloom help model` those of a section. The default is what "
        "counts where neither the experiment nor a group's option nor the command line says anything; `transloom run "
        "--cfg job` prints what would count. Settings that only some tasks or models have say which.\n"
    ]
    sections: dict[str, list[Setting]] = {}
    for setting in settings:
        sections.setdefault(setting.key.partition(".")[0] if "." in setting.key else "", []).append(setting)
    for name, own in sections.items():
        parts.append(f"\n## {f'`{name}`' if name else 'Without a section'}\n")
        if name:
            parts.append(f"\nRead by: {', '.join(readers(own[0].key))}.\n")
        parts.append("\n| setting | type | default | |\n|---|---|---|---|\n")
        for setting in own:
            kind = ", ".join(setting.choices) or setting.kind
            of = f" *({setting.of})*" if setting.of else ""
            cells = [f"`{setting.key}`", kind, f"`{setting.default}`" if setting.default else "", setting.line + of]
            parts.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n")
    return "".join(parts)


def as_json(settings: list[Setting]) -> str:
    return json.dumps([dataclasses.asdict(setting) for setting in settings], ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    settings = schema_settings()
    FILE.write_text(as_json(settings), encoding="utf-8")
    PAGE.write_text(page(settings), encoding="utf-8")
