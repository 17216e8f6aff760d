"""A run's folder: finding it for a configuration, locking it, and resuming an earlier run."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transloom.jobs.config.compose import from_dict, read_config, to_dict, to_yaml
from transloom.jobs.config.schema import Config, refuse_contradictions
from transloom.jobs.terminal.console import StatusLine, console, counter
from transloom.jobs.training.precision import with_precision
from transloom.model.build import architecture_of
from transloom.pipeline.data.corpus_config import CorpusConfig
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import (
    MANIFEST,
    Stage,
    atomic_write,
    hash_of,
    read_json,
    without_defaults,
    write_json,
)
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.run_folder import (
    CONFIG_FILE,
    LOCK_FILE,
    PREPARED_FILE,
    RUNS_FOLDER,
    STAGES,
    TRAINING_FILE,
)
from transloom.pipeline.secrets import HIDDEN, redacted
from transloom.pipeline.storage.mirror import fetch_run, fetch_stage

LOOK_SECONDS = 0.5
# What the trained weights do not depend on, and what they depend on by the hash of the shards alone.
OF_NO_WEIGHTS = ("tracking", "decode", "race", "sweep", "output_dir", "storage", "name", "resume")
OF_SHARDS = ("corpus", "clean", "tokenizer")
CLUSTER_OF_IDENTITY = ("num_workers", "cpus_per_worker", "gpus_per_worker")
IDENTITY_FORMAT = 2  # to be raised when a default changes: tests/jobs/defaults.yaml has the defaults of this format

# Settings that may differ between a run and its resumption: where and how long the run trains, how often it reports. A
# change of any other setting makes another run.
CHANGEABLE = (
    "cluster.",
    "tracking.",
    "decode.",
    "evaluate.",
    "engine.",
    "train.max_steps",
    "train.max_minutes",
    "train.patience",
    "train.log_every",
    "train.validate_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.average",
    "train.max_skipped",
    "train.spike_factor",
    "train.on_divergence",
    "train.max_rollbacks",
    "output_dir",
    "storage",
    "name",
    "resume",
)


@dataclass(frozen=True)
class Run:
    """A training and its results, in a folder."""

    name: str
    folder: Path
    config: Config

    @property
    def training(self) -> dict[str, Any] | None:
        """The contents of training.json; None before the training's end."""
        path = self.folder / TRAINING_FILE
        return read_json(path) if path.exists() else None


def output_dir(config: Config) -> Path:
    return Path(config.output_dir).absolute()


def identity(config: Config, prepared: Prepared) -> str:
    """The hash of all that the trained weights depend on. Only settings that differ from the defaults count, so the
    same words on the same data find the same run again, even after new settings were added."""
    settings = without_defaults(config)
    for key in (*OF_SHARDS, *OF_NO_WEIGHTS):
        settings.pop(key, None)
    if config.train.initial and not config.resume:
        from transloom.jobs.runs.model import weights_of  # imports this module

        weights = weights_of(config.train.initial, output_dir(config))
        settings["train"] |= {"initial": weights or config.train.initial}
    if isinstance(config.corpus, CorpusConfig) and config.corpus.mix.share:  # the shards have all pairs to draw from
        settings["mix_share"] = config.corpus.mix.share
    if isinstance(config.corpus, CorpusConfig) and config.corpus.weights:
        settings["drawn_by"] = [*config.corpus.weights, config.corpus.temperature]
    settings["cluster"] = {key: getattr(config.cluster, key) for key in CLUSTER_OF_IDENTITY}
    return hash_of(
        {
            "format": IDENTITY_FORMAT,
            "architecture": architecture_of(config.model),
            "settings": settings,
            "shards": prepared.shards.manifest["key"],
        }
    )


def run_folder(config: Config, prepared: Prepared) -> Path:
    """The folder of the run that this configuration names, existing or not."""
    name = config.name or f"{config.corpus.name}-{identity(config, prepared)[:8]}"
    return output_dir(config) / RUNS_FOLDER / name


def bring_run(config: Config, folder: Path, key: str | None = None) -> bool:
    """Whether the run exists, in its folder or in the storage, from which it is fetched.

    Args:
        key: the required identity of a run in the storage; None: any.
    Raises:
        UserError: see `fetch_run`.
    """
    record = folder / PREPARED_FILE
    if config.storage and not record.exists():
        bring_from(config.storage, folder, key)
    return record.exists()


def bring_from(url: str, folder: Path, key: str | None = None) -> list[str]:
    """Fetches the files of a run that a storage has and the folder lacks, and prints a summary.

    Returns:
        names of damaged files in the storage.
    Raises:
        UserError: see `fetch_run`.
    """
    status = StatusLine()
    came = fetch_run(url, folder, key, counter(status))
    status.clear()
    if came.files:
        checkpoint = f"checkpoint step_{came.step:08d}" if came.step >= 0 else "no new checkpoint"
        size = f"{came.size_bytes / 1e6:,.1f} MB"
        console.print(
            f"Fetched     the run {folder.name} from {redacted(url)}: {checkpoint}, {came.files} files, {size}"
        )
    return came.damaged


def bring_stage(config: Config, folder: Path) -> bool:
    """Fetches a finished stage from the storage if it is missing here; returns whether it was fetched.

    Raises:
        UserError: see `fetch_stage`.
    """
    if config.storage is None:
        return False
    status = StatusLine()
    try:
        return fetch_stage(config.storage, folder, counter(status))
    finally:
        status.clear()


def has_run(config: Config, prepared: Prepared) -> bool:
    """Whether the run that this configuration names exists, here or in the storage."""
    folder = run_folder(config, prepared)
    return (
        bring_run(config, folder, None if config.resume else identity(config, prepared))
        and (folder / CONFIG_FILE).exists()
    )


def run_for(config: Config, prepared: Prepared) -> Run:
    """The run that this configuration names. A new run gets its folder, and a precision in place of `auto`. Only its
    owner changes an old run. A new run on a cluster is made inside a Ray session.

    Raises:
        UserError: `name` names a run of another configuration, or the data of a resumed run have changed; see
            `bring_run`.
    """
    key = identity(config, prepared)
    folder = run_folder(config, prepared)
    stages = {stage: str(getattr(prepared, stage).folder) for stage in STAGES}
    record = folder / PREPARED_FILE
    if not bring_run(config, folder, None if config.resume else key):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, {"identity": key, **stages})
    known = read_json(record)
    if config.resume and Path(known["shards"]).name != Path(stages["shards"]).name:  # the folder may have been moved
        raise UserError(
            f"resume: the data of the run {folder.name} have changed: its shards are {known['shards']}, and now they "
            f"would be {stages['shards']}. Bring the corpus back to what it was, or start a new run"
        )
    if not config.resume and known["identity"] != key:
        others = [key for key in differing_keys(config, folder) if _is_of_identity(key)]
        what = f"another {', another '.join(others[:4])}{' …' if len(others) > 4 else ''}" if others else "other data"
        raise UserError(
            f"name: the run {folder.name} exists and was made with {what} (see {folder / CONFIG_FILE}); choose another "
            f"name, or go on with it as it is: transloom train resume={folder.name}"
        )
    run = Run(folder.name, folder, with_precision(config, folder / CONFIG_FILE))
    if not (folder / CONFIG_FILE).exists():
        _write_config(run)
    return run


def own_config(run: Run) -> Config:
    """The run's settings with the search and the scoring that the run began with. config.yaml and MLflow keep these,
    whatever search and scoring a later command uses."""
    file = run.folder / CONFIG_FILE
    if not file.exists():
        return run.config
    begun = read_config(file)
    return replace(run.config, decode=begun.decode, evaluate=begun.evaluate)


def own_search(run: Run) -> BeamConfig:
    return own_config(run).decode


def _write_config(run: Run) -> None:
    text = to_yaml(own_config(run))  # for the workers, which need no password, as the data are prepared
    with atomic_write(run.folder / CONFIG_FILE) as file:
        file.write(text.encode())


def stage_folder(run_folder: Path, stage: str) -> Path:
    """The folder of a stage ("corpus", "tokenizer" or "shards") that a run was made from: in the run's output folder,
    which may have been moved, else at the recorded place."""
    folder = Path(read_json(run_folder / PREPARED_FILE)[stage])
    beside = run_folder.absolute().parent.parent / STAGES[stage] / folder.name
    return beside if beside.exists() else folder


def prepared_before(config: Config) -> Prepared | None:
    """The prepared stages of the run to resume, if all exist here or in the storage; else None."""
    assert config.resume is not None
    run = find_run(config.resume, output_dir(config))
    folders = {stage: stage_folder(run, stage) for stage in STAGES}
    for folder in folders.values():
        if not (folder / MANIFEST).exists():
            bring_stage(config, folder)
    if not all((folder / MANIFEST).exists() for folder in folders.values()):
        return None
    stages = {name: Stage(folder, read_json(folder / MANIFEST), True, 0.0) for name, folder in folders.items()}
    return Prepared(**stages)


def resumed(config: Config, words: Sequence[str]) -> Config:
    """The configuration of the run that `config.resume` names, changed by the words.

    Args:
        config: composed from the words alone.
        words: the given overrides.
    Raises:
        UserError: there is no such run, or a word would make it another run.
    """
    assert config.resume is not None
    if "/" not in config.resume:
        bring_run(config, output_dir(config) / RUNS_FOLDER / config.resume)
    folder = find_run(config.resume, output_dir(config))
    refuse_other_name(config, folder.name)
    changed = with_changes(read_config(folder / CONFIG_FILE), config, words)
    refuse_lost_password(changed)
    return replace(changed, name=folder.name, resume=folder.name, output_dir=str(folder.parent.parent))


def refuse_other_name(config: Config, name: str | None) -> None:
    """
    Raises:
        UserError: the words give a resumed run another name.
    """
    if config.name is not None and config.name != name:
        raise UserError(
            f"name: what is resumed keeps its name, {name}, and can't become {config.name}. Leave name= out; for "
            f"another run give its settings without resume= and with name={config.name}"
        )


def refuse_lost_password(config: Config) -> None:
    """
    Raises:
        UserError: the configuration comes from an earlier run, which did not keep its server's password.
    """
    if HIDDEN in (config.tracking.uri or ""):
        raise UserError(
            f"tracking.uri: the password in {config.tracking.uri} is not kept with the run; give tracking.uri again, "
            "or leave it out of the address and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


def with_changes(
    before: Config, config: Config, words: Sequence[str], changeable: Sequence[str] = CHANGEABLE
) -> Config:
    """A run's settings, changed by the words of its resumption. The cluster is always that of the words.

    Args:
        before: the run's settings.
        config: composed from the words alone.
        words: the given overrides.
        changeable: settings, and sections with a dot at the end, that may change.
    Raises:
        UserError: a word would make it another run.
    """
    settings, given = to_dict(before), to_dict(config)
    settings["cluster"]["address"] = given["cluster"]["address"]
    for word in words:
        key = word.partition("=")[0]
        section, _, field = key.partition(".")
        if not _is_changeable(key, changeable):
            raise UserError(
                f"{key}: can't change when a run is resumed, since it would be another run. These can: "
                f"{', '.join(one.rstrip('.') for one in changeable)}. For the rest start a new run"
            )
        if field:
            settings[section][field] = given[section][field]
        else:
            settings[section] = given[section]
    return refuse_contradictions(from_dict(settings))


def _is_changeable(key: str, changeable: Sequence[str] = CHANGEABLE) -> bool:
    """Whether a setting, or a whole section, may differ between a run and its resumption."""
    return any(key == one or f"{key.partition('.')[0]}." == one for one in changeable)


def only_resumed(config: Config) -> Config:
    """Checks a configuration that was resolved elsewhere against the run that it resumes. A run that was stopped before
    it began starts anew.

    Raises:
        UserError: the configuration would make another run.
    """
    if config.resume is None or not (
        bring_run(config, output_dir(config) / RUNS_FOLDER / config.resume)
        and (output_dir(config) / RUNS_FOLDER / config.resume / CONFIG_FILE).exists()
    ):
        return replace(config, resume=None)
    folder = find_run(config.resume, output_dir(config))
    for key in differing_keys(config, folder):
        if not _is_changeable(key):
            raise UserError(
                f"{key}: is another one than that of the run {config.resume} in {folder}, so it can't go on with it"
            )
    return config


def _is_of_identity(key: str) -> bool:
    """Whether another value of a setting, section.field, may make another run."""
    section, _, field = key.partition(".")
    return field in CLUSTER_OF_IDENTITY if section == "cluster" else section not in OF_NO_WEIGHTS


def differing_keys(config: Config, folder: Path) -> list[str]:
    """The settings, as section.field, that are others than those of the run in a folder; none where it has none yet."""
    if not (folder / CONFIG_FILE).exists():
        return []
    before = to_dict(read_config(folder / CONFIG_FILE))
    keys = []
    for section, value in to_dict(with_precision(config, folder / CONFIG_FILE)).items():
        fields = value if isinstance(value, dict) else {"": value}
        own = before[section] if isinstance(value, dict) else {"": before[section]}
        keys += [
            f"{section}.{field}".rstrip(".")
            for field in dict.fromkeys([*fields, *own])
            if fields.get(field) != own.get(field)
        ]
    return keys


def find_run(name_or_path: str, root: Path) -> Path:
    """The folder of a run, by its name under `root`/runs or by its path.

    Raises:
        UserError: there is no such run; names the latest ones.
    """
    for folder in (root / RUNS_FOLDER / name_or_path, Path(name_or_path).absolute()):
        if (folder / CONFIG_FILE).exists():
            return folder
    runs = sorted((root / RUNS_FOLDER).glob(f"*/{CONFIG_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    known = ", ".join(path.parent.name for path in runs[:5]) or "none yet"
    raise UserError(f"there is no run {name_or_path!r} in {root / RUNS_FOLDER}; the latest there: {known}")


@contextmanager
def only_owner(run: Run) -> Iterator[None]:
    """Holds the run's lock. Writes this configuration to config.yaml, with the run's own search and scoring.

    Raises:
        UserError: another process has the lock.
    """
    with locked(run.folder):
        _write_config(run)
        yield


def this_process() -> str:
    """This process's name in a lock."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def user_of(run_folder: Path) -> str | None:
    """The name of the process that holds a run's lock; None if no process does."""
    path = run_folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return path.read_bytes().decode(errors="replace").strip()
    finally:
        os.close(descriptor)
    return None


@contextmanager
def locked(run_folder: Path) -> Iterator[None]:
    """Holds a run's lock, which is released however the process ends.

    Raises:
        UserError: another process holds the lock.
    """
    path = run_folder / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + LOOK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:  # the holder may be a short check by `user_of`
                    time.sleep(0.05)
                    continue
                owner = path.read_bytes().decode(errors="replace").strip()
                raise UserError(
                    f"the run {run_folder.name} is in use by {owner}; wait for it, or choose another name="
                ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, this_process().encode(), 0)
        yield
    finally:
        os.close(descriptor)
