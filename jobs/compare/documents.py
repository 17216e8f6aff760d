"""Runs of language models compared: gathered on one split of one corpus, and what is said of them."""

import json
import re
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
from transloom.jobs.terminal.console import quantity
from transloom.pipeline.compare.documents import ReadBy, farthest_apart
from transloom.pipeline.compare.report import Table
from transloom.pipeline.data.document_store import Documents, open_documents
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.bootstrap import LEAST_DOCUMENTS
from transloom.pipeline.files import MANIFEST, hash_of, read_json
from transloom.pipeline.tasks.build import TaskName, selecting_metric

DOCUMENTS_SHOWN = 20
TEXT_SHOWN = 160  # characters of a document


@dataclass(frozen=True)
class GatheredDocuments:
    """Language models with the documents that they are compared on.

    Attributes:
        split: "test", or "validation" where a run's corpus holds nothing out for a test. documents: of that split.
        hash: of the split's files.
        baselines: bits per byte of simple models, by name.
        runs: by system, the runs' folders.
    """

    systems: list[ReadBy]
    split: str
    documents: Documents
    hash: str
    baselines: dict[str, float]
    runs: dict[str, Path]


def gather_documents(found: Mapping[str, Evaluated | Path]) -> GatheredDocuments:
    """What the runs' models make of each document.

    Args:
        found: runs of language models by the word that names them, see `find_systems`.
    Raises:
        UserError: a file is missing or damaged, or the runs are not of one split of documents.
    """
    names = names_of(found)
    runs = {names[word]: one for word, one in found.items() if isinstance(one, Evaluated)}
    first = next(iter(runs.values()))
    split = "test" if all(one.split == "test" for one in runs.values()) else "validation"
    documents = open_documents(first.corpus, split)
    systems = []
    baselines: dict[str, float] = {}
    for name, one in runs.items():
        _refuse_other_documents(one, first, split)
        signature = one.result[split]["bits_per_byte"]["signature"]
        _refuse_changed(one, signature)
        systems.append(ReadBy(name, str(one.folder), _bits(one, split, documents), signature, facts_of(one)))
        for model, value in one.result.get("baselines", {}).get(split, {}).items():
            # Counted in train, which may be another one.
            label = model if baselines.get(model, value) == value else f"{model}, train of {name}"
            baselines[label] = value
    hashed = _hash(first.corpus, split)
    return GatheredDocuments(
        systems, split, documents, hashed, baselines, {name: one.run.folder for name, one in runs.items()}
    )


def _refuse_changed(one: Evaluated, signature: str) -> None:
    if match := re.search(r"changed:(\d+)", signature):
        raise UserError(
            f"the tokenizer of the run {one.run.name} changes {int(match[1]):,} of the documents, so its bits per byte "
            "are of another text and compare with nothing. Take one from whose tokens texts come back as they were"
        )


def _hash(corpus: Path, split: str) -> str:
    files = read_json(corpus / MANIFEST)["files"]
    return hash_of([file["sha256"] for name, file in sorted(files.items()) if name.startswith(f"{split}.")])


def _refuse_other_documents(one: Evaluated, first: Evaluated, split: str) -> None:
    own, meant = _hash(one.corpus, split), _hash(first.corpus, split)
    if own != meant:
        raise UserError(
            f"the run {one.run.name} was evaluated on other documents than the run {first.run.name}: the {split} split "
            f"of {one.corpus} has the hash {own[:SHOWN_OF_A_HASH]}, not {meant[:SHOWN_OF_A_HASH]}. Bits per byte of "
            "different documents can't be compared: train both on corpora with the same held-out documents"
        )


def _bits(one: Evaluated, split: str, documents: Documents) -> np.ndarray:
    """(documents,) bits, of the evaluation's file.

    Raises:
        UserError: it is missing, damaged or of other documents, or does not have the score that the result has.
    """
    file = one.folder / f"{split}.hypotheses"
    again = f"Remove {one.folder} and evaluate again: transloom evaluate resume={one.run.name}"
    try:
        records = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
        bits = np.array([record["bits"] for record in records], float)
        sizes = np.array([record["bytes"] for record in records], np.int64)
    except FileNotFoundError:
        raise UserError(f"{file}: is missing. {again}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is damaged ({type(error).__name__}: {error}). {again}") from None
    if len(bits) != len(documents) or not np.array_equal(sizes, documents.num_bytes) or not np.isfinite(bits).all():
        raise UserError(f"{file}: is not of the {len(documents):,} documents of {one.corpus}, {split}. {again}")
    then, now = one.result[split]["bits_per_byte"]["value"], bits.sum() / max(1, sizes.sum())
    if abs(then - now) > 0.0005:
        raise UserError(f"{file}: has {now:.4f} bits per byte, and the evaluation says {then:.4f}. {again}")
    return bits


def document_verdicts(comparison: Mapping[str, Any]) -> list[str]:
    """A sentence for each model but the first, one for each simple model, and what is unfinished."""
    metric = selecting_metric(TaskName.language_model)
    systems, baseline = comparison["systems"], comparison["baseline"]
    of_baseline = systems[baseline]["scores"][metric.name]["score"]
    documents = f"{comparison['documents']:,} documents"
    lines = on_validation(comparison)
    for name, one in systems.items():
        if name == baseline:
            continue
        scores = one["scores"][metric.name]
        if metric.are_trivial([scores["score"], of_baseline]):
            lines.append(
                f"{name} has {metric.shown(scores['score'])} {metric.title}, and {baseline} "
                f"{metric.shown(of_baseline)}: more than the {metric.trivial:g} of a model that has learned nothing, "
                "so which is better can't be told."
            )
            continue
        p = p_in_words(scores["p_bootstrap"])
        lines.append(
            f"{name} has {metric.shown(scores['score'])} {metric.title}, {scores['difference']:+.{metric.digits}f} to "
            f"{baseline} (p {'' if p.startswith('<') else '= '}{p}): {judged(metric, scores, documents)}."
        )
    lines += [*seed_verdicts(comparison), *simple_verdicts(comparison, "documents")]
    return lines + unfinished(comparison, "these are scores")


def document_tables(comparison: Mapping[str, Any]) -> dict[str, Table]:
    """All tables by short names, in the order in which they are read."""
    made = {"scores": _scores(comparison), "documents": _documents(comparison)}
    return made | trainings(comparison) | differences(comparison)


def _scores(comparison: Mapping[str, Any]) -> Table:
    metric = selecting_metric(TaskName.language_model)
    several = len(comparison["systems"]) > 2
    is_few = comparison["documents"] < LEAST_DOCUMENTS
    rows = []
    for name, one in comparison["systems"].items():
        scores = one["scores"][metric.name]
        interval = "–" if is_few else f"{metric.shown(scores['low'])} to {metric.shown(scores['high'])}"
        row = [name, metric.shown(scores["score"]), interval]
        if name == comparison["baseline"]:
            row += ["baseline", "", *([""] if several else [])]
        else:
            tests = ["p_bootstrap", *(["p_holm"] if several else [])]
            is_trivial = metric.are_trivial(
                comparison["systems"][other]["scores"][metric.name]["score"] for other in (name, comparison["baseline"])
            )
            row.append(f"{scores['difference']:+.{metric.digits}f}")
            row += ["–" if is_trivial or is_few else p_in_words(scores[test]) for test in tests]
        rows.append([*row, one["signature"]])
    for model, value in comparison["simple_models"].items():
        of_baseline = comparison["systems"][comparison["baseline"]]["scores"][metric.name]["score"]
        row = [model, metric.shown(value), "", f"{value - of_baseline:+.{metric.digits}f}", "", ""]
        rows.append([*row, *([""] if several else [])])
    columns = ["model", f"{metric.title} ↓", "95 % interval", "difference", "p, paired bootstrap"]
    columns += [*(["p, corrected (Holm)"] if several else []), "counted"]
    note = (
        f"On the {comparison['split']} set, {comparison['documents']:,} documents of {quantity(comparison['bytes'])}B. "
        "↓ lower is better. Differences and p-values are to the baseline."
    )
    return Table("Scores", columns, rows, note, text=(0, len(columns) - 1))


def _documents(comparison: Mapping[str, Any]) -> Table:
    rows = []
    for name, one in comparison["systems"].items():
        counts = [f"{one['documents'][what]:,}" for what in ("better", "worse", "equal")]
        rows.append([name, *(["baseline", "", ""] if name == comparison["baseline"] else counts)])
    columns = ["model", "better than the baseline", "worse", "equal"]
    return Table("Documents", columns, rows, "Documents by the bits of their code.")


def example_table(gathered: GatheredDocuments) -> Table:
    """The documents on which the models differ most, with their beginnings."""
    bits = {system.name: system.bits for system in gathered.systems}
    num_bytes = gathered.documents.num_bytes
    rows = []
    for place, ratios in farthest_apart(bits, num_bytes, DOCUMENTS_SHOWN):
        beginning = gathered.documents.data(place)[: 4 * TEXT_SHOWN].decode(errors="ignore")
        text = " ".join(beginning[:TEXT_SHOWN].split())
        more = "…" if len(gathered.documents.data(place)) > len(beginning[:TEXT_SHOWN].encode()) else ""
        shown = [f"{ratio:.4f}" for ratio in ratios.values()]
        rows.append([f"{place + 1:,}", f"{num_bytes[place]:,}", *shown, f"{text}{more}"])
    columns = ["document", "bytes", *bits, "begins with"]
    note = "Bits per byte of the documents on which the models are farthest apart, by their places in the split."
    none = "The models are equal on every document."
    return Table("Documents that differ most", columns, rows, note if rows else none, text=(0, len(columns) - 1))


def document_notes(comparison: Mapping[str, Any]) -> list[str]:
    """How everything was counted."""
    lines = [
        "Bits per byte: minus the base-2 logarithm of the probability of all documents, each with its end of text, "
        "over their bytes in UTF-8. It does not depend on the tokenizer; perplexity does.",
        "A document is read in pieces of the model's context (model.max_positions), each without those before it: a "
        "model of a longer context has more to go by.",
        f"Documents: the {comparison['split']} split, {comparison['documents']:,} of {comparison['bytes']:,} bytes, "
        f"hash {comparison['references']}.",
        f"Intervals and p-values: 95 %, paired bootstrap over documents with {comparison['resamples']:,} resamples, "
        f"seed {comparison['seed']} (Koehn 2004). They are of chance in the choice of documents: another seed of the "
        "training is a chance that they do not know of.",
        f"“Better” and “worse” mean p < {SURE:g}, corrected by Holm's method where several models are compared with "
        "the baseline.",
        "In MLflow's own compare view, a run's test/bits_per_byte (of a corpus without a test set "
        "averaged/validation_bits_per_byte), training/seconds and training/text_tokens_per_second are these figures.",
    ]
    if not comparison["same_validation_set"]:
        lines.append("The runs were validated on different sets: their validation curves can't be compared.")
    return lines
