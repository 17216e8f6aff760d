"""Reads rows of a data set, from the hub by name or from local parquet, JSON, CSV and TSV files."""

import glob
import os
from collections.abc import Iterator, Mapping
from typing import Any

from transloom.pipeline.data.tables import TSV_ENDINGS, table_rows
from transloom.pipeline.errors import UserError
from transloom.pipeline.storage.files import GLOB

TABLES = ("csv", "tsv")
# Packages whose errors are about the network.
CLIENTS = ("requests", "urllib3", "httpx", "httpcore", "aiohttp", "botocore", "ssl", "socket")


def load_rows(
    name: str, config: str | None, split: str, revision: str | None = None, data_files: dict[str, str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Streams the rows of one split as (place, {column: value}), the place in the form for messages.

    `table_rows` reads CSV and TSV files, from the hub too: every value is text. The `datasets` library reads all other
    formats.

    Raises:
        UserError: the data set can't be found, reached or read; names the row that was read last.
    """
    is_local = os.path.exists(name) or _are_local(data_files)
    count = 0
    try:
        for place, row in _rows(name, config, split, revision, data_files):
            yield place, row
            count += 1
    except UserError:
        raise
    except Exception as error:  # the library and its HTTP client raise dozens of unrelated classes
        where = f"corpus.dataset={name}: "
        if data_files and split in data_files:
            where += f"{data_files[split]}, "
        where += f"split {split!r}" + (f", after row {count:,}" if count else "")
        raise UserError(f"{where}: {_causes(error)}\n{_advice(error, count, is_local)}") from error


def _rows(
    name: str, config: str | None, split: str, revision: str | None, data_files: dict[str, str] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    is_far_pattern = "://" in (data_files or {}).get(split, "") and bool(GLOB & set((data_files or {})[split]))
    if name in TABLES and data_files and not is_far_pattern:
        if split not in data_files:
            raise UserError(
                f"corpus.data_files: has no {split!r}, only {', '.join(data_files)}. Set corpus.<train, validation or "
                "test>.split to one of them."
            )
        files = (
            [data_files[split]] if "://" in data_files[split] else sorted(glob.glob(data_files[split], recursive=True))
        )
        yield from _table_files(files, name == "tsv")
        return
    from datasets import load_dataset_builder  # the import takes seconds, and only this kind of corpus needs it
    from datasets.packaged_modules.csv.csv import CsvConfig

    # Streaming: each row is read once, so a second copy in the library's cache would be a waste.
    library_name = "csv" if name == "tsv" else name
    builder = load_dataset_builder(library_name, config, data_files=data_files, revision=revision)
    if isinstance(builder.config, CsvConfig) and split in (files := builder.config.data_files or {}):
        # The library would turn some texts ("None", "NA") into numbers or no value, and interpret quotes in TSV files.
        is_plain = builder.config.sep in (",", "\t") and builder.config.names is None
        if is_plain and builder.config.header == "infer":
            yield from _table_files(list(files[split]), name == "tsv" or builder.config.sep == "\t")
            return
    dataset = builder.as_streaming_dataset(split=split)
    for number, row in enumerate(dataset, start=1):
        yield f"row {number}", row


def _table_files(files: list[str], is_tsv: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in files:
        for place, row in table_rows(file, is_tsv or file.lower().endswith(TSV_ENDINGS)):
            yield f"{file} {place}", row


def _are_local(data_files: dict[str, str] | None) -> bool:
    return bool(data_files) and not any("://" in file for file in data_files.values())


def _causes(error: BaseException) -> str:
    """The error's text with those of its causes: the outermost error often tells only that there was an error."""
    said = []
    cause: BaseException | None = error
    while cause is not None and len(said) < 3:
        text = f"{type(cause).__name__}: {cause}"
        if not any(text in before or str(cause) in before for before in said if str(cause)):
            said.append(text)
        cause = cause.__cause__ or cause.__context__
    return "; ".join(said)


def _advice(error: BaseException, count: int, is_local: bool) -> str:
    if not is_local and _is_network(error):
        again = "The connection broke; run the command again" if count else "Check the network"
        return (
            f"{again}. Without a network, put the corpus's text files into a folder and set corpus.path=<folder>, or "
            "of documents corpus=text corpus.train.text=<folder>."
        )
    if count or is_local:
        return "Mend the file there, or check corpus.dataset, corpus.data_files and the splits' names."
    return "Check corpus.dataset, dataset_config, revision, data_files and the splits' names."


def _is_network(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, (ConnectionError, TimeoutError)):
            return True
        if type(error).__module__.partition(".")[0] in CLIENTS or "Offline" in type(error).__name__:
            return True
        error = error.__cause__ or error.__context__
    return False


def cell(row: Mapping[str, Any], column: str, key: str, place: str) -> bytes:
    """The text of a column, as one line of UTF-8; an absent value (None) is an empty text.

    Args:
        column: a column's name, or a dotted path into nested columns ("translation.en").
        key: the configuration key that named the column, for messages.
        place: the row's place, for messages.

    Raises:
        UserError: there is no such column, or its value is no text.
    """
    value: Any = row
    try:
        for name in [column] if column in row else column.split("."):
            value = value[name]
    except (KeyError, TypeError):
        names = list(_columns(row))
        hint = ""
        if len(names) == 1 and any(mark in names[0] for mark in "\t;"):
            hint = " Tabs separate the columns of a TSV file (corpus.dataset=tsv), and commas those of a CSV file."
        elif place.partition(" line ")[1]:
            hint = " The first line of the file must name the columns."
        raise UserError(f"{key}: no column {column!r}; the data set has {', '.join(names)} ({place}).{hint}") from None
    if not isinstance(value, str | None):
        raise UserError(
            f"{key}: column {column!r} holds {type(value).__name__}, not text, in {place}: {str(value)[:60]}. "
            "Name a column of text, or write the values as text (in JSON in quotation marks)."
        )
    # In the files a line feed ends the sentence, so a line feed inside a sentence becomes a space.
    text = (value or "").replace("\r\n", " ").replace("\n", " ")
    try:
        return text.encode(errors="surrogateescape")  # the bytes of a CSV or TSV file that are not UTF-8
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")  # a lone surrogate becomes bytes that are refused later as invalid


def _columns(row: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _columns(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
