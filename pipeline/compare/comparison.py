"""Systems compared: their scores with tests, by parts of the test set, and what their runs did and were told."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from transloom.pipeline.compare.course import Moment, first_reaching
from transloom.pipeline.compare.seeds import seed_groups
from transloom.pipeline.compare.sentences import sentence_scores
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.buckets import (
    by_length,
    f1_by_frequency,
    frequencies,
    reference_words_by_frequency,
    words_of,
)
from transloom.pipeline.evaluate.significance import (
    METRICS,
    RESAMPLES,
    TRIALS,
    Statistics,
    compare_means,
    compare_systems,
    count_statistics,
    score_of,
    signature_of,
)
from transloom.pipeline.evaluate.tokenizers import DEFAULT
from transloom.pipeline.files import hash_of
from transloom.pipeline.progress import MapTasks, Progress, no_progress
from transloom.pipeline.tasks.build import TaskName, selecting_metric
from transloom.pipeline.tasks.task import Metric


@dataclass(frozen=True)
class RunFacts:
    """What is known of a system that is a run.

    Attributes:
        settings: with their full names. data, environment: by names of ours: corpus.hash, machine, …
        training: steps, seconds, <column>_tokens of each column, workers and, where they can be counted, parameters
            and flops.
        steps_averaged: the steps whose snapshots the model is the average of.
        search: how it was decoded, in words.
        progress: what became of the training after the last of its steps that are told of here: "ended", or in words.
        validation_set: hash of the validation set's references or documents; curves of scores are compared on the same
            one only.
        course: its training losses. validations: each with step, seconds, tokens, loss, score, flops.
    """

    settings: Mapping[str, str]
    data: Mapping[str, str]
    environment: Mapping[str, str]
    training: Mapping[str, float]
    validation_set: str | None
    steps_averaged: Sequence[int] = ()
    search: str = "?"
    progress: str = "ended"
    course: list[Moment] = field(default_factory=list)
    validations: list[Moment] = field(default_factory=list)


@dataclass(frozen=True)
class System:
    """One system's translations of the test set; `where` is the file or folder that they came from."""

    name: str
    where: str
    hypotheses: list[str]
    run: RunFacts | None = None


def compare(
    systems: Sequence[System],
    references: list[str],
    training_text: Iterable[str] | None = None,
    reach: float | None = None,
    map_tasks: MapTasks = map,
    progress: Progress = no_progress,
    tokenize: str = DEFAULT,
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Compares each system with the first one, the baseline.

    Args:
        systems: two at least, with different names and as many translations as there are references.
        training_text: target side of what was trained on, for the words' frequencies.
        reach: the validation BLEU that time and cost are counted to; None: the highest that all runs reached.
        tokenize: BLEU's tokenizer, see `tokenizer_for`.
    Returns:
        the comparison as JSON values, and by system the chrF2 of each sentence.
    Raises:
        UserError: no run reached that.
    """
    runs = {system.name: system.run for system in systems if system.run}
    about = about_runs(runs, selecting_metric(TaskName.translation), reach)
    said = {system.name: system.hypotheses for system in systems}
    counted = count_statistics(said, references, map_tasks, progress, tokenize)
    tested = compare_systems(counted, map_tasks, progress)
    scores = sentence_scores(counted["chrf"])
    translations = {system.name: hash_of(system.hypotheses) for system in systems}
    comparison = {
        "key": hash_of([translations, systems[0].name, hash_of(references)]),
        "names": [system.name for system in systems],  # in their order; a JSON file has keys by name
        "baseline": systems[0].name,
        "sentences": len(references),
        "references": hash_of(references),
        "signatures": {metric: signature_of(metric, tokenize) for metric in METRICS},
        "tokenizer": tokenize,
        "resamples": RESAMPLES,
        "trials": TRIALS,
        "seed": os.environ.get("SACREBLEU_SEED", "12345"),  # where sacreBLEU looks
        "systems": {
            system.name: {
                "where": system.where,
                "translations": translations[system.name],
                "scores": {metric: asdict(tested[metric][system.name]) for metric in METRICS},
                "length_ratio": _length_ratio(counted["bleu"][system.name]),
                "sentences": _better_and_worse(scores[systems[0].name], scores[system.name]),
                **facts_of_run(system.run),
            }
            for system in systems
        },
        "by_length": _by_length(counted["bleu"], references, tokenize),
        "by_frequency": (
            _by_frequency(said, references, training_text, progress, tokenize) if training_text is not None else []
        ),
        "seeds": seed_groups(
            {name: one.score for name, one in tested["bleu"].items()},
            {name: run.settings for name, run in runs.items()},
        ),
        **about,
    }
    return comparison, scores


def facts_of_run(run: RunFacts | None) -> dict[str, Any]:
    """What a comparison has of one system's training: JSON values."""
    return {
        "training": dict(run.training) if run else None,
        "steps_averaged": list(run.steps_averaged) if run else None,
        "search": run.search if run else None,
        "progress": run.progress if run else None,
        "machine": run.environment.get("machine") if run else None,
        "course": run.course if run else [],
        "validations": run.validations if run else [],
    }


def about_runs(runs: Mapping[str, RunFacts], metric: Metric, reach: float | None) -> dict[str, Any]:
    """What a comparison has of all of the runs beside each other: JSON values.

    Args:
        metric: of their validations. reach: see `compare`.
    Raises:
        UserError: no run reached that.
    """
    same_validation_set = len({run.validation_set for run in runs.values()}) <= 1
    return {
        "settings": differing({name: run.settings for name, run in runs.items()}),
        "data": _side_by_side({name: run.data for name, run in runs.items()}),
        "environment": differing({name: run.environment for name, run in runs.items()}),
        "same_validation_set": same_validation_set,
        "reach": _reach(runs if same_validation_set else {}, metric, reach),
    }


def add_comet(comparison: dict[str, Any], scores: Mapping[str, Sequence[float]], signature: str) -> None:
    """Adds COMET to what `compare` said: each system's is the mean of its sentences'.

    Args:
        scores: of the sentences, by system. signature: of the model and the program that they are by.
    """
    tested = compare_means(scores)
    for name, system in comparison["systems"].items():
        system["scores"]["comet"] = asdict(tested[name])
    comparison["signatures"]["comet"] = signature


def _length_ratio(bleu: Statistics) -> float:
    """Words said over words of the references, as BLEU counts them."""
    return sum(counts[0] for counts in bleu) / max(1, sum(counts[1] for counts in bleu))


def _better_and_worse(baseline: Sequence[float], system: Sequence[float]) -> dict[str, int]:
    """How many sentences have a higher, a lower, or the same chrF2 as the baseline's."""
    differences = [one - other for one, other in zip(system, baseline, strict=True)]
    better, worse = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    return {"better": better, "worse": worse, "equal": len(differences) - better - worse}


def _by_length(bleu: Mapping[str, Statistics], references: Sequence[str], tokenize: str) -> list[dict[str, Any]]:
    return [
        {
            "bucket": label,
            "sentences": len(places),
            "bleu": {name: score_of("bleu", [counts[place] for place in places]) for name, counts in bleu.items()},
        }
        for label, places in by_length(references, tokenize).items()
    ]


def _by_frequency(
    said: Mapping[str, list[str]],
    references: list[str],
    training_text: Iterable[str],
    progress: Progress,
    tokenize: str,
) -> list[dict[str, Any]]:
    meant = words_of(references, tokenize)
    words = {name: words_of(lines, tokenize) for name, lines in said.items()}
    wanted = (word for text in (meant, *words.values()) for line in text for word in line)
    seen = frequencies(training_text, wanted, progress, tokenize)
    f1 = {name: f1_by_frequency(its, meant, seen) for name, its in words.items()}
    return [
        {"bucket": label, "words": count, "f1": {name: its[label] for name, its in f1.items()}}
        for label, count in reference_words_by_frequency(meant, seen).items()
    ]


def _side_by_side(facts: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """A row for each name; what a system does not have is a dash."""
    names = dict.fromkeys(name for its in facts.values() for name in its)
    return [{"name": name, "values": {one: its.get(name, "–") for one, its in facts.items()}} for name in names]


def differing(facts: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """The rows in which two or more differ, by name."""
    rows = [row for row in _side_by_side(facts) if len(set(row["values"].values())) > 1]
    return sorted(rows, key=lambda row: row["name"])


def _reach(runs: Mapping[str, RunFacts], metric: Metric, asked: float | None) -> dict[str, Any] | None:
    """When each run first had a validation score; None where no run has a curve.

    Raises:
        UserError: none ever had what was asked for, or there is no curve to ask.
    """
    best = {
        name: record[metric.name] for name, run in runs.items() if (record := metric.best(run.validations)) is not None
    }
    if asked is not None and not best:
        raise UserError(f"reach={asked:g}: there are no runs with validations of one set, so it can't be told")
    if not best:
        return None
    order = sorted(best.values(), key=metric.sort_key)
    if asked is not None and metric.is_better(asked, order[0]):
        raise UserError(
            f"reach={asked:g}: no run reached that; the best validation {metric.title} is {metric.shown(order[0])}"
        )
    to_all = math.floor if metric.higher_is_better else math.ceil  # rounded to what the worst of them has reached
    scale = 10**metric.digits
    score = asked if asked is not None else to_all(scale * order[-1]) / scale
    return {metric.name: score, "runs": {name: first_reaching(runs[name].validations, metric, score) for name in best}}
