"""How much text there is to train a language model on: from prepared shards, or from the files of the corpus."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from transloom.pipeline.data.batches import BatchConfig, plan_epoch
from transloom.pipeline.data.document_files import file_format
from transloom.pipeline.data.document_shards import COLUMN
from transloom.pipeline.data.documents import DocumentsConfig, DocumentsKind, library_files, source_files
from transloom.pipeline.data.labelled import LabelledConfig
from transloom.pipeline.data.pieces import pieces_of
from transloom.pipeline.data.prepare_prompts import COLUMNS
from transloom.pipeline.data.prompts import PromptsConfig, PromptsKind
from transloom.pipeline.data.records import record_files
from transloom.pipeline.data.shards import open_shards
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig, TextTokenizerKind, load_text_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, read_json
from transloom.pipeline.plan.volume import GZIP_FACTOR, MOST_PLANNED

# Bytes of UTF-8 for each token of byte pairs: 3.5 of Python's library with 4,096 pieces (counted), 4.4 of English with
# GPT-2's 50,257 (assumed).
OF_4096, OF_EACH_DOUBLING = 3.5, 0.25
PARQUET_FACTOR = 2.0  # of text in parquet's usual compression; assumed
CHARACTERS = 128  # that a corpus has, where none was counted
FULL = 2048  # texts as long as the context that stand for those of a corpus which is not prepared


@dataclass(frozen=True)
class TextVolume:
    """The documents to train on, and what a step takes of them.

    Attributes:
        documents, tokens: of an epoch; None where nothing is known.
        longest: tokens of the longest text that is read at once, at most the context.
        step_target_tokens: of a step, over all workers; the mean. All tokens of a language model are targets.
        origin: where the numbers come from. is_exact: counted, not estimated.
    """

    documents: int | None
    tokens: int | None
    longest: int
    step_target_tokens: float
    origin: str
    is_exact: bool = False

    @property
    def steps_per_epoch(self) -> float | None:
        return None if self.tokens is None else self.tokens / self.step_target_tokens

    @property
    def step_tokens(self) -> tuple[float, ...]:
        """Of a step, by column."""
        return (self.step_target_tokens,)

    @property
    def numbers(self) -> tuple[int, int] | None:
        """Token ids, and lengths, that the shards of an epoch hold; None where nothing is known."""
        return None if self.tokens is None else (self.tokens, self.documents or 0)


def text_lengths(volume: TextVolume, shards: Path | None, context: int, seed: int) -> np.ndarray:
    """(texts,) tokens of what is read at once: the first epoch's pieces of the documents, or full contexts."""
    if shards is None:
        return np.full(FULL, volume.longest, dtype=np.int32)
    if _has_prompts(shards):
        return np.minimum(open_shards(shards, "train", COLUMNS).lengths[:MOST_PLANNED].sum(axis=1) - 1, context)
    documents = open_shards(shards, "train", (COLUMN,)).lengths[:MOST_PLANNED, 0]
    return pieces_of(documents, context, seed, 0).length[:MOST_PLANNED]


def _has_prompts(shards: Path) -> bool:
    """Whether the shards hold prompts and responses, which a model reads as one text, rather than documents."""
    return "tail_tokens" in read_json(shards / MANIFEST)["counts"]


def prepared_text_volume(shards: Path, context: int, batch: BatchConfig, seed: int) -> TextVolume:
    """Counted: the corpus is prepared, so that the plan of an epoch can be made.

    Raises:
        UserError: a piece of a document is larger than a micro-batch.
    """
    counts: dict[str, Any] = read_json(shards / MANIFEST)["counts"]["splits"]["train"]
    if _has_prompts(shards):
        whole = open_shards(shards, "train", COLUMNS).lengths.sum(axis=1) - 1
        counts = {
            "documents": len(whole),
            "text_tokens": int(np.minimum(whole, context).sum(dtype=np.int64)),
            "longest": int(whole.max()),
        }
    longest = min(context, counts["longest"])
    volume = TextVolume(
        documents=counts["documents"],
        tokens=counts["text_tokens"],
        longest=longest,
        step_target_tokens=float(batch.tokens),
        origin=f"counted: the corpus is prepared, {shards}",
        is_exact=True,
    )
    lengths = text_lengths(volume, shards, context, seed)
    steps = len(plan_epoch(lengths[:, None], batch, seed, 0)) / batch.micro_batches
    return replace(volume, step_target_tokens=float(lengths.sum(dtype=np.int64)) / steps)


def estimated_text_volume(
    corpus: DocumentsConfig, tokenizer: TextTokenizerConfig, context: int, batch: BatchConfig
) -> TextVolume:
    """Without prepared shards: by the size of the files if they are at hand. Texts are taken to fill the context, and
    so do micro-batches, as far as whole texts go."""
    step = float(batch.tokens // batch.micro_tokens * (batch.micro_tokens // context * context))
    files = _local_files(corpus)
    if files is None:
        origin = "unknown: the corpus is not at hand; full steps of texts as long as the context are assumed"
        return TextVolume(None, None, context, step, origin)
    share = 1.0 - sum(
        getattr(corpus.held_out, split) for split in ("validation", "test") if not corpus.has_own_data(split)
    )
    size = share * sum(map(_text_bytes, files))
    bytes_per_token = _bytes_per_token(tokenizer)
    told = f"{len(files):,} files" if len(files) > 1 else files[0].name
    origin = f"estimated from the size of {told}, {bytes_per_token:.1f} bytes a token; texts as long as the context"
    return TextVolume(None, round(size / bytes_per_token), context, step, origin)


def estimated_labelled_volume(
    corpus: LabelledConfig | PromptsConfig, tokenizer: TextTokenizerConfig, context: int, batch: BatchConfig
) -> TextVolume:
    """The same of records, texts with labels or prompts with responses, whose files have little else."""
    step = float(batch.tokens // batch.micro_tokens * (batch.micro_tokens // context * context))
    try:
        files = record_files(corpus.source("train"), "corpus.train")
    except UserError:
        files = []
    if not files:
        origin = "unknown: the corpus is not at hand; full steps of texts as long as the context are assumed"
        return TextVolume(None, None, context, step, origin)
    share = 1.0 if corpus.has_own_data("validation") else 1.0 - corpus.held_out
    if isinstance(corpus, PromptsConfig) and corpus.kind is PromptsKind.squad:
        share = 1.0 - 2.0 / corpus.folds
    bytes_per_token = _bytes_per_token(tokenizer)
    tokens = round(share * sum(map(_text_bytes, files)) / bytes_per_token)
    origin = f"estimated from the size of {files[0].name}, {bytes_per_token:.1f} bytes a token"
    return TextVolume(None, tokens, context, step, origin)


def vocabulary_of(tokenizer: TextTokenizerConfig) -> int:
    """Of a tokenizer that is not prepared.

    Raises:
        UserError: its file is missing or damaged.
    """
    match tokenizer.kind:
        case TextTokenizerKind.byte_bpe:
            return tokenizer.vocab_size
        case TextTokenizerKind.characters:
            return CHARACTERS
        case TextTokenizerKind.file:
            assert tokenizer.path is not None
            return load_text_tokenizer(Path(tokenizer.path)).vocab_size


def _bytes_per_token(tokenizer: TextTokenizerConfig) -> float:
    if tokenizer.kind is TextTokenizerKind.characters:
        return 1.0
    return OF_4096 + OF_EACH_DOUBLING * math.log2(vocabulary_of(tokenizer) / 4096)


def _local_files(corpus: DocumentsConfig) -> list[Path] | None:
    """The files of train, with what is held out of them; None where they are elsewhere: a plan needs no corpus."""
    match corpus.kind:
        case DocumentsKind.standard_library:
            return library_files()
        case DocumentsKind.text:
            try:
                return source_files(corpus, "train")
            except UserError:
                return None
        case DocumentsKind.dataset:
            return None


def _text_bytes(file: Path) -> float:
    factor = PARQUET_FACTOR if file_format(file) == "parquet" else GZIP_FACTOR if file.suffix == ".gz" else 1.0
    return factor * file.stat().st_size
