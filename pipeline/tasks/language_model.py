"""Language modelling: predicts each token of a document from the tokens before it."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transloom.model.build import build_model
from transloom.model.config import LanguageModelConfig
from transloom.model.packed_linear import pack_linears
from transloom.pipeline.data.document_shards import COLUMN
from transloom.pipeline.data.document_store import open_documents
from transloom.pipeline.data.documents import with_local_documents
from transloom.pipeline.data.pieces import TextPieces, collate_pieces, cut_documents
from transloom.pipeline.data.prepare_documents import prepare_documents, refuse_missing_documents
from transloom.pipeline.data.shards import Columns, open_shards
from transloom.pipeline.data.text_tokenizer import TextTokenizer, bits_per_byte, load_text_tokenizer
from transloom.pipeline.evaluate.likelihood import Passage, log_probabilities
from transloom.pipeline.files import MANIFEST, read_json
from transloom.pipeline.generate.language_model import LanguageModel
from transloom.pipeline.generate.sample import SampleConfig, sample
from transloom.pipeline.model_folder import load_language_model
from transloom.pipeline.progress import MapTasks, Progress
from transloom.pipeline.ranks import gather, on_rank_zero, rank, world_size
from transloom.pipeline.tasks.kind import TaskKind, only_scoring
from transloom.pipeline.tasks.samples import sample_places
from transloom.pipeline.tasks.task import Evaluation, Examples, Metric, Score, Task
from transloom.pipeline.train.objective import LanguageModelObjective

# An untrained model gives each byte a probability of 1/256.
BITS_PER_BYTE = Metric("bits_per_byte", "bits per byte", higher_is_better=False, digits=4, trivial=8.0)
BATCH_TOKENS = 4096  # in a batch of an evaluation
CHUNK_PIECES = 4096  # in memory at a time
TOKENS_PER_TASK = 200_000
SAMPLES, PROMPT_TOKENS = 5, 24
SAMPLING = SampleConfig(temperature=0.8, max_new_tokens=64)


def language_model(
    folder_of: Callable[[str], Path], *, model: LanguageModelConfig, micro_tokens: int, label_smoothing: float
) -> Task:
    """The task on prepared documents. A piece of a document has at most model.max_positions tokens.

    Args:
        folder_of: the folder of "corpus", "tokenizer" or "shards".
        micro_tokens: of a micro-batch, at least model.max_positions.
    """
    context = model.max_positions
    tokenizer = load_text_tokenizer(folder_of("tokenizer"))

    cut = partial(cut_documents, context, tokenizer.end_of_text)

    def validated(trained: LanguageModel) -> Evaluation:
        documents = open_tokens(folder_of("shards"), "validation")
        pieces = cut(documents)
        share = _by_length(pieces)[rank() :: world_size()]  # every rank gets the same amount of work
        total = float(piece_nats(trained, pieces, share, micro_tokens).sum())
        nats = math.fsum(gather(total))
        samples = on_rank_zero(lambda: _samples(trained, tokenizer, documents))
        return _evaluation(folder_of("shards"), "validation", tokenizer, nats, samples)

    return Task(
        selects=BITS_PER_BYTE,
        loss_column="text",
        tokenizer=tokenizer.sha256,
        model=lambda: build_model(model, tokenizer.vocab_size),
        objective=lambda new: LanguageModelObjective(new, label_smoothing),
        examples=lambda split: open_tokens(folder_of("shards"), split),
        epoch=cut,
        collate=collate_pieces,
        validate=validated,
        evaluate=partial(evaluate_language_model, folder_of, context),
        text=lambda column, ids: tokenizer.decode(ids),
    )


def open_tokens(shards: Path, split: str) -> Columns:
    """The tokenised documents of a split: see `open_shards`."""
    return open_shards(shards, split, (COLUMN,))


def _by_length(pieces: TextPieces) -> np.ndarray:
    """The rows of the pieces, the longest first."""
    return np.argsort(-pieces.pieces.length, kind="stable")


def piece_nats(model: LanguageModel, pieces: TextPieces, rows: np.ndarray, batch_tokens: int) -> np.ndarray:
    """(rows,) negative log-probability of each piece's tokens, in nats. The model is in evaluation mode."""
    nats = np.zeros(len(rows))
    for start in range(0, len(rows), CHUNK_PIECES):
        chunk = rows[start : start + CHUNK_PIECES]
        passages = [Passage(pieces.get("input", row), pieces.get("text", row)) for row in chunk]
        scores = log_probabilities(model, passages, batch_tokens)
        nats[start : start + len(chunk)] = [-score.sum() for score in scores]
    return nats


def _evaluation(
    shards: Path,
    split: str,
    tokenizer: TextTokenizer,
    nats: float,
    samples: Mapping[str, Sequence[str]],
    outputs: Sequence[str] = (),
    baselines: Mapping[str, float] | None = None,
    context: int | None = None,
) -> Evaluation:
    counts = read_json(shards / MANIFEST)["counts"]["splits"][split]
    loss = nats / counts["text_tokens"]
    bits = bits_per_byte(nats, counts["bytes"], counts["unknown"], tokenizer.unknown_bits)
    changed = f"|changed:{counts['changed']}" if counts["changed"] else ""  # documents that the tokenizer changes
    signature = f"context:{context}|stride:{context}|ends:yes{changed}" if context else ""
    scores = {
        BITS_PER_BYTE.name: Score(BITS_PER_BYTE.name, bits, signature),
        "perplexity": Score("perplexity", math.exp(min(loss, 700.0)), f"vocabulary:{tokenizer.vocab_size}"),
        "loss": Score("loss", loss, "nats a token"),
    }
    return Evaluation(loss, scores, counts["documents"], outputs, samples, baselines or {})


def _samples(model: LanguageModel, tokenizer: TextTokenizer, documents: Examples) -> dict[str, list[str]]:
    """The beginnings of a few documents, spread over a set, and the model's continuations."""
    column = documents.columns[0]
    room = max(1, model.config.max_positions // 2)
    places = sample_places(len(documents), SAMPLES)
    # With fewer documents than samples, prompts come from several places in each document.
    prompts = []
    for number in range(SAMPLES):
        ids = documents.get(column, places[number % len(places)])[:-1]
        start = len(ids) * (number // len(places)) // SAMPLES
        prompts.append(np.asarray(ids[start : start + min(PROMPT_TOKENS, room)], np.int64))
    results = sample(model, prompts, SAMPLING, tokenizer.end_of_text, tokenizer.decode)
    return {
        "prompt": [tokenizer.decode(ids) for ids in prompts],
        "continuation": [generated.text for (generated,) in results],
    }


@dataclass(frozen=True)
class _Share:
    """One task's share of an evaluation: the loss of some pieces, and samples if asked for."""

    model: str
    shards: str
    split: str
    context: int
    rows: np.ndarray
    with_samples: bool


def evaluate_language_model(
    folder_of: Callable[[str], Path],
    context: int,
    model: Path,
    split: str,
    map_tasks: MapTasks,
    progress: Progress,
) -> Evaluation:
    """The loss of each document of a split, in pieces of `context` tokens, with the work shared out as tasks.

    Outputs are JSON objects, one a document: "bits" (of the document's code, with the end of text) and "bytes".

    Args:
        model: the model's folder, which all tasks see.
    """
    shards = folder_of("shards")
    tokenizer = load_text_tokenizer(folder_of("tokenizer"))
    documents = open_tokens(shards, split)
    pieces = cut_documents(context, tokenizer.end_of_text, documents)
    order = _by_length(pieces)
    num_tasks = min(len(order), max(2, -(-int(pieces.lengths.sum()) // TOKENS_PER_TASK)))
    shares = [
        _Share(str(model), str(shards), split, context, order[i::num_tasks], with_samples=i == 0)
        for i in range(num_tasks)
    ]
    nats, done = np.zeros(len(documents)), 0
    samples: Mapping[str, Sequence[str]] = {}
    for share, (of_pieces, sampled) in zip(shares, map_tasks(_evaluate_share, shares), strict=True):
        np.add.at(nats, pieces.pieces.document[share.rows], of_pieces)
        samples = sampled or samples
        done += int(pieces.lengths[share.rows].sum())
        progress(f"reading {split}, tokens", done, int(pieces.lengths.sum()))
    sizes = open_documents(folder_of("corpus"), split).num_bytes
    bits = nats / math.log(2.0)
    if tokenizer.unknown is not None:
        unknown = [np.count_nonzero(documents.get(COLUMN, i) == tokenizer.unknown) for i in range(len(documents))]
        bits += np.array(unknown) * tokenizer.unknown_bits
    outputs = [
        json.dumps({"bits": round(float(of_this), 4), "bytes": int(size)})
        for of_this, size in zip(bits, sizes, strict=True)
    ]
    baselines = read_json(folder_of("corpus") / MANIFEST)["counts"]["baselines"][split]
    return _evaluation(shards, split, tokenizer, math.fsum(nats), samples, outputs, baselines, context)


def _evaluate_share(share: _Share) -> tuple[np.ndarray, dict[str, list[str]]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_language_model(Path(share.model), device)
    model: Any = pack_linears(loaded.model)
    documents = open_tokens(Path(share.shards), share.split)
    pieces = cut_documents(share.context, loaded.tokenizer.end_of_text, documents)
    nats = piece_nats(model, pieces, share.rows, BATCH_TOKENS)
    return nats, _samples(model, loaded.tokenizer, documents) if share.with_samples else {}


LANGUAGE_MODEL = TaskKind(
    metric=lambda corpus: BITS_PER_BYTE,
    token_columns=("text",),
    with_local_corpus=with_local_documents,
    refuse_wrong_corpus=refuse_missing_documents,
    prepare=lambda config, folder, map_tasks, progress, only_find: prepare_documents(
        config.corpus, config.tokenizer, folder, map_tasks, progress, only_find=only_find
    ),
    scoring=only_scoring("likelihood"),
    make=lambda config, folder_of: language_model(
        folder_of,
        model=config.model,
        micro_tokens=config.batch.micro_tokens,
        label_smoothing=config.train.label_smoothing,
    ),
)
