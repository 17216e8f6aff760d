"""How much text there is: counted where it is prepared, estimated from files, or unknown."""

import gzip
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from transloom.pipeline.data.batches import BatchConfig, iterate_steps
from transloom.pipeline.data.document_shards import COLUMN
from transloom.pipeline.data.documents import DocumentsConfig, DocumentsKind, HeldOutConfig, SourceConfig
from transloom.pipeline.data.pieces import TextPieces, collate_pieces, pieces_of
from transloom.pipeline.data.prepare_documents import prepare_documents
from transloom.pipeline.data.shards import open_shards
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig, TextTokenizerKind
from transloom.pipeline.plan.text_volume import estimated_text_volume, prepared_text_volume, text_lengths, vocabulary_of
from transloom.pipeline.tasks.task import Examples

BATCH = BatchConfig(tokens=512, micro_tokens=128)
BYTES = TextTokenizerConfig(vocab_size=300)
CHARACTERS = TextTokenizerConfig(kind=TextTokenizerKind.characters)
CONTEXT = 32


def corpus_of(folder: Path, pattern: str = "*.txt", held_out: float = 0.1) -> DocumentsConfig:
    source = SourceConfig(text=str(folder / pattern))
    shares = HeldOutConfig(validation=held_out, test=held_out)
    return DocumentsConfig(kind=DocumentsKind.text, name="own", train=source, held_out=shares)


def write_documents(folder: Path, count: int = 60) -> int:
    """Documents of unlike lengths; their bytes."""
    texts = [f"Document {number} " + "says some words again. " * (number % 9 + 1) for number in range(count)]
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_text(text)
    return sum(map(len, texts))


def test_prepared_documents_are_counted_as_they_are_read(tmp_path: Path) -> None:
    write_documents(tmp_path)
    shards = prepare_documents(corpus_of(tmp_path), BYTES, tmp_path / "outputs").shards.folder
    volume = prepared_text_volume(shards, CONTEXT, BATCH, seed=1)
    documents = open_shards(shards, "train", (COLUMN,))
    assert (volume.documents, volume.tokens) == (len(documents), int(documents.lengths.sum()))
    assert volume.is_exact and str(shards) in volume.origin and volume.longest == CONTEXT

    def cut(documents: Examples, seed: int, epoch: int) -> TextPieces:
        return TextPieces(documents, pieces_of(documents.lengths[:, 0], CONTEXT, seed, epoch), 0)

    steps = iterate_steps(documents, collate_pieces, "text", BATCH, 1, rank=0, world_size=1, of_epoch=cut)
    first = [step.tokens["text"] for step in islice(steps, 100) if step.epoch == 0]
    assert sum(first) == volume.tokens
    assert volume.steps_per_epoch == pytest.approx(len(first), abs=1)
    assert volume.step_target_tokens == pytest.approx(np.mean(first[:-1]), rel=0.05)
    lengths = text_lengths(volume, shards, CONTEXT, seed=1)
    assert lengths.sum() == volume.tokens and lengths.max() == CONTEXT


def test_files_are_estimated_by_their_size_without_what_is_held_out(tmp_path: Path) -> None:
    size = write_documents(tmp_path)
    volume = estimated_text_volume(corpus_of(tmp_path), CHARACTERS, CONTEXT, BATCH)
    assert volume.tokens == pytest.approx(0.8 * size, abs=1)
    assert "60 files" in volume.origin and not volume.is_exact and volume.documents is None
    assert volume.step_target_tokens == 512 and volume.steps_per_epoch == pytest.approx(0.8 * size / 512, abs=0.01)
    large = estimated_text_volume(corpus_of(tmp_path), TextTokenizerConfig(vocab_size=4096), CONTEXT, BATCH)
    assert large.tokens == pytest.approx(0.8 * size / 3.5, abs=1)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"x" * 3000))
    packed = estimated_text_volume(corpus_of(tmp_path, "*.gz", 0.0), CHARACTERS, CONTEXT, BATCH)
    assert packed.tokens == 3 * (tmp_path / "a.jsonl.gz").stat().st_size and "a.jsonl.gz" in packed.origin


def test_the_library_is_at_hand_and_what_is_elsewhere_is_unknown(tmp_path: Path) -> None:
    library = estimated_text_volume(DocumentsConfig(), TextTokenizerConfig(vocab_size=4096), CONTEXT, BATCH)
    assert library.tokens is not None and library.tokens > 1_000_000
    far = DocumentsConfig(kind=DocumentsKind.dataset, name="far", dataset="far/away", train=SourceConfig(split="train"))
    for corpus in (far, corpus_of(tmp_path, "none-*.txt")):
        volume = estimated_text_volume(corpus, BYTES, CONTEXT, BATCH)
        assert volume.tokens is None and volume.steps_per_epoch is None and "unknown" in volume.origin
        assert volume.step_target_tokens == 512  # full steps
    # Three texts of 40 fill 120 of a micro-batch's 128 tokens
    assert estimated_text_volume(far, BYTES, 40, BATCH).step_target_tokens == 4 * 120


def test_the_vocabulary_of_what_is_not_prepared(tmp_path: Path) -> None:
    assert vocabulary_of(BYTES) == 300
    write_documents(tmp_path)
    tokenizer = prepare_documents(corpus_of(tmp_path), BYTES, tmp_path / "outputs").tokenizer
    own = TextTokenizerConfig(kind=TextTokenizerKind.file, path=str(tokenizer.folder))
    assert vocabulary_of(own) == tokenizer.manifest["counts"]["vocab_size"]
