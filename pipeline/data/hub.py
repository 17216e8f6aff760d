"""Rows of a data set of the `datasets` library: from the hub by name, or local parquet, JSON and CSV files."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import UserError


def load_rows(
    name: str, config: str | None, split: str, revision: str | None = None, data_files: dict[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Streams the rows of one split as dictionaries.

    Raises:
        UserError: it can't be found or reached.
    """
    from datasets import load_dataset  # takes seconds to import, and only this kind of corpus needs it

    try:
        # Streamed: each row is read once, so a second copy in the library's cache would be a waste.
        dataset = load_dataset(name, config, data_files=data_files, revision=revision, split=split, streaming=True)
        rows = iter(dataset)
        first = next(rows, None)
    except Exception as error:  # the library and its HTTP client raise dozens of unrelated classes
        raise UserError(
            f"corpus.dataset={name}: can't load its split {split!r}: {type(error).__name__}: {error}\n"
            f"Check corpus.dataset, dataset_config, revision, data_files and the splits' names, and the network. "
            f"Without a network, put the corpus's text files into a folder and set corpus.path=<folder>."
        ) from error
    if first is not None:
        yield first
        yield from rows


def cell(row: Mapping[str, Any], column: str, key: str) -> bytes:
    """The text of a column, as one line of UTF-8; an absent value (None) is an empty text.

    Args:
        column: a column's name, or a dotted path into nested columns ("translation.en").
        key: the configuration key that named the column, for messages.

    Raises:
        UserError: no such column, or it holds no text.
    """
    value: Any = row
    try:
        for name in [column] if column in row else column.split("."):
            value = value[name]
    except (KeyError, TypeError):
        raise UserError(f"{key}: no column {column!r}; the data set has {', '.join(_columns(row))}.") from None
    if not isinstance(value, str | None):
        raise UserError(f"{key}: column {column!r} holds {type(value).__name__}, not text.")
    # In files a line feed ends the sentence, so one inside a sentence can't stay. A lone surrogate becomes bytes
    # that are not UTF-8, to be refused as such.
    return (value or "").replace("\n", " ").encode(errors="surrogatepass")


def _columns(row: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _columns(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
