"""The reference of settings: each setting's type, default, choices and line, and the jobs that read the setting.

`settings.json` has all of it, so that help and shell completion need not import the schema, which imports torch.
`write_reference.py` makes that file, and docs/settings.md, from the schema.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transloom.jobs.command_table import COMMANDS, Command
from transloom.jobs.config.groups import groups

FILE = Path(__file__).with_name("settings.json")
OF_ONE_JOB = {"race": ("race",), "sweep": ("sweep", "submit", "resume")}  # sections with their only readers


@dataclass(frozen=True)
class Setting:
    """A setting as its help tells of it.

    Attributes:
        key: the full name, such as model.norm.
        of: the choice that brings the setting, such as model.architecture=lstm; empty: every configuration has it.
        kind: its type in words.
        default: as typed on a command line; experiments and options of groups have values of their own.
        choices: the values there are; empty: any value of the type.
        line: what the setting does.
    """

    key: str
    of: str
    kind: str
    default: str
    choices: tuple[str, ...]
    line: str


@cache
def all_settings() -> tuple[Setting, ...]:
    """Every setting, in the schema's order; a key may be there once for each choice that brings it."""
    records = json.loads(FILE.read_text(encoding="utf-8"))
    return tuple(Setting(**{**record, "choices": tuple(record["choices"])}) for record in records)


def settings_below(prefix: str) -> list[Setting]:
    """The settings of a section, such as `train.lora`, with or without a dot at its end."""
    section = prefix.rstrip(".") + "."
    return [setting for setting in all_settings() if setting.key.startswith(section)]


def known_names() -> list[str]:
    """All keys, sections and groups, each once."""
    keys = [setting.key for setting in all_settings()]
    sections = [".".join(parts[:depth]) for key in keys for parts in [key.split(".")] for depth in range(1, len(parts))]
    return list(dict.fromkeys([*keys, *sections, *groups()]))


def reads(command: Command, name: str, key: str) -> bool:
    """Whether a command looks at a setting.

    Args:
        name: the command's.
    """
    section = key.partition(".")[0]
    if not command.has_settings:
        return False
    if section in OF_ONE_JOB:
        return name in OF_ONE_JOB[section]
    if command.reads is None:
        return True
    return key in command.reads or any(part in command.reads for part in _sections_of(key))


def _sections_of(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def readers(key: str) -> list[str]:
    """The names of the commands that look at a setting."""
    return [name for name, command in COMMANDS.items() if reads(command, name, key)]


def read_by(job: str) -> list[str]:
    """What a job reads: sections of which it reads every setting, and the names of other settings."""
    keys = list(dict.fromkeys(setting.key for setting in all_settings()))
    sections = dict.fromkeys(key.partition(".")[0] for key in keys)
    names: list[str] = []
    for section in sections:
        within = [key for key in keys if key.partition(".")[0] == section]
        taken = [key for key in within if reads(COMMANDS[job], job, key)]
        names += [section] if taken == within else taken
    return names
