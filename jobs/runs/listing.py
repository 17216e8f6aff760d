"""What `transloom runs` shows of a run: all of it is read from the run's folder, and nothing is written."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from transloom.jobs.runs.workspace import user_of
from transloom.jobs.terminal.console import clock, quantity, table
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json
from transloom.pipeline.run_folder import (
    ARCHIVE_FOLDER,
    CONFIG_FILE,
    DRIVER_SPOOL,
    EVALUATION_FOLDER,
    PROGRESS_FILE,
    RESULT_FILE,
    RUN_RECORD,
    RUNS_FOLDER,
    TRAINING_FILE,
    TRAINING_SPOOL,
)
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tracking.spool import last_status, read_points
from transloom.pipeline.untrusted import read_yaml

LOSSES = 5  # that are shown of a run


@dataclass(frozen=True)
class RunSummary:
    """A run in a line.

    Attributes:
        state: running, finished, failed or stopped (by Ctrl-C, SIGTERM or a kill).
        user: the process that holds the run's lock; None: no process does.
        step, max_steps: optimizer steps done and asked for; None: not known.
        score: of the metric that the run is chosen by, named by score_name, such as "test BLEU"; None: no score yet.
        size_bytes: of the folder's files.
        started, changed: seconds since 1970; changed: when the run was last reported to.
    """

    name: str
    folder: str
    state: str
    user: str | None
    task: str
    corpus: str
    step: int | None
    max_steps: int | None
    score: float | None
    score_name: str | None
    size_bytes: int
    started: float | None
    changed: float


def run_folders(root: Path, archived: bool = False) -> list[Path]:
    """The runs of an output folder, by name. Hidden folders are what a deletion left."""
    folder = root / (ARCHIVE_FOLDER if archived else RUNS_FOLDER)
    return sorted(file.parent for file in folder.glob(f"*/{CONFIG_FILE}") if not file.parent.name.startswith("."))


def summary_of(folder: Path) -> RunSummary:
    """A run's line. A file that can't be read leaves its values out."""
    settings = _settings(folder)
    training, progress, record = (_json(folder / name) for name in (TRAINING_FILE, PROGRESS_FILE, RUN_RECORD))
    user = user_of(folder)
    score_name, score = None, None
    with suppress(AttributeError, IndexError, KeyError, TypeError, ValueError):  # files of another form
        score_name, score = _score(folder, training, progress)
    sections = (settings.get(name) for name in ("train", "corpus"))
    train, corpus = (section if isinstance(section, dict) else {} for section in sections)
    return RunSummary(
        name=folder.name,
        folder=str(folder),
        state=_state(folder, user, bool(training)),
        user=user,
        task=str(settings.get("task", "translation")),
        corpus=str(corpus.get("name", "")),
        step=_count(training.get("step", progress.get("step"))),
        max_steps=_count(train.get("max_steps")),
        score=score,
        score_name=score_name,
        size_bytes=size_of(folder),
        started=record["started_ms"] / 1000 if isinstance(record.get("started_ms"), int) else None,
        changed=max(_changed(folder)),
    )


def _count(value: Any) -> int | None:
    """A number of a file that a run's owner may have changed; None: it is no number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _state(folder: Path, user: str | None, has_ended: bool) -> str:
    if user is not None:
        return "running"
    if has_ended:
        return "finished"
    return "failed" if last_status(folder) == "FAILED" else "stopped"


def _settings(folder: Path) -> dict[str, Any]:
    with suppress(OSError, UserError):
        settings = read_yaml(folder / CONFIG_FILE, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return settings if isinstance(settings, dict) else {}
    return {}


def _json(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError, UserError):
        content = read_json(file)
        return content if isinstance(content, dict) else {}
    return {}


def metric_of(folder: Path) -> Metric | None:
    """The metric that the run is chosen by; None: the run did not report it."""
    with suppress(TypeError):
        return Metric(**_json(folder / RUN_RECORD)["selects"]) if _json(folder / RUN_RECORD).get("selects") else None
    return None


def _score(folder: Path, training: Mapping[str, Any], progress: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """The name and the value of the run's score: of the newest evaluation with the run's own search, on the test set
    where there is one, else of the last validation."""
    metric = metric_of(folder)
    if metric is None:
        return None, None
    results = [_json(file) for file in (folder / EVALUATION_FOLDER).glob(f"*/{RESULT_FILE}")]
    own = [one for one in results if one.get("is_own_search", True)]
    for result in sorted(own, key=lambda one: one.get("step") or max(one.get("steps_averaged") or [0]), reverse=True):
        for split in ("test", "validation"):
            value = result.get(split, {}).get(metric.name, {}).get("value")
            if isinstance(value, int | float):
                return f"{split} {metric.title}", value
    value = progress.get("validation_score")
    if validations := training.get("validations"):
        value = validations[-1].get(metric.name)
    return (f"validation {metric.title}", value) if isinstance(value, int | float) else (None, None)


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; a symbolic link counts as itself, a file with several names once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # a checkpoint may be removed meanwhile
                status = os.lstat(os.path.join(place, name))
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    total += status.st_size
    return total


def _changed(folder: Path) -> Iterator[float]:
    yield folder.stat().st_mtime
    for name in (TRAINING_SPOOL, DRIVER_SPOOL, PROGRESS_FILE, TRAINING_FILE):
        with suppress(OSError):
            yield (folder / name).stat().st_mtime


def progress_of(folder: Path) -> dict[str, Any]:
    """What rank 0 wrote last, and the last losses: {"step", "max_steps", "eta_seconds", "steps_per_second", "losses":
    [[step, loss], …], …}; steps_per_second is that of the newest reports."""
    points = [(point.step, point.value, point.time_ms) for point in read_points(folder) if point.key == "train/loss"]
    last = points[-LOSSES:]
    progress: dict[str, Any] = {
        name: value for name, value in _json(folder / PROGRESS_FILE).items() if not isinstance(value, list | dict)
    }
    progress["losses"] = [[step, value] for step, value, _ in last]
    if len(last) > 1 and last[-1][2] > last[0][2]:
        progress["steps_per_second"] = 1000 * (last[-1][0] - last[0][0]) / (last[-1][2] - last[0][2])
    return progress


def as_table(runs: list[RunSummary], title: str) -> Any:
    columns = ["run", "state", "step", "of", "score", "", "task", "corpus", "size", "started", "last"]
    rows = [
        [
            run.name,
            run.state,
            "" if run.step is None else f"{run.step:,}",
            "" if run.max_steps is None else f"{run.max_steps:,}",
            "" if run.score is None else f"{run.score:.2f}",
            run.score_name or "",
            run.task,
            run.corpus,
            f"{quantity(run.size_bytes)}B",
            _moment(run.started),
            _moment(run.changed),
        ]
        for run in runs
    ]
    return table(title, columns, rows, right=(2, 3, 4, 8))


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def in_lines(run: RunSummary, progress: Mapping[str, Any]) -> list[str]:
    """A run with its progress, for people."""
    score = "none yet" if run.score is None else f"{run.score_name} {run.score:.2f}"
    lines = [
        f"Run      {run.name}, {run.task} on {run.corpus}, {quantity(run.size_bytes)}B in {run.folder}",
        f"State    {run.state}" + (f", in use by {run.user}" if run.user else ""),
        f"Step     {run.step or 0:,} of {run.max_steps or 0:,}",
        f"Score    {score}",
        f"Started  {_moment(run.started) or 'not known'}, last report {_moment(run.changed)}",
    ]
    if run.state == "running" and "steps_per_second" in progress:
        left = progress.get("eta_seconds")
        eta = f", ETA {clock(left)}" if isinstance(left, int | float) else ""
        lines.append(f"Rate     {progress['steps_per_second']:.3g} steps/s{eta}")
    if progress["losses"]:
        lines.append("Losses   " + ", ".join(f"{value:.3f} at {step:,}" for step, value in progress["losses"]))
    return lines


def as_json(run: RunSummary) -> dict[str, Any]:
    return asdict(run)
