"""Reads a language model's documents from Python's own library, files of text, JSON lines or parquet, a folder of
source code, or a data set of the `datasets` library. Documents are streamed: memory holds one document at a time."""

import hashlib
import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from transloom.pipeline.data.clean import Invalid, shortened
from transloom.pipeline.data.document_files import (
    Fault,
    Read,
    Unit,
    checked,
    field_of,
    file_format,
    files_below,
    matching_files,
    read_file,
)
from transloom.pipeline.data.hub import load_rows
from transloom.pipeline.data.overlap import Sentences, read_sentences
from transloom.pipeline.data.wording import treebank
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import absolute_path, hash_of, sha256_file
from transloom.pipeline.progress import Progress, no_progress
from transloom.pipeline.storage.files import GLOB, fetch_file, is_url

SPLITS = ("train", "validation", "test")
# Folders of tests and of installed packages below Python's library.
NOT_OF_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})

ALWAYS_DROPPED = ("empty", "too_long", "contaminated")  # reasons that are no error, whatever `invalid` says


class DocumentsKind(Enum):
    """The library of the Python that runs this code, files, or a data set by name."""

    standard_library = "standard_library"
    text = "text"
    dataset = "dataset"


class Wording(Enum):
    """The form of a document's text: as it is, or by `treebank`."""

    own = "own"
    treebank = "treebank"


class HeldOutBy(Enum):
    """The part of train that is held out for validation and test without data of their own: whole documents, chosen by
    a hash of their content, or the last part of each document."""

    documents = "documents"
    tail = "tail"


@dataclass(frozen=True)
class SourceConfig:
    """The source of a split.

    Attributes:
        text: for kind text: a pattern (`**` matches folders at any depth), a folder (all files with `suffixes`), or a
            list of these. Files that end in .jsonl, .ndjson or .json hold a JSON object a line, .parquet files rows;
            all other files are text. All but parquet may be compressed (.gz).
        split: the name of a split of the data set.
    """

    text: Any = None
    split: str | None = None

    def __post_init__(self) -> None:
        is_list = self.text is None or isinstance(self.text, str | list | tuple)
        if not is_list or not all(isinstance(pattern, str) and pattern for pattern in self.patterns):
            raise ValueError(f"text: must be a pattern of files or a list of them, not {self.text!r}")

    @property
    def patterns(self) -> tuple[Any, ...]:
        """The patterns of `text`, in their order."""
        if self.text is None:
            return ()
        return (self.text,) if isinstance(self.text, str) else tuple(self.text)


@dataclass(frozen=True)
class HeldOutConfig:
    """How much of train is held out, for each of validation and test that has no data of its own.

    Attributes:
        by: documents: the documents with the smallest hashes, in any order. tail: the last part of each document, first
            validation's share, then test's; nanoGPT's split of a single file is validation=0.1 test=0.
        validation: validation's share of train; 0: no such split.
        test: test's share of train; 0: no such split.
    """

    by: HeldOutBy = HeldOutBy.documents
    validation: float = 0.05
    test: float = 0.05

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            if not 0.0 <= (share := getattr(self, name)) < 1.0:
                raise ValueError(f"{name}: must be a share from 0 to below 1, not {share}")
        if self.validation + self.test >= 1.0:
            raise ValueError(f"test: with validation={self.validation} and test={self.test} nothing is left of train")


@dataclass(frozen=True)
class DocumentsConfig:
    """The documents that a language model learns from.

    Attributes:
        kind: Python's own library, text files, or a data set of the `datasets` library.
        name: of the corpus; part of folders' names and of the run's.
        unit: what of a text file is a document.
        text_field: the field of JSON lines, the column of parquet files and of a data set; a dotted path leads into
            nested ones.
        suffixes: of the files that are read from a folder.
        dataset: the name of a data set on the hub.
        dataset_config: the data set's configuration, where it has several.
        revision: the data set's version on the hub.
        max_bytes: a longer document, or line of JSON, is left out, and never wholly in memory.
        invalid: whether documents that are no text (NUL bytes, invalid UTF-8, broken JSON, a record without text) are
            an error or left out. Such files of Python's own library are always left out.
        held_out: of train, for validation and test without data of their own.
        wording: treebank: in lower case with words and punctuation apart, see `treebank`.
        decontaminate: files with sentences that must not stand in the documents, such as the test set of a later task:
            a document that has one of these sentences, or shares 8 words in a row with one, is left out of every split;
            see `Sentences`. Lines, cells of lines with tabs, and texts of JSON lines are sentences.

    Raises:
        ValueError: if the source of the documents is missing, naming the field.
    """

    kind: DocumentsKind = DocumentsKind.standard_library
    name: str = "standard_library"
    train: SourceConfig = field(default_factory=SourceConfig)
    validation: SourceConfig = field(default_factory=SourceConfig)
    test: SourceConfig = field(default_factory=SourceConfig)
    unit: Unit = Unit.file
    text_field: str = "text"
    suffixes: list[str] = field(default_factory=lambda: [".txt", ".md", ".jsonl", ".parquet"])
    dataset: str | None = None
    dataset_config: str | None = None
    revision: str | None = None
    max_bytes: int = 16 * 2**20
    invalid: Invalid = Invalid.error
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    wording: Wording = Wording.own
    decontaminate: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name: becomes part of a folder's name: letters, digits, . _ - only, not {self.name!r}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes: must be at least 1, not {self.max_bytes}")
        if not self.text_field:
            raise ValueError("text_field: must name a field")
        if wrong := [suffix for suffix in self.suffixes if not suffix.startswith(".")]:
            raise ValueError(f"suffixes: begin with a dot, as .py does, and not as {wrong[0]!r} does")
        if self.held_out.by is HeldOutBy.tail and self.unit is not Unit.file:
            raise ValueError("held_out.by: tail takes the last part of each document, which of a line says nothing")
        if self.kind is DocumentsKind.standard_library:
            if any(self.has_own_data(split) for split in SPLITS):
                raise ValueError("kind: standard_library has no files to be named: set kind=text")
            return
        if self.kind is DocumentsKind.dataset and self.dataset is None:
            raise ValueError("dataset: the name of a data set is missing")
        if not self.has_own_data("train"):
            raise ValueError(f"train: {'split' if self.kind is DocumentsKind.dataset else 'text'} must be set")

    @property
    def paths(self) -> dict[str, str]:
        """Every pattern, folder and address by its setting's name; the parts of a list one after the other."""
        named = {f"corpus.{split}.text": getattr(self, split).patterns for split in SPLITS}
        named["corpus.decontaminate"] = tuple(self.decontaminate)
        return {f"{key}[{i}]" if i else key: path for key, paths in named.items() for i, path in enumerate(paths)}

    @property
    def is_from_hub(self) -> bool:
        """Whether the data come from a hub of data sets."""
        return self.kind is DocumentsKind.dataset

    def with_absolute_paths(self) -> "DocumentsConfig":
        """The configuration with paths made absolute (from the working directory), and ~ expanded."""
        changes = {
            split: replace(source, text=[absolute_path(pattern) for pattern in source.patterns])
            for split, source in ((split, getattr(self, split)) for split in SPLITS)
            if source.patterns
        }
        return replace(self, **changes, decontaminate=[absolute_path(pattern) for pattern in self.decontaminate])

    @property
    def splits(self) -> tuple[str, ...]:
        """The existing splits among train, validation and test."""
        return tuple(
            split
            for split in SPLITS
            if split == "train" or self.has_own_data(split) or getattr(self.held_out, split) > 0.0
        )

    def has_own_data(self, split: str) -> bool:
        """Whether the split has data of its own, rather than documents held out of train."""
        source: SourceConfig = getattr(self, split)
        return source.split is not None if self.kind is DocumentsKind.dataset else bool(source.patterns)


@dataclass
class Dropped:
    """The documents that were left out.

    Attributes:
        counts: their number by reason.
        examples: the first document of each reason: place and fault.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        self.counts[reason] += 1
        self.examples.setdefault(reason, example)


def read_documents(
    config: DocumentsConfig, split: str, dropped: Dropped, evaluation: Mapping[bytes, str] | None = None
) -> Iterator[str]:
    """Streams the documents of "train", "validation" or "test" in a fixed order: files sorted by their names.

    Documents of train that are equal to one of validation or test, byte for byte, are left out and counted.

    Args:
        dropped: counts the documents left out of this split.
        evaluation: for train: the result of `evaluation_hashes`, which saves a pass over validation and test.
    Raises:
        UserError: there is no file, or a document is no text (see `DocumentsConfig.invalid`); names the file and line.
    """
    if split == "train" and evaluation is None:
        evaluation = evaluation_hashes(config)
    if split != "train" and config.has_own_data(split):
        yield from (text for _, text in _own(config, split, dropped))
        return
    seen: set[bytes] = set()
    for place, text in _own(config, "train", dropped if split == "train" else Dropped()):
        part = _part(config, split, text)
        if part is None:
            continue
        digest = document_hash(part)
        if split == "train" and evaluation and digest in evaluation:
            dropped.add(f"in_{evaluation[digest]}", f"{place}: is in {evaluation[digest]}, too: {shortened(part)}")
        elif split != "train" and digest in seen:
            dropped.add("held_out_repeated", f"{place}: is held out already: {shortened(part)}")
        else:
            if split != "train":
                seen.add(digest)
            yield part


def evaluation_hashes(config: DocumentsConfig) -> dict[bytes, str]:
    """The `document_hash` of each document of validation and test -> its split; about 100 bytes of memory each.

    Documents held out by their hashes are not included: train never has them.
    """
    hashes: dict[bytes, str] = {}
    for split in reversed(config.splits[1:]):  # a document in both splits counts as validation's
        if config.has_own_data(split) or config.held_out.by is HeldOutBy.tail:
            hashes |= {document_hash(text): split for text in read_documents(config, split, Dropped())}
    return hashes


def document_hash(text: str) -> bytes:
    """16 bytes that are equal for equal texts."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def documents_key(config: DocumentsConfig) -> dict[str, Any]:
    """All settings, besides the files, that the splits' documents depend on: for the key of a stage."""
    lacking = {split: getattr(config.held_out, split) for split in SPLITS[1:] if not config.has_own_data(split)}
    key: dict[str, Any] = {"unit": config.unit.value, "text_field": config.text_field, "max_bytes": config.max_bytes}
    if config.wording is not Wording.own:
        key["wording"] = config.wording.value
    return key | ({"held_out": {"by": config.held_out.by.value, **lacking}} if lacking else {})


def documents_fingerprint(config: DocumentsConfig) -> dict[str, str]:
    """Hashes of all sources of the documents, by split, independent of folder names. A data set of the hub is
    identified by its name and revision.

    Raises:
        UserError: there is no file.
    """
    return _sources_fingerprint(config) | (
        {"decontaminate": hash_of([sha256_file(file) for file in _decontaminating_files(config)])}
        if config.decontaminate
        else {}
    )


def _decontaminating_files(config: DocumentsConfig) -> list[Path]:
    return [file for pattern in config.decontaminate for file in matching_files(pattern, "corpus.decontaminate")]


def _sources_fingerprint(config: DocumentsConfig) -> dict[str, str]:
    if config.kind is DocumentsKind.standard_library:
        hashes = [(path.name, sha256_file(path)) for path in library_files()]
        return {"standard_library": f"Python {sys.version.split()[0]}, {len(hashes)} files, {hash_of(hashes)}"}
    if config.kind is DocumentsKind.dataset:
        identity = {"dataset": config.dataset, "config": config.dataset_config, "revision": config.revision}
        identity |= {f"{split}.split": getattr(config, split).split for split in SPLITS}
        return {name: value for name, value in identity.items() if value is not None}
    return {
        split: hash_of(
            [(file_format(path), path.suffix == ".gz", sha256_file(path)) for path in source_files(config, split)]
        )
        for split in SPLITS
        if config.has_own_data(split)
    }


def source_files(config: DocumentsConfig, split: str) -> list[Path]:
    """The files of a split of kind "text", in reading order: pattern by pattern, sorted by name.

    Raises:
        UserError: a pattern matches no file.
    """
    files: dict[Path, None] = {}
    for pattern in getattr(config, split).patterns:
        key = f"corpus.{split}.text"
        if is_url(pattern):
            raise UserError(f"{key}: {pattern} is behind a URL and was not fetched")
        if os.path.isdir(pattern):
            found = files_below(Path(pattern), tuple(config.suffixes))
            if not found:
                raise UserError(
                    f"{key}: the folder {pattern} has no file that ends in {' or '.join(config.suffixes)}. Set "
                    "corpus.suffixes, as in corpus.suffixes=[.py,.c], or a pattern of files."
                )
        else:
            found = matching_files(pattern, key)
        files |= dict.fromkeys(found)
    return list(files)


def with_local_documents(config: DocumentsConfig, folder: Path, progress: Progress = no_progress) -> DocumentsConfig:
    """The configuration with each URL of `text` replaced by the path of a copy below `folder`, which is fetched if
    missing or if the file has changed.

    Raises:
        UserError: a file can't be reached, or a URL is a pattern; names the setting.
    """
    changes = {}
    for split in SPLITS:
        patterns = getattr(config, split).patterns
        key = f"corpus.{split}.text"
        for pattern in patterns:
            if is_url(pattern) and GLOB & set(pattern.partition("?")[0]):
                raise UserError(f"{key}: {pattern} is a pattern, and behind a URL each file must be named.")
        if any(map(is_url, patterns)):
            local = [str(fetch_file(name, folder, key, progress)) if is_url(name) else name for name in patterns]
            changes[split] = replace(getattr(config, split), text=local)
    if any(map(is_url, config.decontaminate)):
        key = "corpus.decontaminate"
        changes["decontaminate"] = [
            str(fetch_file(name, folder, key, progress)) if is_url(name) else name for name in config.decontaminate
        ]
    return replace(config, **changes) if changes else config


def _part(config: DocumentsConfig, split: str, text: str) -> str | None:
    """The part of a document of train that belongs to the split; None: nothing."""
    shares = [0.0 if config.has_own_data(name) else getattr(config.held_out, name) for name in SPLITS[1:]]
    if not any(shares):
        return text
    train_share = round(1.0 - sum(shares), 12)
    if config.held_out.by is HeldOutBy.tail:
        starts = (0.0, train_share, round(train_share + shares[0], 12))
        ends = [*(int(len(text) * share) for share in starts), len(text)]
        position = SPLITS.index(split)
        part = text[ends[position] : ends[position + 1]]
        return part if part.strip() else None
    # Not document_hash, which picks a tokenizer's training documents: the two choices must be independent.
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"held out").digest()
    place = int.from_bytes(digest) / 2**64
    chosen = "test" if place < shares[1] else "validation" if place < sum(shares) else "train"
    return text if split == chosen else None


def _own(config: DocumentsConfig, split: str, dropped: Dropped) -> Iterator[tuple[str, str]]:
    """Yields (place, document) of a split with data of its own, or of all of train, held-out documents included."""
    is_strict = config.invalid is Invalid.error and config.kind is not DocumentsKind.standard_library
    others = Sentences(text for file in _decontaminating_files(config) for text in read_sentences(file))
    for place, text in _read(config, split):
        if isinstance(text, str):
            text = checked(place, text, config.max_bytes)
        if isinstance(text, str) and config.decontaminate and (shared := others.shared(text)):
            text = Fault("contaminated", f"{place}: shares {shared!r} with corpus.decontaminate: {shortened(text)}")
        if isinstance(text, str) and config.wording is Wording.treebank:
            text = treebank(text).strip() or Fault("empty", f"{place}: has no word")
        if isinstance(text, str):
            yield place, text
        elif is_strict and text.reason not in ALWAYS_DROPPED:
            raise UserError(f"{text.message} Mend it, or set corpus.invalid=drop to leave such documents out.")
        else:
            dropped.add(text.reason, text.message)


def _read(config: DocumentsConfig, split: str) -> Iterator[Read]:
    if config.kind is DocumentsKind.dataset:
        assert config.dataset is not None
        name = getattr(config, split).split
        for place, row in load_rows(config.dataset, config.dataset_config, name, config.revision):
            yield place, field_of(row, config.text_field, f"{config.dataset} {name} {place}")
        return
    is_library = config.kind is DocumentsKind.standard_library
    for file in library_files() if is_library else source_files(config, split):
        yield from read_file(file, Unit.file if is_library else config.unit, config.text_field, config.max_bytes)


def library_files() -> list[Path]:
    """The modules of Python's own library, without tests and installed packages, sorted by their paths."""
    files = files_below(Path(sysconfig.get_paths()["stdlib"]), (".py",), NOT_OF_THE_LIBRARY)
    # _sysconfigdata_*.py depends on how this Python was compiled.
    return [path for path in files if path.suffix == ".py" and not path.name.startswith("_sysconfigdata")]


def refuse_nothing_left(config: DocumentsConfig, split: str, num_documents: int, dropped: Dropped) -> None:
    """
    Raises:
        UserError: the split has no documents; names the reasons why documents were left out.
    """
    if num_documents:
        return
    examples = "".join(f"\n  {reason}: {example}" for reason, example in dropped.examples.items())
    if split == "train" or config.has_own_data(split):
        raise UserError(f"corpus.{split}: no document is left; dropped: {dict(dropped.counts) or 'none'}{examples}")
    raise UserError(
        f"corpus.held_out.{split}: no document of train fell into the share of {getattr(config.held_out, split)}. "
        f"Raise it, give corpus.{split}.text, or set corpus.held_out.by=tail: the last part of each document."
    )
