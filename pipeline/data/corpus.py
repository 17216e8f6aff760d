"""Where sentence pairs come from: the embedded phrasebook, two text files, or a data set of the `datasets` library."""

import glob
import hashlib
import heapq
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from pipeline.data.clean import collapse_whitespace
from pipeline.data.hub import cell, load_rows
from pipeline.data.lines import MAX_LINE_BYTES, count_lines, existing_file, read_lines
from pipeline.data.pairs import SentencePair
from pipeline.errors import UserError
from pipeline.files import sha256_file

SPLITS = ("train", "validation", "test")


class CorpusKind(Enum):
    """Embedded phrases, two text files of equally many lines, or a data set by name."""

    phrasebook = "phrasebook"
    text = "text"
    dataset = "dataset"


@dataclass(frozen=True)
class SplitConfig:
    """Where one split is: two text files (plain or .gz), or the name of a split of a data set."""

    source: str | None = None
    target: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class CorpusConfig:
    """A parallel corpus.

    `path` is the folder of the text files named in the splits; when set, kind "dataset" reads these files instead of
    the data set.
    `source_column` and `target_column` are dotted paths into nested columns.
    `held_out` pairs are taken out of train for each of validation and test that has no data of its own.
    `published_pairs` is how many training pairs the corpus is said to have: for plans, while it is not at hand.

    Raises:
        ValueError: if it does not say where the pairs are, naming the field.
    """

    kind: CorpusKind = CorpusKind.phrasebook
    name: str = "phrasebook"
    source_language: str = "en"
    target_language: str = "de"
    path: str | None = None
    train: SplitConfig = field(default_factory=SplitConfig)
    validation: SplitConfig = field(default_factory=SplitConfig)
    test: SplitConfig = field(default_factory=SplitConfig)
    dataset: str | None = None
    dataset_config: str | None = None
    revision: str | None = None
    data_files: dict[str, str] = field(default_factory=dict)
    source_column: str = "translation.en"
    target_column: str = "translation.de"
    held_out: int = 1000
    phrasebook_pairs: int = 40_000
    published_pairs: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name: becomes part of a folder's name: letters, digits, . _ - only, not {self.name!r}")
        for name in ("held_out", "phrasebook_pairs", "published_pairs"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name}: must be at least 1, not {count}")
        if self.kind is CorpusKind.dataset and self.path is None and self.dataset is None:
            raise ValueError("dataset: the name of a data set is missing (or path: a folder with its text files)")
        if self.kind is CorpusKind.phrasebook:
            return
        for name in SPLITS:
            split: SplitConfig = getattr(self, name)
            if self.reads_text and (split.source is None) != (split.target is None):
                raise ValueError(f"{name}: source and target go together, and one of them is missing")
        if not self.has_own_data("train"):
            raise ValueError(f"train: {'source and target' if self.reads_text else 'split'} must be set")

    @property
    def reads_text(self) -> bool:
        return self.kind is CorpusKind.text or (self.kind is CorpusKind.dataset and self.path is not None)

    def has_own_data(self, split: str) -> bool:
        """Whether the split is read from data of its own, not held out of train."""
        if self.kind is CorpusKind.phrasebook:
            return True
        where: SplitConfig = getattr(self, split)
        return where.source is not None if self.reads_text else where.split is not None


class _Unreadable(ValueError):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def refuse(reason: str, message: str) -> None:
    """What to do about a pair that can't be read, unless told otherwise: stop."""
    raise UserError(f"{message} Mend the corpus there.")


def read_pairs(
    config: CorpusConfig,
    split: str,
    unreadable: Callable[[str, str], None] = refuse,
    held_out: dict[str, list[SentencePair]] | None = None,
) -> Iterator[SentencePair]:
    """Streams the pairs of "train", "validation" or "test", in the corpus's order, texts as they stand there.

    Args:
        unreadable: called with (reason, message) for a pair that is not text: invalid_utf8, nul, too_long (over
            MAX_LINE_BYTES). When it returns, the pair is left out.
        held_out: what `held_out_pairs` gave, when known already: it costs a pass over the training data.

    Raises:
        UserError: a file is missing, the sides have unequal line counts, a data set or column can't be found, or
            from `unreadable`.
    """
    if held_out is None:
        held_out = held_out_pairs(config, unreadable)
    if split in held_out:
        yield from held_out[split]
    elif split == "train" and held_out:
        taken = {_pair_hash(pair) for pairs in held_out.values() for pair in pairs}
        yield from (pair for pair in _read_own(config, split, unreadable) if _pair_hash(pair) not in taken)
    else:
        yield from _read_own(config, split, unreadable)


def held_out_pairs(
    config: CorpusConfig, unreadable: Callable[[str, str], None] = refuse
) -> dict[str, list[SentencePair]]:
    """Pairs of train that stand in for validation or test where these have no data of their own.

    They are those whose hash is smallest: whatever the order of the corpus, always the same ones. Copies of a pair
    (equal but for whitespace) have equal hashes, so none of them stays in train.
    """
    lacking = [split for split in ("validation", "test") if not config.has_own_data(split)]
    if not lacking:
        return {}
    wanted = config.held_out * len(lacking)
    chosen: dict[int, SentencePair] = {}
    largest: list[int] = []  # a heap of the chosen hashes, negated: the largest one first
    usable = 0
    for pair in _read_own(config, "train", unreadable):
        if not pair.source.strip() or not pair.target.strip():
            continue
        usable += 1
        digest = _pair_hash(pair)
        if digest in chosen or (len(chosen) == wanted and digest > -largest[0]):
            continue
        chosen[digest] = pair
        heapq.heappush(largest, -digest)
        if len(chosen) > wanted:
            del chosen[-heapq.heappop(largest)]
    if len(chosen) < wanted or 2 * wanted > usable:
        raise UserError(
            f"corpus {config.name}: train has {usable} pairs that are not empty, too few to hold out "
            f"{config.held_out} each for {' and '.join(lacking)}. "
            f"Set corpus.held_out lower, or give corpus.validation and corpus.test files."
        )
    ordered = [chosen[digest] for digest in sorted(chosen)]
    return {split: ordered[i * config.held_out : (i + 1) * config.held_out] for i, split in enumerate(lacking)}


def _pair_hash(pair: SentencePair) -> int:
    text = "\n".join(map(collapse_whitespace, pair))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=12).digest())


def corpus_fingerprint(config: CorpusConfig) -> dict[str, str]:
    """Names and hashes of everything that the pairs come from. A data set of the hub counts by its name and
    revision: set corpus.revision to hold on to one version."""
    if config.kind is CorpusKind.phrasebook:
        from pipeline.data.phrasebook import phrasebook_version

        languages = f"{config.source_language}-{config.target_language}"
        counts = f"{config.phrasebook_pairs} and {config.held_out} pairs"
        return {"phrasebook": f"{phrasebook_version()}, {languages}, {counts}"}
    if config.reads_text:
        return {
            f"{split}.{side}": sha256_file(path)
            for split in SPLITS
            if config.has_own_data(split)
            for side, path in zip(("source", "target"), text_files(config, split), strict=True)
        }
    identity = {"dataset": config.dataset, "config": config.dataset_config, "revision": config.revision}
    identity |= {f"{split}.split": getattr(config, split).split for split in SPLITS}
    identity |= {"source_column": config.source_column, "target_column": config.target_column}
    for name, pattern in config.data_files.items():
        files = sorted(glob.glob(pattern, recursive=True))
        if not files and "://" not in pattern:
            raise UserError(f"corpus.data_files.{name}: no such file: {pattern}")
        identity |= {f"data_files.{name}.{i}": sha256_file(Path(file)) for i, file in enumerate(files)}
        identity |= {f"data_files.{name}": pattern} if not files else {}
    return {name: str(value) for name, value in identity.items() if value is not None}


def count_pairs(config: CorpusConfig, split: str) -> int:
    """How many pairs the split has before cleaning, or 0 where only reading it would tell.

    Raises:
        UserError: text files are missing or have unequal line counts.
    """
    if not config.has_own_data(split):
        return config.held_out
    if config.kind is CorpusKind.phrasebook:
        return config.phrasebook_pairs if split == "train" else config.held_out
    if not config.reads_text:
        return 0
    source_file, target_file = text_files(config, split)
    source_lines, target_lines = count_lines(source_file), count_lines(target_file)
    if source_lines != target_lines:
        raise UserError(
            f"corpus.{split}: the two sides must have equally many lines, "
            f"but {source_file} has {source_lines} and {target_file} has {target_lines}."
        )
    return source_lines


def _read_own(config: CorpusConfig, split: str, unreadable: Callable[[str, str], None]) -> Iterator[SentencePair]:
    match config:
        case CorpusConfig(kind=CorpusKind.phrasebook):
            from pipeline.data.phrasebook import phrasebook_pairs

            count = count_pairs(config, split)
            return phrasebook_pairs(config.source_language, config.target_language, split, count)
        case CorpusConfig(reads_text=True):
            return _readable(_text_rows(config, split), unreadable)
        case _:
            return _readable(_dataset_rows(config, split), unreadable)


def _readable(
    rows: Iterable[tuple[tuple[str, bytes], tuple[str, bytes]]], unreadable: Callable[[str, str], None]
) -> Iterator[SentencePair]:
    """Decodes rows of ((place, source), (place, target))."""
    for source, target in rows:
        try:
            pair = SentencePair(_decode(*source), _decode(*target))
        except _Unreadable as fault:
            unreadable(fault.reason, str(fault))
        else:
            yield pair


def _decode(place: str, text: bytes) -> str:
    if len(text) > MAX_LINE_BYTES:
        raise _Unreadable("too_long", f"{place}: longer than {MAX_LINE_BYTES} bytes, which is no sentence.")
    if b"\0" in text:
        raise _Unreadable("nul", f"{place}: a NUL byte at byte {text.index(0) + 1} of the line: this is not text.")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        byte = text[error.start]
        message = f"{place}: byte {error.start + 1} of the line (0x{byte:02x}) is not valid UTF-8."
        raise _Unreadable("invalid_utf8", message) from None


def text_files(config: CorpusConfig, split: str) -> tuple[Path, Path]:
    """The files of a split's two sides.

    Raises:
        UserError: one is not there.
    """
    where: SplitConfig = getattr(config, split)
    files = []
    for side in ("source", "target"):
        try:
            files.append(existing_file(Path(config.path or "", getattr(where, side))))
        except UserError as error:
            hint = "corpus.path=<folder>" if config.path is not None else f"corpus.{split}.{side}=<file>"
            raise UserError(f"corpus.{split}.{side}: {error}. Set {hint} to where it is.") from None
    return files[0], files[1]


def _text_rows(config: CorpusConfig, split: str) -> Iterator[tuple[tuple[str, bytes], tuple[str, bytes]]]:
    count_pairs(config, split)  # refuses unequal sides before any work is done
    source_file, target_file = text_files(config, split)
    lines = zip(read_lines(source_file), read_lines(target_file), strict=True)
    for number, (source, target) in enumerate(lines, start=1):
        yield (f"{source_file} line {number}", source), (f"{target_file} line {number}", target)


def _dataset_rows(config: CorpusConfig, split: str) -> Iterator[tuple[tuple[str, bytes], tuple[str, bytes]]]:
    assert config.dataset is not None
    split_name = getattr(config, split).split
    rows = load_rows(config.dataset, config.dataset_config, split_name, config.revision, config.data_files or None)
    for number, row in enumerate(rows, start=1):
        place = f"{config.dataset} {split_name} row {number}"
        yield (
            (f"{place}, {config.source_column}", cell(row, config.source_column, "corpus.source_column")),
            (f"{place}, {config.target_column}", cell(row, config.target_column, "corpus.target_column")),
        )
