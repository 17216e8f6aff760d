"""What the command line of every job shares: the list of jobs, help, `--cfg job`, and the configuration."""

import dataclasses
import difflib
import json
import os
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from rich.console import Console
from rich.table import Table

from transloom.jobs.command_table import COMMANDS, USUAL_SETTINGS
from transloom.jobs.config.groups import groups
from transloom.jobs.config.reference import Setting, all_settings, known_names, read_by, readers, settings_below
from transloom.pipeline.errors import UserError

if TYPE_CHECKING:
    from transloom.jobs.config.schema import Config

Settings = TypeVar("Settings")


def sort_words(
    argv: Sequence[str], own: Sequence[str] = (), expand_home: bool = True
) -> tuple[list[str], dict[str, str], list[str]]:
    """A job's plain words, such as a file or a sentence; those of its settings that are not in the configuration, with
    the keys `own`; and all others: `key=value`, options and what follows --cfg.

    Args:
        expand_home: whether ~ at the beginning of words and values is the home folder. False: they may be any text.
    """
    expand = os.path.expanduser if expand_home else str
    words: list[str] = []
    values: dict[str, str] = {}
    settings: list[str] = []
    for i, word in enumerate(argv):
        key, equals, value = word.partition("=")
        if equals and key in own:
            values[key] = expand(value)  # a shell expands ~ at the beginning of a word only
        elif (_is_setting(word) and not _is_file(word)) or argv[i - 1 : i] == ["--cfg"]:
            settings.append(word)
        else:
            words.append(expand(word))
    return words, values, settings


def _is_file(word: str) -> bool:
    """A file may have an equals sign in its name."""
    return not word.startswith("-") and os.path.exists(word) and word.partition("=")[0] not in groups()


def _is_setting(word: str) -> bool:
    """Whether a word is a setting or an option. One with a space in it may be a sentence: "x=1 holds", "-No, he said";
    it is a setting where it begins with a part of the configuration."""
    key = re.match(r"[+~]*(\w+)[\w./@]*=", word)
    if " " not in word:
        return bool(key or re.match(r"--?[a-zA-Z]", word))
    if not key:
        return False
    from transloom.jobs.config.schema import Config  # imports torch, which such a job needs anyway

    return key[1] in [*groups(), *(field.name for field in dataclasses.fields(Config))]


def parse_settings(kind: type[Settings], values: Mapping[str, str]) -> Settings:
    """A command's own settings as a dataclass, whose fields are numbers, texts, tuples of texts or enumerations.

    A text is taken as it is, or in double quotes as JSON: '"\\n"' is a line feed. Several are a JSON list of texts.

    Raises:
        UserError: a value can't be read or is refused, naming the key.
    """
    hints = get_type_hints(kind)
    try:
        return kind(**{key: _parse_value(key, value, hints[key]) for key, value in values.items()})
    except ValueError as error:
        raise UserError(str(error)) from None


def _parse_value(key: str, value: str, kind: Any) -> Any:
    if type(None) in get_args(kind):  # a setting that may be left out
        (kind,) = set(get_args(kind)) - {type(None)}
    if kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            raise UserError(f"{key}: must be a {'whole ' * (kind is int)}number, not {value[:60]!r}") from None
    if issubclass(get_origin(kind) or kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise UserError(f"{key}={value}: there is {', '.join(option.value for option in kind)}") from None
    if kind is str:
        return _text(key, value)
    if not value.startswith("["):
        return (_text(key, value),)
    texts = _json(key, value)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{key}: must be a text, or a JSON list of texts, not {value[:60]}")
    return tuple(refuse_invalid_utf8(key, text) for text in texts)


def _text(key: str, value: str) -> str:
    if len(value) > 1 and value.startswith('"') and value.endswith('"'):
        text = _json(key, value)
        if isinstance(text, str):
            return refuse_invalid_utf8(key, text)
    elif "\\" in value:
        raise UserError(f"{key}: a text with a backslash is given as JSON, in double quotes of its own: {key}='\"…\"'")
    return refuse_invalid_utf8(key, value)


def refuse_invalid_utf8(name: str, text: str) -> str:
    """The text itself.

    Raises:
        UserError: the text, a word of the command, can't be written as UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: is not UTF-8: convert it first") from None
    return text


def _json(key: str, value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: is not JSON ({error}): {value[:60]}") from None


def configuration(job: str, argv: Sequence[str], are_changes: bool = False, is_elsewhere: bool = False) -> "Config":
    """The configuration that a job's words make, or with `resolved=<file>` the one that was resolved elsewhere. Answers
    `--cfg job` itself, and then ends the command.

    Args:
        are_changes, is_elsewhere: see `load_config`.
    Raises:
        UserError: if the words are refused, or mean nothing to this job.
        SystemExit: 0, after the configuration was printed.
    """
    words = list(argv)
    show = "--cfg" in words
    if show:
        at = words.index("--cfg")
        if words[at + 1 : at + 2] != ["job"]:
            raise UserError("--cfg: the only thing to show is the job's configuration: --cfg job")
        del words[at : at + 2]

    # They import torch, which takes seconds: not for help.
    from transloom.jobs.config.compose import load_config, read_config, to_yaml, with_absolute_paths
    from transloom.jobs.runs.workspace import only_resumed, resumed

    if resolved := [word.partition("=")[2] for word in words if word.startswith("resolved=")]:
        if len(words) > 1:
            raise UserError("resolved=: the file has every setting; no other word goes with it")
        config = only_resumed(read_config(Path(resolved[0])))
    else:
        _refuse_meaningless(job, words)
        own_words = re.findall(r"([\w.]+)=", " ".join([COMMANDS[job].arguments, *COMMANDS[job].own_words]))
        config = with_absolute_paths(load_config(words, own_words, are_changes, is_elsewhere))
        if config.resume:
            config = resumed(config, words)
    if show:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def _refuse_meaningless(job: str, words: Sequence[str]) -> None:
    """Refuses a setting that such a job would take and not look at. A word that is none is left to what comes next."""
    command = COMMANDS[job]
    if not command.refuses_others or any(word.startswith("resume=") for word in words):
        return  # the settings of a run, which says itself what goes with them
    from transloom.jobs.config.schema import Config

    reads = list(dict.fromkeys(name.partition(".")[0] for name in command.reads or ()))
    known = {*groups(), *(field.name for field in dataclasses.fields(Config))}
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        section = re.split(r"\W", key)[0]
        if section in known and section not in (*reads, "experiment"):  # which may set what the job reads
            raise UserError(f"{key}: means nothing to {job}; of all settings it reads {', '.join(reads)}")


def print_jobs() -> None:
    console = _console()
    console.print("usage: transloom <job> [key=value | group=option] …\n")
    console.print(_columns({name: command.summary for name, command in COMMANDS.items()}))
    console.print("\nStart with: transloom run            More about a job: transloom <job> --help")
    console.print("A setting or a section: transloom help train.max_steps     Versions: transloom --version")


def print_versions() -> None:
    """This program's version, Python's, and those of the libraries that a training runs on. Imports none of them."""
    try:
        own = metadata.version("transloom")
    except metadata.PackageNotFoundError:  # code that was copied
        own = "unknown"
    libraries = {name: metadata.version(name) for name in ("torch", "ray", "deepspeed")}
    for name, version in {"transloom": own, "python": platform.python_version(), **libraries}.items():
        print(f"{name} {version}")


def print_topic(topic: str) -> None:
    """Help about a job, a setting, a section of settings, a group, or a word of some command.

    Raises:
        UserError: there is nothing of that name; names the nearest.
    """
    topic = topic.partition("=")[0]
    if topic in COMMANDS:
        print_help(topic)
    elif own := [setting for setting in all_settings() if setting.key == topic]:
        _print_setting(own)
    elif below := settings_below(topic):
        console = _console()
        console.print(f"Settings of {topic.rstrip('.')}; transloom help {below[0].key} and the like have more:")
        for setting in below:
            of = f" ({setting.of})" if setting.of else ""
            console.print(f"  {setting.key}={setting.default}{of}\n      {setting.line}", soft_wrap=True)
    elif topic in groups():
        _console().print(f"{topic}=<option>, one of: {', '.join(groups()[topic])}", soft_wrap=True)
    elif words := _words_of_commands(topic):
        for line in words:
            _console().print(line, soft_wrap=True)
    else:
        known = [*COMMANDS, *known_names()]
        same = [name for name in known if name.rpartition(".")[2] == topic.rpartition(".")[2]]
        nearest = difflib.get_close_matches(topic, same, n=1, cutoff=0.3) or difflib.get_close_matches(
            topic, known, n=1, cutoff=0.5
        )
        hint = (
            f"Did you mean {nearest[0]}?"
            if nearest
            else "`transloom help` lists the jobs, docs/settings.md all settings."
        )
        raise UserError(f"{topic}: is no job and no setting. {hint}")


def _words_of_commands(name: str) -> list[str]:
    """What each command with a word of its own of that name says of it."""
    return [
        f"transloom {job} … {word}: {meaning}"
        for job, command in COMMANDS.items()
        for word, meaning in command.own_words.items()
        if word.partition("=")[0] == name
    ]


def _print_setting(settings: Sequence[Setting]) -> None:
    """
    Args:
        settings: a setting in its forms, by the task or the model that it is of.
    """
    console, key = _console(), settings[0].key
    console.print(key)
    for setting in settings:
        rows = {
            **({"of": setting.of} if setting.of else {}),
            "type": setting.kind,
            **({"choices": ", ".join(setting.choices)} if setting.choices else {}),
            "default": setting.default or '""',
        }
        console.print(f"\n  {setting.line}", soft_wrap=True)
        for name, text in rows.items():
            console.print(f"  {name:<9}{text}", soft_wrap=True)
    console.print(f"\n  {'read by':<9}{', '.join(readers(key))}", soft_wrap=True)
    if key.partition(".")[0] in groups():
        console.print(f"  {'group':<9}options of {key.partition('.')[0]}= set it, too", soft_wrap=True)


def usage(job: str) -> str:
    """The first line of a command's help: what a person is told who gave it the wrong words."""
    settings = "[key=value | group=option] …" if COMMANDS[job].has_settings else ""
    return " ".join(filter(None, ["usage: transloom", job, COMMANDS[job].arguments, settings]))


def print_help(job: str) -> None:
    console, command = _console(), COMMANDS[job]
    console.print(f"{usage(job)}\n", soft_wrap=True)
    console.print(f"{command.summary[0].upper()}{command.summary[1:]}.\n", soft_wrap=True)
    if command.own_words:
        console.print("Its own settings:")
        console.print(_columns({word: text for word, text in command.own_words.items()}))
        console.print()
    if command.has_settings:
        everything = (*groups(), *(word.partition("=")[0] for word in USUAL_SETTINGS))
        reads = everything if command.reads is None else command.reads
        if shown := {name: _few(options) for name, options in groups().items() if name in reads}:
            console.print("Groups: group=option takes a file of conf/<group>/; experiment= sets several at once.")
            console.print(_columns(shown))
            console.print()
        usual = {word: text for word, text in USUAL_SETTINGS.items() if word.partition("=")[0] in reads}
        console.print("Usual settings:")
        console.print(_columns({**command.own_settings, **usual}))
        console.print(
            f"\nReads the settings of: {', '.join(read_by(job))}; transloom help <name> has each.", soft_wrap=True
        )
        console.print("--cfg job prints all settings as they would be used, and their names, and does nothing else.\n")
    console.print("Examples:")
    for words in command.examples:
        console.print(f"  transloom {job} {words}", soft_wrap=True)


def _few(options: list[str]) -> str:
    """The options in a line; of those in folders of their own only how many there are."""
    folders = Counter(option.rpartition("/")[0] for option in options if "/" in option)
    plain = [option for option in options if "/" not in option]
    return " ".join([*plain, *(f"{folder}/… ({count})" for folder, count in folders.items())])


def _columns(rows: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        table.add_row(f"  {name}", text)
    return table


def _console() -> Console:
    return Console(markup=False, highlight=False, emoji=False)
