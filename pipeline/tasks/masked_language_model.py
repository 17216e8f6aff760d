"""Masked language modelling: predicts masked tokens of a document from those on either side (BERT, Devlin et al. 2018,
section 3.1), as pre-training of an encoder. The next sentence is not predicted."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transloom.model.build import build_model
from transloom.model.config import DecoderConfig
from transloom.model.packed_linear import pack_linears
from transloom.pipeline.data.document_shards import COLUMN
from transloom.pipeline.data.documents import with_local_documents
from transloom.pipeline.data.masked import MaskedPieces, collate_masked
from transloom.pipeline.data.prepare_documents import prepare_documents, refuse_missing_documents
from transloom.pipeline.data.shards import Columns, open_shards
from transloom.pipeline.data.text_tokenizer import TextTokenizer, load_text_tokenizer
from transloom.pipeline.evaluate.likelihood import like_lengths
from transloom.pipeline.generate.language_model import device_of, pack
from transloom.pipeline.model_folder import load_language_model
from transloom.pipeline.progress import MapTasks, Progress
from transloom.pipeline.ranks import gather, on_rank_zero, rank, world_size
from transloom.pipeline.tasks.kind import TaskKind, only_scoring
from transloom.pipeline.tasks.samples import sample_places
from transloom.pipeline.tasks.task import Evaluation, Examples, Metric, Score, Task
from transloom.pipeline.train.objective import MaskedLanguageModelObjective

MASKED_ACCURACY = Metric("masked_accuracy", "accuracy of masked tokens in percent", limits=(0.0, 100.0))
BATCH_TOKENS = 4096  # in a batch of an evaluation
TOKENS_PER_TASK = 200_000
SAMPLES, SAMPLE_TOKENS = 5, 48
MASK_SIGN = "▢"
UNIGRAM = "most frequent token"


def masked_language_model(
    folder_of: Callable[[str], Path], *, model: DecoderConfig, micro_tokens: int, label_smoothing: float
) -> Task:
    """The task on prepared documents. The model's vocabulary has one id more than the tokenizer: the mask.

    Args:
        folder_of: the folder of "corpus", "tokenizer" or "shards".
        micro_tokens: of a micro-batch, at least model.max_positions.
    """
    tokenizer = load_text_tokenizer(folder_of("tokenizer"))
    cut = partial(mask_documents, model.max_positions, tokenizer)

    def validated(trained: Any) -> Evaluation:
        pieces = cut(_open_tokens(folder_of, "validation"))
        share = _by_length(pieces)[rank() :: world_size()]
        totals = np.sum(gather(masked_totals(trained, pieces, share, micro_tokens)), axis=0)
        samples = on_rank_zero(lambda: _samples(trained, tokenizer, pieces))
        return _evaluation(totals, len(pieces), samples, {})

    return Task(
        selects=MASKED_ACCURACY,
        loss_column="masked",
        tokenizer=tokenizer.sha256,
        model=lambda: build_model(model, tokenizer.vocab_size + 1),
        objective=lambda new: MaskedLanguageModelObjective(new, label_smoothing),
        examples=partial(_open_tokens, folder_of),
        epoch=cut,
        collate=collate_masked,
        validate=validated,
        evaluate=partial(evaluate_masked_language_model, folder_of, model.max_positions),
        text=lambda column, ids: tokenizer.decode(ids),
    )


def mask_documents(
    context: int, tokenizer: TextTokenizer, documents: Examples, seed: int | None = None, epoch: int = 0
) -> MaskedPieces:
    """The masked pieces of an epoch; see `MaskedPieces`."""
    return MaskedPieces(documents, context, tokenizer.end_of_text, tokenizer.vocab_size, seed, epoch)


def _open_tokens(folder_of: Callable[[str], Path], split: str) -> Columns:
    return open_shards(folder_of("shards"), split, (COLUMN,))


def _by_length(pieces: MaskedPieces) -> np.ndarray:
    """The rows of the pieces, the longest first."""
    return np.argsort(-pieces.lengths[:, 1], kind="stable")


@torch.inference_mode()
def masked_totals(model: Any, pieces: MaskedPieces, rows: np.ndarray, batch_tokens: int) -> np.ndarray:
    """(3,) over the masked tokens of these rows: nats, hits, and their number. The model is in evaluation mode."""
    device = device_of(model)
    totals = np.zeros(3)
    for batch in like_lengths(pieces.lengths[rows, 1].tolist(), batch_tokens):
        masked = [pieces.masked(rows[i]) for i in batch]
        tokens, layout = pack([piece.tokens for piece in masked], device)
        starts = np.cumsum([0, *(len(piece.tokens) for piece in masked[:-1])])
        places = np.concatenate([start + piece.places for start, piece in zip(starts, masked, strict=True)])
        labels = torch.from_numpy(np.concatenate([piece.labels for piece in masked]).astype(np.int64)).to(device)
        scores = model.logits(model(tokens, layout)[torch.from_numpy(places).to(device)]).double().log_softmax(-1)
        hits = int((scores.argmax(-1) == labels).sum())
        totals += [-float(scores.gather(1, labels[:, None]).sum()), hits, len(labels)]
    return totals


def _evaluation(
    totals: np.ndarray, num_pieces: int, samples: dict[str, list[str]], baselines: dict[str, float]
) -> Evaluation:
    nats, hits, masked = totals.tolist()
    loss = nats / masked
    counted = f"of {int(masked):,} masked tokens"
    scores = (
        Score(MASKED_ACCURACY.name, 100.0 * hits / masked, details=counted),
        Score("loss", loss, details="nats a masked token"),
    )
    return Evaluation(loss, {score.name: score for score in scores}, num_pieces, (), samples, baselines)


@torch.inference_mode()
def _samples(model: Any, tokenizer: TextTokenizer, pieces: MaskedPieces) -> dict[str, list[str]]:
    """The beginnings of a few pieces with their masks, and with the model's most probable tokens in their place."""
    columns: dict[str, list[str]] = {"masked": [], "filled in": [], "text": []}
    for row in sample_places(len(pieces), SAMPLES):
        piece = pieces.masked(row)
        tokens, layout = pack([piece.tokens], device_of(model))
        best = model.logits(model(tokens, layout))[:, : tokenizer.vocab_size].argmax(-1).cpu().numpy()
        filled, original = piece.tokens.copy(), piece.tokens.copy()
        filled[piece.places], original[piece.places] = best[piece.places], piece.labels
        hidden = set(piece.places.tolist())
        signs = (
            MASK_SIGN if place in hidden else tokenizer.decode([token])
            for place, token in enumerate(piece.tokens[:SAMPLE_TOKENS].tolist())
        )
        columns["masked"].append("".join(signs))
        columns["filled in"].append(tokenizer.decode(filled[:SAMPLE_TOKENS]))
        columns["text"].append(tokenizer.decode(original[:SAMPLE_TOKENS]))
    return columns


def _unigram_accuracy(folder_of: Callable[[str], Path], pieces: MaskedPieces, vocab_size: int) -> float:
    """The percentage of masked tokens that are train's most frequent token."""
    train = _open_tokens(folder_of, "train")
    counts = np.zeros(vocab_size, np.int64)
    for row in range(len(train)):
        counts += np.bincount(train.get(COLUMN, row)[:-1], minlength=vocab_size)  # without the end of text
    labels = np.concatenate([pieces.get("masked", row) for row in range(len(pieces))])
    return 100.0 * float((labels == counts.argmax()).mean())


@dataclass(frozen=True)
class _Share:
    """One task's share of an evaluation: the masked tokens of some pieces, and samples if asked for."""

    model: str
    shards: str
    split: str
    context: int
    rows: np.ndarray
    with_samples: bool


def evaluate_masked_language_model(
    folder_of: Callable[[str], Path],
    context: int,
    model: Path,
    split: str,
    map_tasks: MapTasks,
    progress: Progress,
) -> Evaluation:
    """Loss and accuracy of a split's masked tokens, whose masks are fixed, with the work shared out as tasks.

    Args:
        model: the model's folder, which all tasks see.
    """
    tokenizer = load_text_tokenizer(folder_of("tokenizer"))
    pieces = mask_documents(context, tokenizer, _open_tokens(folder_of, split))
    order, num_tokens = _by_length(pieces), int(pieces.lengths[:, 1].sum())
    num_tasks = min(len(order), max(2, -(-num_tokens // TOKENS_PER_TASK)))
    shares = [
        _Share(str(model), str(folder_of("shards")), split, context, order[i::num_tasks], with_samples=i == 0)
        for i in range(num_tasks)
    ]
    totals, samples, done = np.zeros(3), {}, 0
    for share, (of_share, sampled) in zip(shares, map_tasks(_evaluate_share, shares), strict=True):
        totals += of_share
        samples = sampled or samples
        done += int(pieces.lengths[share.rows, 1].sum())
        progress(f"reading {split}, tokens", done, num_tokens)
    baselines = {UNIGRAM: _unigram_accuracy(folder_of, pieces, tokenizer.vocab_size)}
    return _evaluation(totals, len(pieces), samples, baselines)


def _evaluate_share(share: _Share) -> tuple[np.ndarray, dict[str, list[str]]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_language_model(Path(share.model), device)
    model: Any = pack_linears(loaded.model)
    documents = open_shards(Path(share.shards), share.split, (COLUMN,))
    pieces = mask_documents(share.context, loaded.tokenizer, documents)
    totals = masked_totals(model, pieces, share.rows, BATCH_TOKENS)
    return totals, _samples(model, loaded.tokenizer, pieces) if share.with_samples else {}


MASKED_LANGUAGE_MODEL = TaskKind(
    metric=lambda corpus: MASKED_ACCURACY,
    token_columns=("text",),
    loss_unit="masked token",
    with_local_corpus=with_local_documents,
    refuse_wrong_corpus=refuse_missing_documents,
    prepare=lambda config, folder, map_tasks, progress, only_find: prepare_documents(
        config.corpus, config.tokenizer, folder, map_tasks, progress, only_find=only_find
    ),
    scoring=only_scoring("masked"),
    make=lambda config, folder_of: masked_language_model(
        folder_of,
        model=config.model,
        micro_tokens=config.batch.micro_tokens,
        label_smoothing=config.train.label_smoothing,
    ),
    baselines=lambda counts: {},  # the 5-gram model of the documents predicts bytes, and no masked tokens
)
