"""The model of a run: the snapshots to average, whether the model is up to date, and making it."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transloom.jobs.config.compose import read_config
from transloom.jobs.runs.workspace import Run, find_run, locked, stage_folder, this_process, user_of
from transloom.jobs.terminal.printable import printable
from transloom.pipeline.compare.course import validation_course
from transloom.pipeline.data.labelled import LabelledConfig
from transloom.pipeline.data.prompts import PromptsConfig
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, read_json
from transloom.pipeline.processor import bf16_instructions
from transloom.pipeline.run_folder import (
    CONFIG_FILE,
    MODEL_CONFIG,
    MODEL_FOLDER,
    PREPARED_FILE,
    RUNS_FOLDER,
    TRAINING_FILE,
    WEIGHTS_FOLDER,
)
from transloom.pipeline.tasks.build import selecting_metric, token_columns
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tracking.spool import read_points
from transloom.pipeline.train.session import Average

if TYPE_CHECKING:
    import torch

SAMPLE_COLUMNS = (
    *("source", "reference", "translation", "prompt", "continuation"),
    *("masked", "filled in", "text", "label", "predicted"),
)


def called(run: Run) -> str:
    """The argument by which commands find the run: its name in the default output folder, else its folder."""
    return run.name if run.folder.absolute().parent == Path("outputs").absolute() / RUNS_FOLDER else str(run.folder)


def steps_of_model(run: Run) -> list[int]:
    """The steps whose snapshots the run's model averages: of the last or the best validations (section 6.1 of the
    paper) or, before the training's end, of the last or the best snapshots.

    Raises:
        UserError: the run has no snapshot, and no model of removed snapshots.
    """
    config, metric = run.config.train, selecting_metric(run.config.task, run.config.corpus)
    training = run.training
    if training is not None:
        scores = {int(record["step"]): record.get(metric.name) for record in training["validations"]}
    else:
        key = f"validation/{metric.name}"
        known = {point.step: point.value for point in read_points(run.folder) if point.key == key}
        scores = {step: known.get(step) for step in _snapshots(run)}
    if not scores:
        if written := _written(run).get("steps"):
            return list(written)
        raise UserError(_no_snapshot(run))
    if config.average_of is Average.best:
        return sorted(_ranked(scores, metric)[: config.average])
    return sorted(scores)[-config.average :]


def _ranked(scores: Mapping[int, float | None], metric: Metric) -> list[int]:
    """Steps from the best score to the worst; steps whose score is missing or NaN come last."""

    def rank(step: int) -> tuple[bool, float]:
        score = scores[step]
        return (False, metric.sort_key(score)) if score is not None and math.isfinite(score) else (True, 0.0)

    return sorted(scores, key=rank)


def _snapshots(run: Run) -> list[int]:
    from transloom.pipeline.train.checkpoint import list_weights

    return [int(path.name.removeprefix("step_")) for path in list_weights(run.folder / WEIGHTS_FOLDER)]


def _no_snapshot(run: Run) -> str:
    what = f"the run {run.name} has no snapshot of its weights yet, so there is no model: the first snapshot is that of"
    what += f" step {min(run.config.train.validate_every, run.config.train.max_steps):,} (train.validate_every)"
    if (owner := user_of(run.folder)) not in (None, this_process()):
        return f"{what}. The run is in use by {owner}: wait for it"
    return f"{what}. Train on: transloom train resume={called(run)}"


def training_of(run: Run, step: int | None = None) -> dict[str, Any]:
    """The contents of `training.json` for an ended training. For a training that had not ended, or not at `step`, the
    same figures up to that step, from the logged points; "reason" is None.

    Args:
        step: None: the training's end, or the newest snapshot of the model.
    """
    training = run.training
    if training is not None and step in (None, training["step"]):
        return training
    step = max(steps_of_model(run)) if step is None else step
    metric = selecting_metric(run.config.task, run.config.corpus)
    moments = validation_course(read_points(run.folder), [{"step": step, "loss": 0.0, metric.name: 0.0}])
    names = ("seconds", *(f"{column}_tokens" for column in token_columns(run.config.task)))
    counted = {name: moments[0].get(name, 0.0) if moments else 0.0 for name in names}
    known = _validations(run, metric) if training is None else training["validations"]
    return {
        **{name: value if name == "seconds" else round(value) for name, value in counted.items()},
        "step": step,
        "validations": [one for one in known if one["step"] <= step],
        "world_size": training["world_size"] if training else run.config.cluster.num_workers,
        "reason": None,
    }


def tokens_of(training: Mapping[str, Any]) -> dict[str, int]:
    """The number of tokens that a training has seen, by column: for translation source and target."""
    ending = "_tokens"
    return {key.removesuffix(ending): count for key, count in training.items() if key.endswith(ending)}


def samples_of(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """The columns of a result's samples, in the order of `SAMPLE_COLUMNS`, since a file sorts them by name. In older
    results the samples of translations are rows."""
    samples = result.get("samples") or {}
    if isinstance(samples, Mapping):
        known = [column for column in SAMPLE_COLUMNS if column in samples]
        return {column: list(samples[column]) for column in dict.fromkeys([*known, *samples])}
    return dict(zip(("source", "reference", "translation"), map(list, zip(*samples, strict=True)), strict=True))


def final_split(result: Mapping[str, Any]) -> str:
    """The split of a result's final scores: test or, without a test split, validation."""
    return "test" if "test" in result else "validation"


def _validations(run: Run, metric: Metric) -> list[dict[str, float]]:
    series: dict[int, dict[str, float]] = {}
    for point in read_points(run.folder):
        kind, _, name = point.key.partition("/")
        if kind == "validation":
            series.setdefault(point.step, {"step": point.step})[name] = point.value
    return [one for _, one in sorted(series.items()) if {"loss", metric.name} <= one.keys()]


def _written(run: Run) -> dict[str, Any]:
    """The model folder's metadata; empty without a folder."""
    file = run.folder / MODEL_FOLDER / MODEL_CONFIG
    return read_json(file) if file.exists() else {}


def model_is_current(run: Run) -> bool:
    """Whether the model folder exists and is the average of the current snapshots.

    Raises:
        UserError: there is no snapshot yet, or a manifest is damaged.
    """
    steps = steps_of_model(run)
    return _is_of(_written(run), steps, _hashes(run, steps))


def _is_of(written: Mapping[str, Any], steps: Sequence[int], hashes: Mapping[str, str]) -> bool:
    # A step that was trained again has other weights. Snapshots that were removed to save space can't have changed.
    return written.get("steps") == list(steps) and hashes.items() <= written.get("snapshots", {}).items()


def _hashes(run: Run, steps: Sequence[int]) -> dict[str, str]:
    """The hashes of the existing snapshots, by their folders' names."""
    from transloom.pipeline.train.checkpoint import read_manifest, snapshot_path

    paths = [snapshot_path(run.folder / WEIGHTS_FOLDER, step) for step in steps]
    return {path.name: read_manifest(path)["sha256"] for path in paths if path.exists()}


def export_model(run: Run) -> Path:
    """The folder of the run's model, made anew if it is not the average of the current snapshots. The caller holds the
    run's lock.

    Raises:
        UserError: snapshots are missing or damaged.
    """
    from transloom.pipeline.model_folder import save_model
    from transloom.pipeline.train.checkpoint import average_weights, lineage, snapshot_path

    config, folder = run.config, run.folder / MODEL_FOLDER
    steps = steps_of_model(run)
    hashes = _hashes(run, steps)
    written = _written(run)
    if _is_of(written, steps, hashes):
        return folder
    paths = [snapshot_path(run.folder / WEIGHTS_FOLDER, step) for step in steps]
    if missing := [path.name for path in paths if path.name not in hashes]:
        fewer = f"average fewer (transloom evaluate resume={called(run)} train.average={len(hashes)}), "
        older = (
            f" {folder} is of steps {in_words(written['steps'])}; a copy of it still works."
            if "steps" in written
            else ""
        )
        raise UserError(
            f"the model of the run {run.name} should be the average of steps {in_words(steps)}, but of its snapshots "
            f"there is no {', '.join(missing)} in {run.folder / WEIGHTS_FOLDER}: bring them back, "
            f"{fewer if hashes else ''}or train on for new ones: "
            f"transloom train resume={called(run)} train.max_steps=<more>.{older}"
        )
    about = {
        "run": run.name,
        "steps": steps,
        "snapshots": hashes,
        "precision": config.precision.dtype.value,
        "task": config.task.value,
    }
    if isinstance(config.corpus, LabelledConfig):
        about["labels"] = read_json(stage_folder(run.folder, "corpus") / MANIFEST)["counts"]["labels"]
    if isinstance(config.corpus, PromptsConfig):
        about |= {"template": config.corpus.template, "max_response_tokens": config.corpus.max_response_tokens}
    if origin := lineage(run.folder):
        about["initial"] = origin
    if pair := config.languages:
        about |= {"source_language": pair[0], "target_language": pair[1]}
        shards = stage_folder(run.folder, "shards") / MANIFEST
        if shards.exists():  # they may have been removed after the training
            about["longest_trained"] = read_json(shards)["counts"]["splits"]["train"]["longest_source"]
    weights = average_weights(paths)
    try:
        save_model(folder, config.model, weights, stage_folder(run.folder, "tokenizer"), about)
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror or error}. It should be made anew") from error
    return folder


def run_of(model: Path) -> Run | None:
    """The run whose model this folder is; None for a copy."""
    folder = model.absolute().parent
    is_run = model.absolute().name == MODEL_FOLDER and all(
        (folder / name).exists() for name in (CONFIG_FILE, PREPARED_FILE)
    )
    return Run(folder.name, folder, read_config(folder / CONFIG_FILE)) if is_run else None


def computing_device() -> "tuple[torch.device, torch.dtype | None]":
    """Where a trained model computes on this machine, and in which type: a GPU if there is one; fp32 on a CPU without
    instructions for bf16. None: the type that the model's folder names."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, torch.float32 if device.type == "cpu" and not bf16_instructions() else None


def tell_other_precision(dtype: "torch.dtype | None", precision: str | None) -> None:
    """Says on standard error if a model computes in another type than it was trained in.

    Args:
        dtype: of `computing_device`. precision: that the model's folder names.
    """
    if dtype is not None and precision == "bf16":
        reason = "the model was trained in bf16, for which this processor has no instructions"
        print(f"transloom: computes in fp32: {reason}", file=sys.stderr)


@contextmanager
def whole_records(name: str) -> Iterator[None]:
    """A block that reads the records in a run's folder.

    Raises:
        UserError: a file in the folder lacks a run's entries, or can't be read.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OSError) as error:
        raise UserError(
            f"{name}: what the folder says of itself is damaged ({type(error).__name__}: {error}). Restore "
            f"{PREPARED_FILE}, {TRAINING_FILE}, the *.jsonl and {MODEL_FOLDER}/{MODEL_CONFIG} from a copy, or give a "
            f"folder {MODEL_FOLDER}/"
        ) from error


def find_model(name_or_path: str, root: Path) -> Path:
    """A model folder, by its path or by its run's name. A run's model is made anew if the training has gone on. Prints
    the averaged steps on standard error.

    Raises:
        UserError: there is no such run, the run has neither a model nor a snapshot, or the model can't be made anew.
    """
    model, run, note = _found_model(name_or_path, root)
    if steps := _steps_of(model):
        of = f"of the run {run.name}" if run else str(model)
        told = f"transloom: the model {of} is the average of steps {in_words(steps)}{note}"
        print(printable(told), file=sys.stderr)
    return model


def weights_of(name_or_path: str, root: Path) -> str | None:
    """The hash of the weights of `find_model`, which prints nothing here; None: there is no such model."""
    from transloom.pipeline.model_folder import weights_hash

    try:
        return weights_hash(_found_model(name_or_path, root)[0])
    except UserError:
        return None


def _found_model(name_or_path: str, root: Path) -> tuple[Path, Run | None, str]:
    """The model's folder, its run, and a note for the user on its state; see `find_model`."""
    model = Path(name_or_path)
    note = ""
    with whole_records(name_or_path):
        run = run_of(model)
        if not (model / MODEL_CONFIG).exists() or run:
            folder = run.folder if run else find_run(name_or_path, root)
            run = run or Run(folder.name, folder, read_config(folder / CONFIG_FILE))
            model = folder / MODEL_FOLDER
            note = _bring_up_to_date(run)
    return model, run, note


def _steps_of(model: Path) -> list[int]:
    """The steps that a model folder names; empty for a damaged folder, which raises when loaded."""
    try:
        return [step for step in read_json(model / MODEL_CONFIG)["steps"] if isinstance(step, int)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _bring_up_to_date(run: Run) -> str:
    """Makes the run's model anew if possible and needed. Returns a note for the user on the model's state.

    Raises:
        UserError: there is no model, and none can be made.
    """
    written = _written(run)
    if written and run.training is None and not _snapshots(run):
        return ""  # the run's folder was copied without its snapshots
    ended = "" if run.training else "; its training has not ended"
    if model_is_current(run):
        return ended
    owner = user_of(run.folder)
    if owner and not written:
        raise UserError(f"the run {run.name} has no model yet, and is in use by {owner}: wait for it")
    if owner:
        return f"; the run has newer snapshots, but is in use by {owner}: the model is made anew after that{ended}"
    try:
        with locked(run.folder):
            export_model(run)
    except OSError as error:
        raise UserError(f"the model of the run {run.name} is out of date and can't be made anew: {error}") from error
    return f"; made anew, it was of steps {in_words(written['steps'])}{ended}" if "steps" in written else ended


def in_words(steps: Sequence[int]) -> str:
    return ", ".join(f"{step:,}" for step in steps)
