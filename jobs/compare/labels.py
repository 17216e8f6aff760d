"""Runs of classifiers compared: gathered on one split of one corpus, and what is said of them."""

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
from transloom.pipeline.compare.labels import LabelledBy
from transloom.pipeline.compare.report import Table
from transloom.pipeline.data.document_store import Documents, open_documents
from transloom.pipeline.data.labelled import LABELS_FILE
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, hash_of, read_json
from transloom.pipeline.tasks.build import TaskName, selecting_metric

TEXTS_SHOWN = 30
TEXT_SHOWN = 200  # characters of a text


@dataclass(frozen=True)
class GatheredLabels:
    """Classifiers with the texts that they are compared on.

    Attributes:
        split: "test", or "validation" where a run's corpus has no test set. texts, labels: of that split.
        predicted: by system, the label of each text.
        hash: of the texts and labels. baselines: accuracy of simple models, by name.
        runs: by system, the runs' folders.
    """

    systems: list[LabelledBy]
    split: str
    texts: Documents
    labels: list[str]
    predicted: dict[str, list[str]]
    hash: str
    baselines: dict[str, float]
    runs: dict[str, Path]


def gather_labels(found: Mapping[str, Evaluated | Path]) -> GatheredLabels:
    """The runs' labels of each text.

    Args:
        found: runs of classifiers by the word that names them, see `find_systems`.
    Raises:
        UserError: a file is missing or damaged, or the runs are not of one split of texts.
    """
    names = names_of(found)
    runs = {names[word]: one for word, one in found.items() if isinstance(one, Evaluated)}
    first = next(iter(runs.values()))
    split = "test" if all(one.split == "test" for one in runs.values()) else "validation"
    labels, hashed = _labels(first.corpus, split), _hash(first.corpus, split)
    systems, predicted = [], {}
    baselines: dict[str, float] = {}
    for name, one in runs.items():
        if (own := _hash(one.corpus, split)) != hashed:
            raise UserError(
                f"the run {one.run.name} was evaluated on other texts or labels than the run {first.run.name}: the "
                f"{split} split of {one.corpus} has the hash {own[:SHOWN_OF_A_HASH]}, not {hashed[:SHOWN_OF_A_HASH]}. "
                "Accuracies on different texts can't be compared: train both on corpora with the same held-out texts"
            )
        predicted[name] = _predicted(one, split, labels)
        correct = np.array([said == meant for said, meant in zip(predicted[name], labels, strict=True)])
        macro_f1 = one.result[split]["macro_f1"]["value"]
        systems.append(LabelledBy(name, str(one.folder), correct, macro_f1, facts_of(one)))
        for model, value in one.result.get("baselines", {}).get(split, {}).items():
            label = model if baselines.get(model, value) == value else f"{model}, train of {name}"
            baselines[label] = value
    folders = {name: one.run.folder for name, one in runs.items()}
    return GatheredLabels(
        systems, split, open_documents(first.corpus, split), labels, predicted, hashed, baselines, folders
    )


def _labels(corpus: Path, split: str) -> list[str]:
    names = read_json(corpus / MANIFEST)["counts"]["labels"]
    return [names[number] for number in np.load(corpus / f"{split}.{LABELS_FILE}.npy", allow_pickle=False)]


def _hash(corpus: Path, split: str) -> str:
    """Of the texts and the names of their labels, whose numbers depend on train."""
    files = read_json(corpus / MANIFEST)["files"]
    return hash_of([files[f"{split}.text"]["sha256"], files[f"{split}.ends.npy"]["sha256"], _labels(corpus, split)])


def _predicted(one: Evaluated, split: str, labels: list[str]) -> list[str]:
    """The label of each text, of the evaluation's file.

    Raises:
        UserError: it is missing, damaged or of other texts, or does not have the accuracy that the result has.
    """
    file = one.folder / f"{split}.hypotheses"
    again = f"Remove {one.folder} and evaluate again: transloom evaluate resume={one.run.name}"
    try:
        predicted = [json.loads(line)["label"] for line in file.read_bytes().split(b"\n")[:-1]]
    except FileNotFoundError:
        raise UserError(f"{file}: is missing. {again}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is damaged ({type(error).__name__}: {error}). {again}") from None
    if len(predicted) != len(labels):
        raise UserError(f"{file}: is not of the {len(labels):,} texts of {one.corpus}, {split}. {again}")
    hits = sum(said == meant for said, meant in zip(predicted, labels, strict=True))
    then, now = one.result[split]["accuracy"]["value"], 100.0 * hits / len(labels)
    if abs(then - now) > 0.005:
        raise UserError(f"{file}: has an accuracy of {now:.2f} %, and the evaluation says {then:.2f}. {again}")
    return predicted


def label_verdicts(comparison: Mapping[str, Any]) -> list[str]:
    """A sentence for each classifier but the first, one for each further group of seeds, one for each simple model, and
    what is unfinished."""
    metric = selecting_metric(TaskName.classification)
    systems, baseline = comparison["systems"], comparison["baseline"]
    texts = f"{comparison['texts']:,} texts"
    lines = on_validation(comparison)
    for name, one in systems.items():
        if name == baseline:
            continue
        scores = one["scores"][metric.name]
        p = p_in_words(scores["p_mcnemar"])
        lines.append(
            f"{name} has {metric.shown(scores['score'])} % accuracy, {scores['difference']:+.2f} to {baseline} "
            f"(p {'' if p.startswith('<') else '= '}{p}): {judged(metric, scores, texts)}."
        )
    lines += [*seed_verdicts(comparison), *simple_verdicts(comparison, "texts")]
    return lines + unfinished(comparison, "these are labels")


def label_tables(comparison: Mapping[str, Any]) -> dict[str, Table]:
    """All tables by short names, in the order in which they are read."""
    return {"scores": _scores(comparison)} | trainings(comparison) | differences(comparison)


def _scores(comparison: Mapping[str, Any]) -> Table:
    metric = selecting_metric(TaskName.classification)
    several = len(comparison["systems"]) > 2
    rows = []
    for name, one in comparison["systems"].items():
        scores = one["scores"][metric.name]
        interval = f"{scores['low']:.2f} to {scores['high']:.2f}"
        row = [name, metric.shown(scores["score"]), interval, f"{one['scores']['macro_f1']['score']:.2f}"]
        if name == comparison["baseline"]:
            row += ["baseline", "", "", "", *([""] if several else [])]
        else:
            row += [
                f"{scores['difference']:+.2f}",
                f"{scores['difference_low']:+.2f} to {scores['difference_high']:+.2f}",
                f"{scores['only_this']:,} / {scores['only_baseline']:,}",
                p_in_words(scores["p_mcnemar"]),
                *([p_in_words(scores["p_holm"])] if several else []),
            ]
        rows.append(row)
    for model, value in comparison["simple_models"].items():
        of_baseline = comparison["systems"][comparison["baseline"]]["scores"][metric.name]["score"]
        row = [model, metric.shown(value), "", "", f"{value - of_baseline:+.2f}", "", "", ""]
        rows.append([*row, *([""] if several else [])])
    columns = ["model", "accuracy, % ↑", "95 % interval", "macro-F1, % ↑", "difference", "95 % interval of it"]
    columns += ["right alone / baseline alone", "p, McNemar", *(["p, corrected (Holm)"] if several else [])]
    note = (
        f"On the {comparison['split']} set, {comparison['texts']:,} texts. ↑ higher is better. Differences and "
        "p-values are to the baseline."
    )
    return Table("Scores", columns, rows, note)


def label_examples(gathered: GatheredLabels) -> Table:
    """Texts that some of the classifiers have right and others wrong, the first of the split."""
    rows = []
    for place, label in enumerate(gathered.labels):
        said = [labels[place] for labels in gathered.predicted.values()]
        if len({one == label for one in said}) == 1:
            continue
        text = " ".join(gathered.texts[place][: 4 * TEXT_SHOWN].split())
        rows.append([f"{place + 1:,}", label, *said, text[:TEXT_SHOWN] + ("…" if len(text) > TEXT_SHOWN else "")])
        if len(rows) == TEXTS_SHOWN:
            break
    columns = ["text", "label", *gathered.predicted, "begins with"]
    note = f"The first {len(rows)} texts on which the models differ, by their places in the split."
    none = "The models are right on the same texts."
    return Table("Texts that differ", columns, rows, note if rows else none, text=tuple(range(len(columns))))


def label_notes(comparison: Mapping[str, Any]) -> list[str]:
    """How everything was counted."""
    lines = [
        f"Texts: the {comparison['split']} split, {comparison['texts']:,} texts, hash {comparison['references']}.",
        "Intervals of accuracies: 95 % (Wilson 1927). Intervals of differences: 95 %, paired bootstrap over texts with "
        f"{comparison['resamples']:,} resamples, seed {comparison['seed']}. p-values: McNemar's exact test, two-sided. "
        "They are of chance in the choice of texts; the table of seeds is of chance in the training.",
        f"“Better” and “worse” mean p < {SURE:g}, corrected by Holm's method where several models are compared with "
        "the baseline.",
    ]
    if not comparison["same_validation_set"]:
        lines.append("The runs were validated on different sets: their validation curves can't be compared.")
    return lines
