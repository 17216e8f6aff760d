"""Evaluate: average a run's snapshots, have the task evaluate the model, its work shared out on the cluster."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

from jobs.ray_cluster.session import map_over_cluster
from jobs.runs.model import export_model, in_words, model_is_current, training_of
from jobs.runs.workspace import Run, own_config, stage_folder
from jobs.terminal.console import StatusLine, begin_stage, console, counter
from jobs.training.precision import warn_of_slow_precision
from pipeline.files import MANIFEST, atomic_write, hash_of, read_json, write_json
from pipeline.run_folder import EVALUATION_FOLDER, MODEL_CONFIG, MODEL_FOLDER, RESULT_FILE
from pipeline.tasks.build import make_task, scoring
from pipeline.tasks.task import Scoring


def evaluate_stage(run: Run) -> tuple[dict[str, Any], float | None]:
    """Scores of the run's averaged model, and the seconds it took; None if it had been done.

    The result's "validation" and, where there is such a split, "test" have name → {value, signature, details}; the
    model's outputs lie beside it as files. Its "baselines" have what simple models come to, by split and name. Its
    "search" and "label" name the search, "is_own_search" says whether the run was begun with it, "step" is how far the
    training had come, and "training_ended" whether that was its end.
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
    """Whether the run's model is the average that it should be by now, and was evaluated with this search. Makes
    nothing.

    Raises:
        UserError: there is no snapshot yet, and no model.
    """
    folder = evaluation_folder(run)
    return folder is not None and (folder / RESULT_FILE).exists() and model_is_current(run)


def kept_result(run: Run) -> dict[str, Any]:
    """The result of a run that is evaluated, with its circumstances as they are now, also in its file. For whoever
    holds the run's lock."""
    folder = evaluation_folder(run)
    assert folder is not None
    file = folder / RESULT_FILE
    before = read_json(file)
    # The training may have ended since, and the folder may have come from another machine.
    result = before | _circumstances(run, folder)
    if result != before:
        write_json(file, result)
    return result


def _circumstances(run: Run, folder: Path) -> dict[str, Any]:
    """What a result says beside its scores."""
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
    """Where the evaluation of the run's model, with its search, is or would be; None without a model."""
    model = run.folder / MODEL_FOLDER
    return _result_folder(run, model) if (model / MODEL_CONFIG).exists() else None


def _scoring(run: Run) -> Scoring:
    return scoring(run.config, own_config(run))


def _result_folder(run: Run, model: Path) -> Path:
    how = _scoring(run)
    name = hash_of({"model": read_json(model / MODEL_CONFIG)["sha256"], **how.key})[:12]
    unnamed = run.folder / EVALUATION_FOLDER / name  # as folders were called before they had the search's name
    return unnamed if unnamed.exists() else run.folder / EVALUATION_FOLDER / f"{how.folder}-{name}"
