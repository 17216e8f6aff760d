"""Runs that respond to prompts compared: gathered on one split of one corpus, and what is said of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transloom.jobs.compare.systems import SHOWN_OF_A_HASH, Evaluated, facts_of, names_of
from transloom.jobs.compare.tables import (
    SURE,
    differences,
    judged,
    on_validation,
    p_in_words,
    seed_verdicts,
    simple_verdicts,
    trainings,
    unfinished,
)
from transloom.pipeline.compare.report import Table
from transloom.pipeline.compare.responses import RespondedBy
from transloom.pipeline.data.prepare_prompts import open_answers, open_texts
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.bootstrap import LEAST_DOCUMENTS
from transloom.pipeline.files import MANIFEST, hash_of, read_json
from transloom.pipeline.tasks.build import selecting_metric
from transloom.pipeline.tasks.task import Metric

EXAMPLES_SHOWN = 30
TEXT_SHOWN = 200  # characters of a prompt


@dataclass(frozen=True)
class GatheredResponses:
    """Models with the examples that they are compared on.

    Attributes:
        metric: that the runs are chosen by.
        split: "test", or "validation" where a run's corpus has no test set.
        corpus: the folder of the first run's corpus.
        responses: by system, its response to each prompt.
        hash: of the prompts and answers. baselines: scores of simple responses, by name.
        runs: by system, the runs' folders.
    """

    systems: list[RespondedBy]
    metric: Metric
    split: str
    corpus: Path
    responses: dict[str, list[str]]
    hash: str
    baselines: dict[str, float]
    runs: dict[str, Path]


def gather_responses(found: Mapping[str, Evaluated | Path]) -> GatheredResponses:
    """The runs' responses with their scores.

    Args:
        found: runs of the task by the word that names them, see `find_systems`.
    Raises:
        UserError: a file is missing or damaged, or the runs are not of one metric and one split of examples.
    """
    names = names_of(found)
    runs = {names[word]: one for word, one in found.items() if isinstance(one, Evaluated)}
    first = next(iter(runs.values()))
    metric = _metric(first)
    split = "test" if all(one.split == "test" for one in runs.values()) else "validation"
    hashed = _hash(first.corpus, split)
    systems, responses = [], {}
    baselines: dict[str, float] = {}
    for name, one in runs.items():
        if _metric(one) != metric:
            raise UserError(
                f"corpus.metric: the run {one.run.name} is scored by {_metric(one).title}, and {first.run.name} by "
                f"{metric.title}; their scores can't be compared"
            )
        if (own := _hash(one.corpus, split)) != hashed:
            raise UserError(
                f"the run {one.run.name} was evaluated on other examples than the run {first.run.name}: the {split} "
                f"split of {one.corpus} has answers of the hash {own[:SHOWN_OF_A_HASH]}, not "
                f"{hashed[:SHOWN_OF_A_HASH]}. Train both on corpora with the same held-out examples"
            )
        responses[name], scores = responses_of(one, split, metric)
        of_split = one.result[split]
        others = {key: score["value"] for key, score in of_split.items() if key not in (metric.name, "loss")}
        signature = of_split[metric.name]["signature"]
        systems.append(RespondedBy(name, str(one.folder), scores, others, signature, facts_of(one)))
        for model, value in one.result.get("baselines", {}).get(split, {}).items():
            baselines[model if baselines.get(model, value) == value else f"{model}, train of {name}"] = value
    folders = {name: one.run.folder for name, one in runs.items()}
    return GatheredResponses(systems, metric, split, first.corpus, responses, hashed, baselines, folders)


def _metric(one: Evaluated) -> Metric:
    return selecting_metric(one.run.config.task, one.run.config.corpus)


def _hash(corpus: Path, split: str) -> str:
    """Of the answers; prompts may differ in their template."""
    return hash_of(read_json(corpus / MANIFEST)["files"][f"{split}.answers.jsonl"]["sha256"])


def responses_of(one: Evaluated, split: str, metric: Metric) -> tuple[list[str], np.ndarray]:
    """The responses and (examples,) scores of the evaluation's file.

    Raises:
        UserError: it is missing, damaged or of other examples, or does not have the score that the result has.
    """
    file = one.folder / f"{split}.hypotheses"
    again = f"Remove {one.folder} and evaluate again: transloom evaluate resume={one.run.name}"
    try:
        records = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
        responses, scores = [one["response"] for one in records], np.array([one["score"] for one in records], float)
    except FileNotFoundError:
        raise UserError(f"{file}: is missing. {again}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is damaged ({type(error).__name__}: {error}). {again}") from None
    examples = len(open_answers(one.corpus, split))
    if len(scores) != examples or not np.isfinite(scores).all():
        raise UserError(f"{file}: is not of the {examples:,} examples of {one.corpus}, {split}. {again}")
    then, now = one.result[split][metric.name]["value"], float(scores.mean())
    if abs(then - now) > 0.005:
        raise UserError(f"{file}: has {now:.2f} {metric.title}, and the evaluation says {then:.2f}. {again}")
    return responses, scores


def response_verdicts(comparison: Mapping[str, Any]) -> list[str]:
    """A sentence for each model but the first, one for each simple response, and what is unfinished."""
    metric = Metric(**comparison["metric"])
    systems, baseline = comparison["systems"], comparison["baseline"]
    examples = f"{comparison['examples']:,} examples"
    lines = on_validation(comparison)
    for name, one in systems.items():
        if name == baseline:
            continue
        scores = one["scores"][metric.name]
        p = p_in_words(scores["p_bootstrap"])
        lines.append(
            f"{name} has {metric.shown(scores['score'])} {metric.title}, {scores['difference']:+.2f} to {baseline} "
            f"(p {'' if p.startswith('<') else '= '}{p}): {judged(metric, scores, examples)}."
        )
    lines += [*seed_verdicts(comparison), *simple_verdicts(comparison, "examples", "The")]
    return lines + unfinished(comparison, "these are scores")


def response_tables(comparison: Mapping[str, Any]) -> dict[str, Table]:
    """All tables by short names, in the order in which they are read."""
    made = {"scores": _scores(comparison), "examples": _examples(comparison)}
    return made | trainings(comparison) | differences(comparison)


def _scores(comparison: Mapping[str, Any]) -> Table:
    metric = Metric(**comparison["metric"])
    several = len(comparison["systems"]) > 2
    is_few = comparison["examples"] < LEAST_DOCUMENTS
    others = [name for name in next(iter(comparison["systems"].values()))["scores"] if name != metric.name]
    rows = []
    for name, one in comparison["systems"].items():
        scores = one["scores"][metric.name]
        interval = "–" if is_few else f"{scores['low']:.2f} to {scores['high']:.2f}"
        row = [name, metric.shown(scores["score"]), interval, *(f"{one['scores'][o]['score']:.2f}" for o in others)]
        if name == comparison["baseline"]:
            row += ["baseline", "", *([""] if several else [])]
        else:
            tests = ["p_bootstrap", *(["p_holm"] if several else [])]
            row += [f"{scores['difference']:+.2f}", *("–" if is_few else p_in_words(scores[test]) for test in tests)]
        rows.append([*row, one["signature"]])
    for model, value in comparison["simple_models"].items():
        of_baseline = comparison["systems"][comparison["baseline"]]["scores"][metric.name]["score"]
        row = [model, metric.shown(value), "", *("" for _ in others), f"{value - of_baseline:+.2f}", "", ""]
        rows.append([*row, *([""] if several else [])])
    columns = ["model", f"{metric.title} ↑", "95 % interval", *(name.replace("_", " ") for name in others)]
    columns += ["difference", "p, paired bootstrap", *(["p, corrected (Holm)"] if several else []), "counted"]
    note = (
        f"On the {comparison['split']} set, {comparison['examples']:,} examples. ↑ higher is better. Differences and "
        "p-values are to the baseline."
    )
    return Table("Scores", columns, rows, note, text=(0, len(columns) - 1))


def _examples(comparison: Mapping[str, Any]) -> Table:
    rows = []
    for name, one in comparison["systems"].items():
        counts = [f"{one['examples'][what]:,}" for what in ("better", "worse", "equal")]
        rows.append([name, *(["baseline", "", ""] if name == comparison["baseline"] else counts)])
    return Table("Examples", ["model", "better than the baseline", "worse", "equal"], rows, "Examples by their score.")


def response_examples(gathered: GatheredResponses) -> Table:
    """The examples on which the models' scores differ most."""
    scores = np.stack([system.scores for system in gathered.systems])
    spread = np.ptp(scores, axis=0)
    prompts, _ = open_texts(gathered.corpus, gathered.split)
    answers = open_answers(gathered.corpus, gathered.split)
    rows = []
    for place in np.argsort(-spread, kind="stable")[:EXAMPLES_SHOWN]:
        if spread[place] > 0:
            prompt = " ".join(prompts[place].split())
            shown = prompt if len(prompt) <= TEXT_SHOWN else f"{prompt[:TEXT_SHOWN]}…"
            said = [f"{of[place]} ({scores[i, place]:.0f})" for i, of in enumerate(gathered.responses.values())]
            rows.append([f"{place + 1:,}", shown, " | ".join(answers[place]), *said])
    columns = ["example", "prompt", "answers", *gathered.responses]
    note = "Examples on which the models are farthest apart, with each response's score."
    none = "The models score the same on every example."
    return Table("Examples that differ most", columns, rows, note if rows else none, text=tuple(range(len(columns))))


def response_notes(comparison: Mapping[str, Any]) -> list[str]:
    """How everything was counted."""
    lines = [
        "Responses are generated by greedy search. A score is the mean over examples; of several answers the best "
        "counts.",
        f"Examples: the {comparison['split']} split, {comparison['examples']:,}, hash {comparison['references']}.",
        f"Intervals and p-values: 95 %, paired bootstrap over examples with {comparison['resamples']:,} resamples, "
        f"seed {comparison['seed']} (Koehn 2004). They are of chance in the choice of examples: another seed of the "
        "training is a chance that they do not know of.",
        f"“Better” and “worse” mean p < {SURE:g}, corrected by Holm's method where several models are compared with "
        "the baseline.",
    ]
    if not comparison["same_validation_set"]:
        lines.append("The runs were validated on different sets: their validation curves can't be compared.")
    return lines
