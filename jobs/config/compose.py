"""Makes a `Config` from YAML groups and the command line's `key=value` words. All settings are checked here, before a
job starts: each fault is a UserError with the key's full name."""

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf, StringNode
from omegaconf._utils import get_yaml_loader  # the loader of OmegaConf.load
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from transloom.jobs.config.groups import CONF_DIR, groups
from transloom.jobs.config.initial import follow_initial
from transloom.jobs.config.messages import explain, nearest, quoting, unknown
from transloom.jobs.config.schema import TASK_SECTIONS, Config, refuse_contradictions
from transloom.model.build import ARCHITECTURES, architecture_of
from transloom.pipeline.data.documents import SPLITS
from transloom.pipeline.errors import UserError
from transloom.pipeline.secrets import redacted
from transloom.pipeline.untrusted import read_yaml, refuse_deep_words

OWN_EXPERIMENT = re.compile(r"experiment=.+\.ya?ml")  # the user's own file instead of one in conf/experiment/
OWN_NAME = "file-of-your-own"  # the file's name in Hydra
NUM_WORKERS = re.compile(r"cluster\.num_workers=(?:(\d+)|\[\s*(\d+)\s*,\s*(\d+)\s*\])")  # a number, or a range


def load_config(
    overrides: Sequence[str], own_words: Sequence[str] = (), are_changes: bool = False, is_elsewhere: bool = False
) -> Config:
    """Composes conf/config.yaml with the overrides, in Hydra's `key=value` and `group=option` grammar. The experiment
    may also be a file of the user's own, `experiment=path/to/mine.yaml`.

    Args:
        own_words: a job's words besides settings, to suggest for an unknown key.
        are_changes: the overrides change another configuration, as with resume=<run>: the caller, which combines both,
            checks for contradictions.
        is_elsewhere: the job runs on another machine; see `follow_initial`.
    Raises:
        UserError: for an unknown key or option, a wrong type, or a value that a part refuses.
    """
    settings = _compose(overrides, own_words)
    if not are_changes and settings.resume is None:
        named = {word.partition("=")[0] for word in overrides} | _settings_of_experiment(overrides, "model")
        follow_initial(settings, named, is_elsewhere)
    config = from_dict(settings)
    return config if are_changes or config.resume else refuse_contradictions(config)


def _settings_of_experiment(overrides: Sequence[str], section: str) -> set[str]:
    """The keys of a section that the chosen experiment's own file sets."""
    words = [word for word in overrides if word.startswith("experiment=")]
    name = words[-1].partition("=")[2] if words else "demo"
    file = Path(name).expanduser() if words and OWN_EXPERIMENT.fullmatch(words[-1]) else None
    file = file or CONF_DIR / "experiment" / f"{name}.yaml"
    values = _read(file).get(section) if file.exists() else None
    return {f"{section}.{key}" for key in values} if isinstance(values, DictConfig) else set()


def chosen_options(overrides: Sequence[str]) -> dict[str, str]:
    """The option of each group that the overrides choose, also through the experiment.

    Raises:
        UserError: as `load_config`.
    """
    choices = _compose(overrides, return_hydra_config=True).hydra.runtime.choices
    return {group: choices[group] for group in groups() if choices.get(group)}


def _without_range(word: str) -> list[str]:
    """Turns cluster.num_workers=[2,8] into num_workers=8 min_workers=2, whose types OmegaConf can check. A single
    number is fixed."""
    match = NUM_WORKERS.fullmatch(word)
    if match is None:
        return [word]
    number, lowest, highest = match.groups()
    return [f"cluster.num_workers={number or highest}", f"cluster.min_workers={lowest or 'null'}"]


def _compose(overrides: Sequence[str], own_words: Sequence[str] = (), return_hydra_config: bool = False) -> DictConfig:
    refuse_deep_words(list(overrides))
    own = [word for word in overrides if OWN_EXPERIMENT.fullmatch(word)]
    words = [_quoted(each) for word in overrides if word not in own for each in _without_range(word)]
    parsed = _parse(words, own_words)
    for override in parsed:
        _check_name(override, own_words)
    _store_schema()
    try:
        if own:
            node = _read(Path(own[-1].partition("=")[2]).expanduser())
            ConfigStore.instance().store(group="experiment", name=OWN_NAME, node=node, package="_global_")
            words.append(f"experiment={OWN_NAME}")
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return _with_own_space(compose("config", words, return_hydra_config=return_hydra_config), parsed)
    except OSError as error:
        raise UserError(f"{own[-1]}: {error.strerror or error}") from error
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(explain(error, _names())) from error
    except RecursionError as error:  # ${a} within a within ${a}
        raise UserError(f"{' '.join(own) or 'the settings'}: interpolations ${{…}} that name each other") from error


def _with_own_space(node: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """Makes `sweep.space={…}` the whole space; Hydra would merge it with the space of the sweep's group."""
    whole = [one.value() for one in overrides if one.key_or_group == "sweep.space"]
    if whole and isinstance(whole[-1], dict):
        names = [one.key_or_group.removeprefix("sweep.space.").partition(".")[0] for one in overrides]
        more = {name: node.sweep.space[name] for name in names if name in node.sweep.space and name not in whole[-1]}
        OmegaConf.update(node, "sweep.space", {**whole[-1], **more}, merge=False, force_add=True)
    return node


def with_absolute_paths(config: Config) -> Config:
    """Makes paths absolute, from the command's working directory: workers, and a later resume, run in other folders."""

    def at_home(path: str) -> str:
        """Expands ~, which a shell expands at the beginning of a word only, not behind `key=`."""
        scheme, separator, rest = path.rpartition("file://")
        return path if "://" in path and scheme else scheme + separator + os.path.expanduser(rest)

    storage = config.storage and at_home(config.storage).rstrip("/")
    output_dir = str(Path(os.path.expanduser(config.output_dir)).absolute())
    resume = config.resume and os.path.expanduser(config.resume)
    sweep = dataclasses.replace(config.sweep, warm_start=[os.path.expanduser(name) for name in config.sweep.warm_start])
    initial = config.train.initial and os.path.expanduser(config.train.initial)
    if initial and ("/" in initial or os.path.exists(os.path.join(initial, "config.json"))):  # else the name of a run
        initial = os.path.abspath(initial)
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, initial=initial),
        corpus=config.corpus.with_absolute_paths(),
        tokenizer=config.tokenizer.with_absolute_paths(),
        output_dir=output_dir,
        storage=storage,
        resume=resume,
        sweep=sweep,
    )


def read_config(path: Path) -> Config:
    """Reads the YAML of `to_yaml`, for example a run's config.yaml.

    Raises:
        UserError: if the file is missing, or no longer fits the schema.
    """
    try:
        stored = _read(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    try:
        return from_dict(stored)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read(file: Path) -> DictConfig:
    """A YAML file of settings, by OmegaConf's rules: no key twice, 1e-3 is a number.

    Raises:
        OSError: there is no such file.
        UserError: see `read_yaml`; or the file's content is not a mapping.
    """
    settings = read_yaml(file, get_yaml_loader())
    if not isinstance(settings, dict | None):
        raise UserError(f"{file}: must have settings, key: value, line by line")
    try:
        return cast(DictConfig, OmegaConf.create(settings or {}))
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {explain(error, _names())}") from error


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain dictionaries, strings and numbers, for YAML, JSON and the tracker."""
    plain = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True))
    plain["model"] = {"architecture": architecture_of(config.model), **plain["model"]}
    return plain


def from_dict(settings: Any) -> Config:
    """The inverse of `to_dict`.

    Raises:
        UserError: if a value does not fit the schema.
    """
    try:
        typed = _typed(cast(DictConfig, OmegaConf.create(settings)))  # a copy, which may be changed
        _refuse_infinite(OmegaConf.to_container(typed), "")
        return _build(typed, "")
    except OmegaConfBaseException as error:
        raise UserError(explain(error, _names())) from error


def _refuse_infinite(value: Any, key: str) -> None:
    """Refuses NaN, which checks of ranges would let pass since comparisons with NaN are false, and infinity.

    Raises:
        UserError: a number in the settings, at any depth, is NaN or infinite.
    """
    if isinstance(value, dict):
        for name, part in value.items():
            _refuse_infinite(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for place, part in enumerate(value):
            _refuse_infinite(part, f"{key}[{place}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}: must be a finite number, not {value}")


def recorded(config: Config) -> dict[str, Any]:
    """`to_dict` for files and pages, with *** in place of every password, token and signature."""
    return redacted(to_dict(config))


def to_yaml(config: Config) -> str:
    """The YAML of `recorded`; `read_config` reads it."""
    return OmegaConf.to_yaml(OmegaConf.create(recorded(config)))


@cache
def _store_schema() -> None:
    """Stores the schema for Hydra, which copies it at each composition."""
    ConfigStore.instance().store(name="schema", node=_schema(None, None))


@cache
def _schema(architecture: str | None, task: str | None) -> DictConfig:
    """The typed settings. While the architecture or the task is unknown, the sections that depend on it take any keys.
    The schema is made only once, as that takes long, so callers must not change it."""
    schema = OmegaConf.structured(Config)
    schema._set_flag("readonly", False)
    schema.model = OmegaConf.structured(ARCHITECTURES[architecture]) if architecture else {}
    for section, kind in TASK_SECTIONS[task or "translation"].items():
        schema[section] = OmegaConf.structured(kind) if task else {}
    _make_mergeable(schema)
    if task != "translation":  # whose default is the paper's; other tasks' losses are to be likelihoods
        schema.train.label_smoothing = 0.0 if task else MISSING
    return schema


def _typed(settings: DictConfig) -> DictConfig:
    """The settings merged into a copy of their schema; changes `settings`.

    Raises:
        UserError: the architecture or the task does not exist, or lacks one of the settings.
    """
    OmegaConf.set_struct(settings, False)
    model = settings.get("model") if isinstance(settings, DictConfig) else None
    model = model if isinstance(model, DictConfig) else DictConfig({})  # the merge refuses a value that is no mapping
    architecture = model.pop("architecture", "transformer")  # older files lack the key
    if architecture not in ARCHITECTURES:
        raise UserError(f"model.architecture: {architecture!r} is none of {', '.join(ARCHITECTURES)}")
    task = settings.get("task", "translation") if isinstance(settings, DictConfig) else "translation"
    task = getattr(task, "value", task)
    if task not in TASK_SECTIONS:
        raise UserError(f"task: {task!r} is none of {', '.join(TASK_SECTIONS)}")
    schema = _schema(architecture, task)
    others = {f"model.architecture={kind}": _schema(kind, task) for kind in ARCHITECTURES}
    _refuse_foreign_keys(settings, "model", schema, f"this model is of architecture {architecture}", others)
    others = {f"task={other}": _schema(architecture, other) for other in TASK_SECTIONS}
    for section in TASK_SECTIONS[task]:
        _refuse_foreign_keys(settings, section, schema, f"this task is {task}", others)
    try:
        return cast(DictConfig, OmegaConf.merge(schema, settings))
    except OmegaConfBaseException:
        for section in TASK_SECTIONS[task]:
            _refuse_foreign_values(settings, section, schema, f"this task is {task}", others)
        raise


def _refuse_foreign_keys(
    settings: DictConfig, section: str, schema: DictConfig, what: str, others: Mapping[str, DictConfig]
) -> None:
    """
    Args:
        what: the choice that the section's settings depend on. others: the schemas of the other choices.
    Raises:
        UserError: the section has a setting that its schema lacks.
    """
    given = settings.get(section) if isinstance(settings, DictConfig) else None
    for key in _unknown_keys(given, schema[section], f"{section}."):
        owners = [name for name, other in others.items() if key in dict(_leaves(other[section], f"{section}."))]
        if not owners:
            raise UserError(f"{key}: {unknown(key, _names())}")
        raise UserError(
            f"{key}: is a setting of {owners[0]}; {what}, whose settings are "
            f"{', '.join(str(name) for name in schema[section])}. Where it is the experiment that sets it, take "
            "another experiment, or none"
        )


def _refuse_foreign_values(
    settings: DictConfig, section: str, schema: DictConfig, what: str, others: Mapping[str, DictConfig]
) -> None:
    """
    Args: as `_refuse_foreign_keys`.
    Raises:
        UserError: a setting of the section has a value that only another choice takes.
    """
    given = settings.get(section)
    for name in given if isinstance(given, DictConfig) else ():
        value = given._get_node(name)
        owners = [] if _fits(name, value, schema[section]) else others
        if owner := next((one for one in owners if _fits(name, value, others[one][section])), None):
            raise UserError(f"{section}.{name}: {value} is a value of {owner}; {what}. Take an experiment of {owner}")


def _fits(name: Any, value: Any, schema: DictConfig) -> bool:
    try:
        OmegaConf.merge(schema, {name: value})
    except OmegaConfBaseException:
        return False
    return True


def _unknown_keys(given: Any, schema: DictConfig, prefix: str) -> Iterator[str]:
    """The full names of settings that the schema lacks, at any depth."""
    for name in given if isinstance(given, DictConfig) else ():
        if name not in schema:
            yield f"{prefix}{name}"
        elif _is_section(below := schema._get_node(name)) and isinstance(given._get_node(name), DictConfig):
            yield from _unknown_keys(given._get_node(name), below, f"{prefix}{name}.")


def _make_mergeable(node: DictConfig) -> None:
    # OmegaConf makes nodes of frozen dataclasses read-only, and Hydra could not compose onto them.
    node._set_flag("readonly", None)
    for name in node:
        child = node._get_node(name)
        if _is_section(child):
            _make_mergeable(child)
        elif isinstance(child, DictConfig):
            child._set_flag("struct", False)  # a dictionary whose keys the user chooses


@cache
def _keys() -> list[str]:
    """Every setting by its full name."""

    names = [name for schema in _schemas() for name, _ in _leaves(schema)]
    return list(dict.fromkeys([*names, "model.architecture"]))


@cache
def _schemas() -> list[DictConfig]:
    """Schemas that together have every setting."""
    schemas = [_schema(architecture, "translation") for architecture in ARCHITECTURES]
    return [*schemas, *(_schema("transformer", task) for task in TASK_SECTIONS if task != "translation")]


def _leaves(section: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each setting in the schema: its full name and its node."""
    for name in section:
        child = section._get_node(name)
        if _is_section(child):
            yield from _leaves(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _names() -> list[str]:
    """All names that may be before an equals sign."""
    return [*_keys(), *groups()]


@cache
def _dictionaries() -> list[str]:
    """The settings whose keys the user chooses: `race.contenders.mine=[…]` sets one of them."""
    leaves = [pair for schema in _schemas() for pair in _leaves(schema)]
    return list(dict.fromkeys(name for name, node in leaves if isinstance(node, DictConfig)))


@cache
def _texts() -> list[str]:
    """The settings that are a text, such as a path, and `corpus.data_files.`, a dictionary whose entries are texts. The
    files of documents are a text or a list of texts, those of records also a dictionary."""

    texts = {name for schema in _schemas() for name, node in _leaves(schema) if isinstance(node, StringNode)}
    return [*texts, "corpus.data_files.", *(f"corpus.{split}.{key}" for split in SPLITS for key in ("text", "files"))]


def _is_text(key: str) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in _texts())


def _quoted(word: str) -> str:
    """The word in Hydra's grammar, quoted where the value of a text setting has special characters."""
    key, equals, value = word.partition("=")
    if not equals or not _is_text(key) or not value:
        return word
    try:
        meant = OverridesParser.create().parse_override(word)
        is_as_written = meant.is_sweep_override() is False and (
            meant.value() is None or isinstance(meant.value(), dict | list)
        )
        if is_as_written or (isinstance(meant.value(), str) and re.search(r"""['"\\]|\$\{""", value)):
            return word  # null; a value that is refused later; a value that the user has quoted
        if meant.value() == value:
            return word
    except HydraException:
        pass
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _is_section(node: Any) -> TypeGuard[DictConfig]:
    return isinstance(node, DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(node))


def _parse(overrides: Sequence[str], own_words: Sequence[str] = ()) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            if text.startswith("-"):
                raise UserError(
                    f"{text}: no such option; settings are key=value, and --help lists what there is"
                ) from error
            key, equals, _ = text.partition("=")
            if equals and re.fullmatch(r"[\w.]+", key) and not key.startswith("race.contenders"):
                known = [*_names(), *own_words]
                if key not in known and not any(key.startswith(f"{name}.") for name in _dictionaries()):
                    raise UserError(f"{key}: {unknown(key, known)}") from error
                raise UserError(f"{text}: the value can't be read. {quoting(text)}") from error
            raise UserError(f"{text}: is not of the form key=value or group=option. {quoting(text)}") from error
    return parsed


def _check_name(override: Override, own_words: Sequence[str]) -> None:
    """Refuses an unknown key, group or option, naming the nearest; Hydra's own message would not name it."""
    word, key, value = str(override.input_line), override.key_or_group, override.value()
    if ("_target_" in word and not (_is_text(key) and isinstance(value, str))) or "${hydra:" in word:
        raise UserError(f"{word}: _target_ and ${{hydra:…}} are not settings and are never run")
    if override.is_sweep_override():
        raise UserError(f"{word}: one value at a time; a value with a comma in it needs quotes: '{key}=\"a,b\"'")
    known_groups, keys = groups(), _keys()
    if key in known_groups:
        options = known_groups[key]
        if value not in options or override.package is not None:
            near = nearest(str(value), options)
            hint = f" Did you mean {key}={near}?" if near else ""
            raise UserError(f"{word}: no such option.{hint} There is: {', '.join(options)}.")
    elif key not in keys and (section := [name for name in keys if name.startswith(f"{key}.")]):
        raise UserError(f"{key}: is a section, not a setting. In it: {', '.join(section)}.")
    elif key not in keys and not any(key.startswith(f"{name}.") for name in _dictionaries()):
        raise UserError(f"{key}: {unknown(key, [*_names(), *own_words])}")
    if override.type is not OverrideType.CHANGE:
        raise UserError(f"{word}: settings are neither added nor removed; write {key}=<value>")


def _build(node: DictConfig, prefix: str) -> Any:
    """Builds the node's dataclass, parts before the whole, so that a ValueError's field gets the right full name."""
    for name in node:
        child = node._get_node(name)
        if _is_section(child):
            _build(child, f"{prefix}{name}.")
    try:
        return OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise UserError(explain(error, _names())) from error
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from error
