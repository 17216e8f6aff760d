"""Classification: a text gets one of the labels of train."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transloom.model.build import build_model
from transloom.model.config import DecoderConfig
from transloom.model.packed_linear import pack_linears
from transloom.pipeline.data.document_store import open_documents
from transloom.pipeline.data.labelled import LabelledTexts, collate_labelled, with_local_labelled
from transloom.pipeline.data.prepare_labelled import prepare_labelled, refuse_missing_records
from transloom.pipeline.data.text_tokenizer import load_text_tokenizer
from transloom.pipeline.evaluate.labels import LabelScores, label_log_probabilities, label_scores
from transloom.pipeline.figures.confusion import draw_confusion
from transloom.pipeline.files import MANIFEST, read_json
from transloom.pipeline.model_folder import load_classifier
from transloom.pipeline.progress import MapTasks, Progress
from transloom.pipeline.ranks import gather, rank, world_size
from transloom.pipeline.tasks.kind import TaskKind, only_scoring
from transloom.pipeline.tasks.samples import sample_places
from transloom.pipeline.tasks.task import Evaluation, Metric, Score, Task
from transloom.pipeline.train.objective import ClassificationObjective

ACCURACY = Metric("accuracy", "accuracy in percent", limits=(0.0, 100.0))
BATCH_TOKENS = 4096  # in a batch of an evaluation
TEXTS_PER_TASK = 2000


def classification(
    folder_of: Callable[[str], Path], *, model: DecoderConfig, micro_tokens: int, label_smoothing: float
) -> Task:
    """The task on prepared texts. Of a text at most model.max_positions tokens are read, the end of text before it
    included.

    Args:
        folder_of: the folder of "corpus", "tokenizer" or "shards".
        micro_tokens: of a micro-batch, at least model.max_positions.
    """
    tokenizer = load_text_tokenizer(folder_of("tokenizer"))
    labels: list[str] = read_json(folder_of("corpus") / MANIFEST)["counts"]["labels"]
    examples = partial(open_labelled, folder_of, model.max_positions, tokenizer.end_of_text)

    def validated(trained: Any) -> Evaluation:
        texts = examples("validation")
        order = np.argsort(-texts.lengths[:, 1], kind="stable")
        share = order[rank() :: world_size()]  # every rank gets the same amount of work
        parts = gather(label_log_probabilities(trained, [texts.get("text", row) for row in share], micro_tokens))
        log_probabilities = np.zeros((len(texts), len(labels)))
        for number, part in enumerate(parts):
            log_probabilities[order[number :: len(parts)]] = part
        return _evaluation(folder_of, "validation", texts, labels, log_probabilities)

    def text(column: str, ids: Sequence[int]) -> str:
        return labels[int(ids[0])] if column == "label" else tokenizer.decode(ids)

    return Task(
        selects=ACCURACY,
        loss_column="label",
        tokenizer=tokenizer.sha256,
        model=lambda: build_model(model, tokenizer.vocab_size, len(labels)),
        objective=lambda new: ClassificationObjective(new, label_smoothing),
        examples=examples,
        collate=collate_labelled,
        validate=validated,
        evaluate=partial(evaluate_classification, folder_of, model.max_positions),
        text=text,
    )


def open_labelled(folder_of: Callable[[str], Path], context: int, end_of_text: int, split: str) -> LabelledTexts:
    """The texts and labels of a split."""
    return LabelledTexts(folder_of("corpus"), folder_of("shards"), split, end_of_text, context)


def _evaluation(
    folder_of: Callable[[str], Path],
    split: str,
    texts: LabelledTexts,
    labels: Sequence[str],
    log_probabilities: np.ndarray,
) -> Evaluation:
    scores = label_scores(log_probabilities, texts.labels)
    predicted = log_probabilities.argmax(axis=1)
    probabilities = np.exp(log_probabilities[np.arange(len(texts)), predicted])
    documents = open_documents(folder_of("corpus"), split)
    places = sample_places(len(texts))
    samples = {
        "text": [documents[i] for i in places],
        "label": [labels[texts.labels[i]] for i in places],
        "predicted": [labels[predicted[i]] for i in places],
    }
    outputs = [
        json.dumps({"label": labels[label], "probability": round(float(probability), 4)}, ensure_ascii=False)
        for label, probability in zip(predicted, probabilities, strict=True)
    ]
    return Evaluation(
        scores.loss,
        _scores(scores, texts.num_cut),
        len(texts),
        outputs,
        samples,
        read_json(folder_of("corpus") / MANIFEST)["counts"]["baselines"].get(split, {}),
        {"confusion": partial(draw_confusion, scores.confusion, labels, f"{split}: {_in_words(scores)}")},
    )


def _in_words(scores: LabelScores) -> str:
    return f"accuracy {scores.accuracy:.2f} % (95 %: {scores.low:.2f} to {scores.high:.2f})"


def _scores(scores: LabelScores, num_cut: int) -> dict[str, Score]:
    interval = f"95 %: {scores.low:.2f} to {scores.high:.2f} (Wilson)"
    cut = f"; {num_cut:,} texts longer than model.max_positions were cut" if num_cut else ""
    accuracy = Score(
        ACCURACY.name,
        scores.accuracy,
        details=f"{interval}{cut}",
        half_width=(scores.high - scores.low) / 2,
    )
    macro = Score("macro_f1", scores.macro_f1, details="the mean of the labels' F1, in percent")
    return {score.name: score for score in (accuracy, macro, Score("loss", scores.loss, details="nats a text"))}


@dataclass(frozen=True)
class _Share:
    """One task's share of an evaluation: the labels of some texts."""

    model: str
    corpus: str
    shards: str
    split: str
    context: int
    rows: np.ndarray


def evaluate_classification(
    folder_of: Callable[[str], Path],
    context: int,
    model: Path,
    split: str,
    map_tasks: MapTasks,
    progress: Progress,
) -> Evaluation:
    """The labels of a split, with the work shared out as tasks.

    Outputs are JSON objects, one a text: "label" (the most probable) and its "probability".

    Args:
        model: the model's folder, which all tasks see.
    """
    labels: list[str] = read_json(folder_of("corpus") / MANIFEST)["counts"]["labels"]
    texts = open_labelled(folder_of, context, load_text_tokenizer(folder_of("tokenizer")).end_of_text, split)
    order = np.argsort(-texts.lengths[:, 1], kind="stable")
    num_tasks = min(len(order), max(2, -(-len(order) // TEXTS_PER_TASK)))
    shares = [
        _Share(str(model), str(folder_of("corpus")), str(folder_of("shards")), split, context, order[i::num_tasks])
        for i in range(num_tasks)
    ]
    log_probabilities, done = np.zeros((len(texts), len(labels))), 0
    for share, part in zip(shares, map_tasks(_label_share, shares), strict=True):
        log_probabilities[share.rows] = part
        done += len(share.rows)
        progress(f"labelling {split}, texts", done, len(texts))
    return _evaluation(folder_of, split, texts, labels, log_probabilities)


def _label_share(share: _Share) -> np.ndarray:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_classifier(Path(share.model), device)
    end_of_text = loaded.tokenizer.end_of_text
    texts = LabelledTexts(Path(share.corpus), Path(share.shards), share.split, end_of_text, share.context)
    inputs = [texts.get("text", row) for row in share.rows]
    return label_log_probabilities(pack_linears(loaded.model), inputs, BATCH_TOKENS)


CLASSIFICATION = TaskKind(
    metric=lambda corpus: ACCURACY,
    token_columns=("text",),
    loss_unit="text",
    with_local_corpus=with_local_labelled,
    refuse_wrong_corpus=refuse_missing_records,
    prepare=lambda config, folder, map_tasks, progress, only_find: prepare_labelled(
        config.corpus, config.tokenizer, folder, map_tasks, progress, only_find=only_find
    ),
    scoring=only_scoring("labels"),
    make=lambda config, folder_of: classification(
        folder_of,
        model=config.model,
        micro_tokens=config.batch.micro_tokens,
        label_smoothing=config.train.label_smoothing,
    ),
)
