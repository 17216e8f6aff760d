"""Bits per byte of the documents in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transloom.pipeline.data.document_files import Fault, Unit, read_file
from transloom.pipeline.data.formats import HEAD_BYTES, refuse_binary
from transloom.pipeline.data.json_lines import is_json_lines, read_json_lines, text_field
from transloom.pipeline.data.lines import existing_file, open_text
from transloom.pipeline.data.text_tokenizer import TextTokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.likelihood import TextScore, score_text
from transloom.pipeline.generate.language_model import LanguageModel
from transloom.pipeline.progress import Progress, no_progress

MAX_BYTES = 1 << 28  # of a document


@dataclass(frozen=True)
class DocumentScoreConfig:
    """How documents are read.

    Attributes:
        unit: what of a text file is a document.
        stride: see `score_text`; 0: half of the context.
        batch_tokens: tokens that the model reads at a time.
    Raises:
        ValueError: naming the field.
    """

    unit: Unit = Unit.file
    stride: int = 0
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.stride < 0:
            raise ValueError(f"stride: must be at least 1, or 0 for half of the context, not {self.stride}")
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens: must be at least 1, not {self.batch_tokens}")


@dataclass(frozen=True)
class Document:
    """A text, and where it is ("file, line 3")."""

    text: str
    where: str


def holds_items(path: Path) -> bool:
    """Whether a file of JSON lines has questions with choices (`items.py`). A first line that has "text" and no
    "choices" is that of documents.

    Raises:
        UserError: the file can't be read, or is empty.
    """
    if not is_json_lines(path):
        return False
    first = next(read_json_lines(path), None)
    if first is None:
        raise UserError(f'{path} is empty: write an item a line, or a document a line as "text"')
    return "text" not in first[1] or "choices" in first[1]


def read_documents(path: Path, unit: Unit) -> list[Document]:
    """The documents of a file in UTF-8, plain or .gz: of JSON lines the "text" of each, else what `unit` says.

    Raises:
        UserError: naming file and line; or there is no text.
    """
    path = existing_file(path)
    if is_json_lines(path):
        documents = [Document(text_field(where, record, "text"), where) for where, record in read_json_lines(path)]
    else:
        with open_text(path) as file:
            refuse_binary(path, file.read(HEAD_BYTES))
        documents = [_document(where, text) for where, text in read_file(path, unit, "text", MAX_BYTES)]
    if not any(document.text for document in documents):
        raise UserError(f"{path} is empty: there is no text to score")
    return documents


def _document(where: str, text: str | Fault) -> Document:
    if not isinstance(text, Fault):
        return Document(text, where)
    if text.reason == "too_long":
        raise UserError(f"{where}: is longer than {MAX_BYTES:,} bytes. unit=line or unit=paragraph makes parts of it")
    raise UserError(text.message)


def score_documents(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    documents: Sequence[Document],
    config: DocumentScoreConfig,
    progress: Progress = no_progress,
) -> list[TextScore]:
    """
    Raises:
        UserError: the stride is larger than the context.
    """
    texts = [document.text for document in documents]
    try:
        return score_text(
            model, tokenizer, texts, config.stride or None, batch_tokens=config.batch_tokens, progress=progress
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def document_record(document: Document, score: TextScore) -> dict[str, Any]:
    """A JSON object for `write_json_lines`. An empty document has no bits per byte."""
    return {
        "document": document.where,
        "log_probability": score.log_probability,
        "tokens": score.tokens,
        "bytes": score.bytes,
        "bits_per_byte": score.bits_per_byte if score.bytes else None,
    }
