"""Evaluate: average a run's snapshots, translate the validation and test sets on the cluster, score them."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from jobs.ray_cluster.session import map_over_cluster
from jobs.runs.model import export_model, in_words, training_of
from jobs.runs.report import sample_places
from jobs.runs.workspace import Run, own_search, own_tokenizer, stage_folder
from jobs.terminal.console import StatusLine, begin_stage, console, counter
from jobs.training.precision import warn_of_slow_precision
from pipeline.data.lines import read_lines
from pipeline.evaluate.scores import score
from pipeline.evaluate.tokenizers import DEFAULT, tokenizer_for
from pipeline.files import atomic_write, hash_of, read_json, write_json
from pipeline.generate.beam import BeamConfig

LINES_PER_TASK = 500
RESULT_FILE = "result.json"


def evaluate_stage(run: Run) -> tuple[dict[str, Any], float | None]:
    """Scores of the run's averaged model, and the seconds it took; None if it had been done.

    The result's "validation" and "test" have name → {value, signature, details}; sentences lie beside it as files. Its
    "search" and "label" name the search, "is_own_search" says whether the run was begun with it, "step" is how far the
    training had come, and "training_ended" whether that was its end.
    """
    started_at = time.monotonic()
    if done := evaluated_before(run):
        return done, None
    warn_of_slow_precision(run.config)
    begin_stage("evaluate")
    model = export_model(run)
    about = read_json(model / "config.json")
    folder = _result_folder(run, model)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = stage_folder(run.folder, "corpus")
    result: dict[str, Any] = {"steps_averaged": about["steps"], "sentences": {}, "seconds": {}}
    if run.training is None:
        console.print(f"  the training has not ended: the model is of steps {in_words(about['steps'])}")
    for split in ("validation", "test"):
        sources, references = [
            [line.decode() for line in read_lines(corpus / f"{split}.{side}")] for side in ("source", "target")
        ]
        split_started_at = time.monotonic()
        hypotheses = translate_on_cluster(model, sources, run, f"translating {split}")
        result["seconds"][split] = time.monotonic() - split_started_at
        with atomic_write(folder / f"{split}.hypotheses") as file:
            file.write("".join(f"{line}\n" for line in hypotheses).encode())
        scores = score(hypotheses, references, in_full=split == "test", tokenize=_tokenizer(run))
        result[split] = {name: dataclasses.asdict(one) for name, one in scores.items()}
        result["sentences"][split] = len(hypotheses)
        if split == "test":
            result["samples"] = [[sources[i], references[i], hypotheses[i]] for i in sample_places(len(sources))]
    result |= _circumstances(run, folder)
    write_json(folder / RESULT_FILE, result)
    return result, time.monotonic() - started_at


def evaluated_before(run: Run) -> dict[str, Any] | None:
    """The result of the evaluation of a run's model; None where it is still to be made."""
    folder = _result_folder(run, export_model(run))
    file = folder / RESULT_FILE
    if not file.exists():
        return None
    before = read_json(file)
    # The training may have ended since, and the folder may have come from another machine.
    result = before | _circumstances(run, folder)
    if result != before:
        write_json(file, result)
    return result


def _circumstances(run: Run, folder: Path) -> dict[str, Any]:
    """What a result says beside its scores."""
    search, tokenize = run.config.decode, _tokenizer(run)
    is_own_tokenizer = tokenize == own_tokenizer(run)
    return {
        "folder": str(folder),
        "search": search.in_words() if is_own_tokenizer else f"{search.in_words()}, BLEU by {tokenize}",
        "label": search.label() if is_own_tokenizer else f"{search.label()}-{tokenize}",
        "decode": dataclasses.asdict(search),
        "is_own_search": search == own_search(run) and is_own_tokenizer,
        "step": training_of(run)["step"],
        "training_ended": run.training is not None,
    }


def evaluation_folder(run: Run) -> Path | None:
    """Where the evaluation of the run's model, with its search, is or would be; None without a model."""
    model = run.folder / "model"
    return _result_folder(run, model) if (model / "config.json").exists() else None


def _tokenizer(run: Run) -> str:
    return tokenizer_for(run.config.corpus.target_language, run.config.evaluate)


def _result_folder(run: Run, model: Path) -> Path:
    about, search = read_json(model / "config.json"), run.config.decode
    key = {"model": about["sha256"], "decode": search}
    tokenize = _tokenizer(run)
    if tokenize != DEFAULT:  # evaluations of before, all by 13a, keep their folders
        key["tokenize"] = tokenize
    name = hash_of(key)[:12]
    unnamed = run.folder / "evaluation" / name  # as folders were called before they had the search's name
    return unnamed if unnamed.exists() else run.folder / "evaluation" / f"{search.label()}-{name}"


def translate_on_cluster(model: Path, lines: list[str], run: Run, what: str) -> list[str]:
    """Translations in the lines' order, decoded in Ray tasks of some hundred lines each."""
    # By length, dealt out in turn: every task has as much to do.
    order = sorted(range(len(lines)), key=lambda i: len(lines[i]))
    num_tasks = max(2, -(-len(lines) // LINES_PER_TASK))
    shares = [order[i::num_tasks] for i in range(min(num_tasks, len(lines)))]
    tasks = [(str(model), [lines[i] for i in share], run.config.decode) for share in shares]
    status = StatusLine()
    progress = counter(status)
    translations = [""] * len(lines)
    done = 0
    gpus = run.config.cluster.gpus_per_worker
    for share, said in zip(shares, map_over_cluster(_translate, tasks, num_gpus=gpus), strict=True):
        for i, text in zip(share, said, strict=True):
            translations[i] = text
        done += len(share)
        progress(what, done, len(lines))
    status.clear()
    return translations


def _translate(task: tuple[str, list[str], BeamConfig]) -> list[str]:
    import torch

    from pipeline.generate.translator import Translator

    model, lines, decode = task
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Translator.load(Path(model), device).translate(lines, decode)
