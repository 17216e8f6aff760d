"""What a sweep is made of: its settings, whether its space can be, and the configuration of one trial."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transloom.jobs.cli import configuration
from transloom.jobs.config.compose import (
    chosen_options,
    from_dict,
    load_config,
    read_config,
    to_dict,
    with_absolute_paths,
)
from transloom.jobs.config.schema import Config, refuse_contradictions
from transloom.jobs.remote.package import submission
from transloom.jobs.runs.workspace import output_dir, refuse_lost_password, with_changes
from transloom.jobs.sweep.population import refuse_uneven, share_of
from transloom.pipeline.errors import UserError
from transloom.pipeline.run_folder import CONFIG_FILE
from transloom.pipeline.sweep.config import Sampler, SweepConfig
from transloom.pipeline.sweep.space import Point, corner_points, parse_space
from transloom.pipeline.sweep.study import Record

RECORD_FILE = "sweep.json"

# What may differ when a sweep is resumed; everything else would give its trials other scores.
CHANGEABLE = ("cluster.", "tracking.", "sweep.trials", "sweep.at_once", "sweep.minutes", "sweep.seeds", "output_dir")

# What a space can't vary: trials share the prepared shards, and their scores must compare.
FIXED = {
    "task": "the trials share one task",
    "corpus": "the trials share one corpus",
    "clean": "the trials share one corpus",
    "tokenizer": "the trials share one tokenizer",
    "decode": "the trials' scores would not compare",
    "evaluate": "the trials' scores would not compare",
    "tracking": "it is no setting of the training",
    "race": "it is no setting of the training",
    "sweep": "it is no setting of the training",
    "name": "it is no setting of the training",
    "resume": "it is no setting of the training",
    "output_dir": "it is no setting of the training",
    "storage": "it is no setting of the training",
    "train.validation_beam": "the trials' scores would not compare",
    "train.max_steps": "it is the budget of every trial",
    "train.max_minutes": "it is the budget of every trial",
}


@dataclass(frozen=True)
class Origin:
    """What `sweep_settings` knows of a sweep beside its configuration.

    Attributes:
        choices: the groups' options that made it; None where only the record in its folder has them.
        is_resumed: it is to go on, and that its settings are right has been seen to.
    """

    choices: dict[str, str] | None
    is_resumed: bool = False


def sweep_settings(argv: Sequence[str]) -> tuple[Config, Origin]:
    """The configuration that all trials share, and where it is from.

    Raises:
        UserError: the words are refused, or would make the sweep that is to go on another one.
    """
    resume = [word.partition("=")[2] for word in argv if word.startswith("resume=")]
    words = [word for word in argv if not word.startswith("resume=")]
    config = configuration("sweep", words, are_changes=bool(resume))
    if any(word.startswith("resolved=") for word in words):
        return config, _submitted()
    if not resume:
        return config, Origin(chosen_options(words))
    folder = find_sweep(resume[-1], output_dir(config))
    changed = changed_sweep(read_config(folder / CONFIG_FILE), words)
    refuse_lost_password(changed)
    return replace(changed, name=folder.name, output_dir=str(folder.parent.parent)), Origin(None, is_resumed=True)


def _submitted() -> Origin:
    about = submission()
    if "sweep" not in about:
        raise UserError(
            "resolved=: does not say which options of the groups made this sweep: submit it with transloom submit "
            "sweep, or by hand with its own words: python -m transloom.jobs sweep experiment=… cluster.address=auto"
        )
    return Origin(**about["sweep"])


def changed_sweep(before: Config, words: Sequence[str]) -> Config:
    """The settings of a sweep that is to go on, with those that the words change.

    Raises:
        UserError: a word would make it another sweep.
    """
    changed = with_absolute_paths(with_changes(before, load_config(words, are_changes=True), words, CHANGEABLE))
    if before.sweep.sampler is Sampler.pbt and changed.sweep.trials != before.sweep.trials:
        raise UserError("sweep.trials: a population's trials are sweep.population x sweep.generations, and no more")
    return changed


def find_sweep(name_or_path: str, root: Path) -> Path:
    """The folder of a sweep, by its name under `root`/sweeps or by its path.

    Raises:
        UserError: there is no such sweep.
    """
    for folder in (root / "sweeps" / name_or_path, Path(name_or_path).absolute()):
        if (folder / CONFIG_FILE).exists() and (folder / RECORD_FILE).exists():
            return folder
    known = ", ".join(sorted(path.parent.name for path in (root / "sweeps").glob(f"*/{RECORD_FILE}"))) or "none yet"
    raise UserError(f"resume: there is no sweep {name_or_path!r} in {root / 'sweeps'}; there: {known}")


def refuse_impossible(config: Config) -> None:
    """Tries the configurations of the space's corners, before anything starts.

    Raises:
        UserError: naming the parameter.
    """
    if config.storage:
        raise UserError("storage: sweeps and their trials are not copied there; leave it out")
    parameters = parse_space(config.sweep.space)
    if not parameters:
        raise UserError(
            "sweep.space: is empty: take one of conf/sweep, as in sweep=tpe_asha, or name what varies: "
            "'sweep.space={model.dropout: {choices: [0.1, 0.2, 0.3]}}'"
        )
    if config.sweep.sampler is Sampler.pbt:
        refuse_uneven(config)
    for one in parameters:
        for fixed, why in FIXED.items():
            if one.name == fixed or one.name.startswith(f"{fixed}."):
                raise UserError(f"sweep.space: {one.name} can't vary: {why}")
    for point in [*corner_points(parameters), *({**one} for one in config.sweep.points)]:
        try:
            at_point(config, point)
        except UserError as error:
            values = ", ".join(f"{name}={value}" for name, value in point.items())
            raise UserError(f"sweep.space: {error} (tried: {values})") from error


def trial_config(base: Config, record: Record) -> Config:
    """The configuration of a trial, without a name; of a population, to the end of its generation's share.

    Raises:
        UserError: see `at_point`.
    """
    config = at_point(base, record.point)
    if not record.generation:
        return config
    return replace(config, train=replace(config.train, max_steps=share_of(base) * record.generation))


def at_point(config: Config, point: Point) -> Config:
    """The configuration of one trial, without a name.

    Raises:
        UserError: there is no such setting, or the values don't go together.
    """
    settings = to_dict(replace(config, sweep=SweepConfig(), name=None, resume=None))
    for name, value in point.items():
        section: Any = settings
        *sections, field = name.split(".")
        for one in sections:
            section = section.setdefault(one, {})
            if not isinstance(section, dict):
                raise UserError(f"{name}: no such setting; {one} has none in it")
        section[field] = value
    return refuse_contradictions(from_dict(settings))
