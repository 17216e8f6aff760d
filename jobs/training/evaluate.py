"""Evaluate: averages a run's snapshots, and evaluates the model by its task, the work shared out on the cluster."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

from transloom.jobs.ray_cluster.session import map_over_cluster
from transloom.jobs.runs.model import export_model, in_words, model_is_current, training_of
from transloom.jobs.runs.workspace import Run, own_config, stage_folder
from transloom.jobs.terminal.console import StatusLine, begin_stage, console, counter
from transloom.jobs.training.precision import warn_of_slow_precision
from transloom.pipeline.files import MANIFEST, atomic_write, hash_of, read_json, write_json
from transloom.pipeline.run_folder import EVALUATION_FOLDER, MODEL_CONFIG, MODEL_FOLDER, RESULT_FILE
from transloom.pipeline.tasks.build import make_task, scoring
from transloom.pipeline.tasks.task import Scoring


def evaluate_stage(run: Run) -> tuple[dict[str, Any], float | None]:
    """The scores of the run's averaged model, and the seconds of the evaluation; None if it was done before.

    The result's "validation" and, if the split exists, "test" have name → {value, signature, details}; the model's
    outputs are files in the same folder. "baselines" has the values of simple models, by split and name. "search" and
    "label" name the search, "is_own_search" tells whether the run began with this search, "step" is the training's
    step, and "training_ended" tells whether the training has ended.
    """
    started_at = time.monotonic()
    model = export_model(run)
    if is_evaluated(run):
        return kept_result(run), None
    warn_of_slow_precision(run.config)
    begin_stage("evaluate")
    metadata = read_json(model / MODEL_CONFIG)
    folder = _result_folder(run, model)
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"steps_averaged": metadata["steps"], "sentences": {}, "seconds": {}}
    if run.training is None:
        console.print(f"  the training has not ended: the model is of steps {in_words(metadata['steps'])}")
    task = make_task(run.config, partial(stage_folder, run.folder))
    map_tasks = partial(map_over_cluster, num_gpus=run.config.cluster.gpus_per_worker)
    counts = read_json(stage_folder(run.folder, "shards") / MANIFEST)["counts"]["splits"]
    for split in (name for name in ("validation", "test") if name in counts):
        split_started_at = time.monotonic()
        status = StatusLine()
        evaluation = task.evaluate(model, split, map_tasks, counter(status))
        status.clear()
        result["seconds"][split] = time.monotonic() - split_started_at
        if evaluation.outputs:
            with atomic_write(folder / f"{split}.hypotheses") as file:
                file.write("".join(f"{line}\n" for line in evaluation.outputs).encode())
        for name, draw in evaluation.pictures.items():
            draw(folder / f"{split}_{name}.png")
        result[split] = {name: dataclasses.asdict(score) for name, score in evaluation.scores.items()}
        result["sentences"][split] = evaluation.num_examples
        result["samples"] = evaluation.samples
        if evaluation.baselines:
            result.setdefault("baselines", {})[split] = dict(evaluation.baselines)
    result["selects"] = task.selects.name
    result |= _circumstances(run, folder)
    write_json(folder / RESULT_FILE, result)
    return result, time.monotonic() - started_at


def is_evaluated(run: Run) -> bool:
    """Whether the run's model is the average of the current snapshots, and was evaluated with this search. Writes
    nothing.

    Raises:
        UserError: the run has no snapshot yet, and no model.
    """
    folder = evaluation_folder(run)
    return folder is not None and (folder / RESULT_FILE).exists() and model_is_current(run)


def kept_result(run: Run) -> dict[str, Any]:
    """The result of an evaluated run. Updates its circumstances, also in its file. The caller holds the run's lock."""
    folder = evaluation_folder(run)
    assert folder is not None
    file = folder / RESULT_FILE
    before = read_json(file)
    # Since then the training may have ended, and the folder may have been moved to this machine.
    result = before | _circumstances(run, folder)
    if result != before:
        write_json(file, result)
    return result


def _circumstances(run: Run, folder: Path) -> dict[str, Any]:
    """The entries of a result besides the scores."""
    how = _scoring(run)
    return {
        "folder": str(folder),
        "search": how.in_words,
        "label": how.label,
        "decode": dict(how.settings),
        "is_own_search": how.is_own,
        "step": training_of(run)["step"],
        "training_ended": run.training is not None,
    }


def evaluation_folder(run: Run) -> Path | None:
    """The folder of the evaluation of the run's model by its search, existing or not; None without a model."""
    model = run.folder / MODEL_FOLDER
    return _result_folder(run, model) if (model / MODEL_CONFIG).exists() else None


def _scoring(run: Run) -> Scoring:
    return scoring(run.config, own_config(run))


def _result_folder(run: Run, model: Path) -> Path:
    how = _scoring(run)
    name = hash_of({"model": read_json(model / MODEL_CONFIG)["sha256"], **how.key})[:12]
    unnamed = run.folder / EVALUATION_FOLDER / name  # the name of older folders, without the search's name
    return unnamed if unnamed.exists() else run.folder / EVALUATION_FOLDER / f"{how.folder}-{name}"
