"""Reads sentence pairs from the embedded phrasebook, two text files, or a data set of the `datasets` library."""

import glob
import heapq
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from transloom.pipeline.data.formats import refuse_other_formats
from transloom.pipeline.data.hub import cell, load_rows
from transloom.pipeline.data.lines import MAX_LINE_BYTES, count_lines, existing_file, read_lines
from transloom.pipeline.data.overlap import Sides, pair_hash
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import absolute_path, sha256_file

SPLITS = ("train", "validation", "test")


class CorpusKind(Enum):
    """Embedded phrases, two text files of equally many lines, or a data set by name."""

    phrasebook = "phrasebook"
    text = "text"
    dataset = "dataset"


@dataclass(frozen=True)
class SplitConfig:
    """The source of a split: two text files, or the name of a split of a data set.

    Attributes:
        source: a text file of source sentences, a line each, plain or compressed (.gz, .xz, .zst).
        target: the text file of their translations, line for line.
        split: the name of a split of the data set.
    """

    source: str | None = None
    target: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class MixConfig:
    """Pairs of another corpus, such as an initial model's, that are mixed into train.

    Attributes:
        source: a text file, plain or compressed; with `train.initial=<run>` and no files, the cleaned train of that
            run.
        target: the text file of the translations.
        share: of the pairs of each epoch; 0: none.

    Raises:
        ValueError: if the share is none, or is given without files or the other way round, naming the field.
    """

    source: str | None = None
    target: str | None = None
    share: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0:
            raise ValueError(f"share: must be from 0 to below 1, not {self.share}")
        if (self.source is None) != (self.target is None):
            raise ValueError("source: source and target go together, and one of them is missing")
        if self.share and self.source is None:
            raise ValueError("source: the files to mix in are missing; a run of train.initial gives its own")
        if not self.share and self.source is not None:
            raise ValueError("share: is 0, so nothing of the files is mixed in; set it, for example to 0.2")


@dataclass(frozen=True)
class CorpusConfig:
    """A parallel corpus.

    Attributes:
        kind: the embedded phrasebook, two text files a split, or a data set of the `datasets` library.
        name: of the corpus; part of folders' names and of the run's.
        source_language: the code of the language that is translated from.
        target_language: the code of the language that is translated to; it also chooses BLEU's tokenizer.
        path: the folder of the splits' text files; if set, kind "dataset" reads these files instead of the data set.
        dataset: the name of a data set on the hub, or of a reader such as json, csv or parquet.
        dataset_config: the data set's configuration, where it has several.
        revision: the data set's version on the hub.
        data_files: for readers such as json: the files by split.
        source_column: the column of source sentences; a dotted path leads into nested ones.
        target_column: the column of their translations.
        held_out: pairs that are taken out of train for each of validation and test that has no data of its own.
        phrasebook_pairs: for kind phrasebook: how many pairs are made.
        published_pairs: the published number of training pairs, for plans without the corpus at hand.

    Raises:
        ValueError: if the source of the pairs is missing, naming the field.
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
    mix: MixConfig = field(default_factory=MixConfig)

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
    def paths(self) -> dict[str, str]:
        """Every file, folder and address by its setting's name."""
        paths = {"corpus.path": self.path}
        paths |= {f"corpus.data_files.{name}": file for name, file in self.data_files.items()}
        for name in SPLITS:
            split: SplitConfig = getattr(self, name)
            paths |= {f"corpus.{name}.source": split.source, f"corpus.{name}.target": split.target}
        has_own = (
            self.kind is CorpusKind.text and self.path is None
        )  # with a path, the splits' files are in that folder
        own = {
            key: path
            for key, path in paths.items()
            if path is not None and (has_own or not key.endswith((".source", ".target")) or "://" in path)
        }
        mix = {"corpus.mix.source": self.mix.source, "corpus.mix.target": self.mix.target}
        return own | {key: path for key, path in mix.items() if path is not None}

    @property
    def is_from_hub(self) -> bool:
        """Whether the data come from a hub of data sets."""
        return self.kind is CorpusKind.dataset and self.path is None and not self.data_files

    def with_absolute_paths(self) -> "CorpusConfig":
        """The configuration with paths made absolute (from the working directory), and ~ expanded."""
        change = absolute_path if self.kind is CorpusKind.text and self.path is None else os.path.expanduser
        splits: dict[str, Any] = {}
        for name in SPLITS:
            split: SplitConfig = getattr(self, name)
            source, target = (side and change(side) for side in (split.source, split.target))
            splits[name] = SplitConfig(source, target, split.split)
        files = {name: absolute_path(file) for name, file in self.data_files.items()}
        mix = replace(
            self.mix,
            source=self.mix.source and absolute_path(self.mix.source),
            target=self.mix.target and absolute_path(self.mix.target),
        )
        return replace(self, path=self.path and absolute_path(self.path), data_files=files, mix=mix, **splits)

    @property
    def mixed_in(self) -> "CorpusConfig | None":
        """The corpus to mix in, as the train of a corpus of its own; None without one."""
        if not self.mix.share:
            return None
        train = SplitConfig(self.mix.source, self.mix.target)
        return CorpusConfig(CorpusKind.text, "mix", self.source_language, self.target_language, train=train)

    @property
    def reads_text(self) -> bool:
        return self.kind is CorpusKind.text or (self.kind is CorpusKind.dataset and self.path is not None)

    def has_own_data(self, split: str) -> bool:
        """Whether the split has data of its own, rather than pairs held out of train."""
        if self.kind is CorpusKind.phrasebook:
            return True
        where: SplitConfig = getattr(self, split)
        return where.source is not None if self.reads_text else where.split is not None


class _Unreadable(ValueError):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def refuse(reason: str, message: str) -> None:
    """The default handling of a pair that can't be read: stop with a UserError."""
    raise UserError(f"{message} Mend the corpus there.")


def read_pairs(
    config: CorpusConfig,
    split: str,
    unreadable: Callable[[str, str], None] = refuse,
    held_out: dict[str, list[SentencePair]] | None = None,
) -> Iterator[SentencePair]:
    """Streams the pairs of "train", "validation" or "test", in the corpus's order, texts unchanged.

    Args:
        unreadable: called with (reason, message) for a pair that is not text: invalid_utf8, nul, too_long (over
            MAX_LINE_BYTES). When it returns, the pair is left out.
        held_out: the result of `held_out_pairs`, if known already, which saves a pass over the training data.

    Raises:
        UserError: a file is missing, the sides have unequal line counts, a data set or column can't be found, or
            from `unreadable`.
    """
    if held_out is None:
        held_out = held_out_pairs(config, unreadable)
    if split in held_out:
        yield from held_out[split]
        return
    taken = Sides(pair for pairs in held_out.values() for pair in pairs)
    yield from (pair for _, pair in read_own(config, split, unreadable) if split != "train" or not taken.share(pair))


def held_out_pairs(
    config: CorpusConfig, unreadable: Callable[[str, str], None] = refuse
) -> dict[str, list[SentencePair]]:
    """Pairs of train that are held out for validation or test, where these have no data of their own.

    The pairs with the smallest hashes are held out, so the choice does not depend on the corpus's order. No two of them
    share a sentence. So at least half of the different pairs are left when all pairs that share a sentence with them
    are taken out of train.

    Raises:
        UserError: too few pairs of train share no sentence.
    """
    lacking = [split for split in ("validation", "test") if not config.has_own_data(split)]
    if not lacking:
        return {}
    wanted = config.held_out * len(lacking)
    for size in (4 * wanted, 16 * wanted, 64 * wanted):  # larger only if many pairs share sentences
        candidates, usable = _smallest_hashes(config, size, unreadable)
        apart: list[SentencePair] = []
        sides = Sides()
        for pair in candidates:
            if not sides.share(pair):
                sides.add(pair)
                apart.append(pair)
        if len(apart) >= 2 * wanted:
            return {split: apart[i * config.held_out : (i + 1) * config.held_out] for i, split in enumerate(lacking)}
        if len(candidates) < size:
            break
    if not usable:
        raise UserError(f"corpus {config.name}: train has no pair that is not empty. Look at {_where(config)}.")
    most = len(apart) // (2 * len(lacking))
    raise UserError(
        f"corpus {config.name}: train has {usable:,} pairs that are not empty. Of {len(candidates):,} different ones "
        f"{len(apart):,} share no sentence with each other, and at most half of these can be held out: too few for "
        f"corpus.held_out={config.held_out} each for {' and '.join(lacking)}. "
        f"{f'Set corpus.held_out={most} or lower, or give' if most else 'Give'} corpus.validation and corpus.test "
        "files."
    )


def _where(config: CorpusConfig) -> str:
    """The files of train, or the data set."""
    if config.reads_text:
        return " and ".join(map(str, text_files(config, "train")))
    return config.data_files.get(config.train.split or "", config.dataset or config.name)


def _smallest_hashes(
    config: CorpusConfig, size: int, unreadable: Callable[[str, str], None]
) -> tuple[list[SentencePair], int]:
    """The `size` different pairs of train with the smallest hashes, in the hashes' order, and the number of pairs that
    are not empty."""
    chosen: dict[int, SentencePair] = {}
    largest: list[int] = []  # a heap of the chosen hashes, negated: the largest one first
    usable = 0
    for _, pair in read_own(config, "train", unreadable):
        if not pair.source.strip() or not pair.target.strip():
            continue
        usable += 1
        digest = pair_hash(pair)
        if digest in chosen or (len(chosen) == size and digest > -largest[0]):
            continue
        chosen[digest] = pair
        heapq.heappush(largest, -digest)
        if len(chosen) > size:
            del chosen[-heapq.heappop(largest)]
    return [chosen[digest] for digest in sorted(chosen)], usable


@contextmanager
def _of_mix() -> Iterator[None]:
    """Refusals of the corpus to mix in, by the names of its own settings."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("corpus.train", "corpus.mix")) from error


def corpus_fingerprint(config: CorpusConfig) -> dict[str, str]:
    """Names and hashes of all sources of the pairs. A data set of the hub is identified by its name and revision:
    corpus.revision fixes the version."""
    if other := config.mixed_in:
        with _of_mix():
            mix = {name.replace("train", "mix"): value for name, value in corpus_fingerprint(other).items()}
        return corpus_fingerprint(replace(config, mix=MixConfig())) | mix
    if config.kind is CorpusKind.phrasebook:
        from transloom.pipeline.phrasebook import phrasebook_version

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
    """The number of pairs in the split before cleaning, or 0 where counting would need to read it.

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


def count_mix(config: CorpusConfig) -> int:
    """`count_pairs` of the corpus to mix in; 0 without one."""
    if other := config.mixed_in:
        with _of_mix():
            return count_pairs(other, "train")
    return 0


def read_mix(config: CorpusConfig, unreadable: Callable[[str, str], None]) -> Iterator[tuple[str, SentencePair]]:
    """`read_own` of the corpus to mix in."""
    assert config.mixed_in is not None
    with _of_mix():
        yield from read_own(config.mixed_in, "train", unreadable)


def refuse_wrong_files(config: CorpusConfig) -> None:
    """Checks the beginning of text files before any other work.

    Raises:
        UserError: a file is missing, is not text with a sentence a line, or both sides are the same.
    """
    if other := config.mixed_in:
        with _of_mix():
            refuse_wrong_files(other)
    is_same_language = config.source_language == config.target_language
    if config.reads_text:
        for split in filter(config.has_own_data, SPLITS):
            try:
                refuse_other_formats(*text_files(config, split), is_same_language)
            except UserError as error:
                place = "" if str(error).startswith("corpus.") else f"corpus.{split}: "
                raise UserError(f"{place}{error}") from None
    elif config.kind is CorpusKind.dataset and config.source_column == config.target_column and not is_same_language:
        raise UserError(
            f"corpus.target_column: {config.target_column} is corpus.source_column, too: nothing would be translated"
        )


class _Row(NamedTuple):
    """A pair as read, with its place for an example and each side's place for a message."""

    place: str
    source_place: str
    source: bytes
    target_place: str
    target: bytes


def read_own(
    config: CorpusConfig, split: str, unreadable: Callable[[str, str], None] = refuse
) -> Iterator[tuple[str, SentencePair]]:
    """Streams (place, pair) of a split with data of its own, held-out pairs included; see `read_pairs`."""
    match config:
        case CorpusConfig(kind=CorpusKind.phrasebook):
            from transloom.pipeline.phrasebook import phrasebook_pairs

            count = count_pairs(config, split)
            pairs = phrasebook_pairs(config.source_language, config.target_language, split, count)
            return ((f"pair {number}", pair) for number, pair in enumerate(pairs, 1))
        case CorpusConfig(reads_text=True):
            return _readable(_text_rows(config, split), unreadable)
        case _:
            return _readable(_dataset_rows(config, split), unreadable)


def _readable(rows: Iterable[_Row], unreadable: Callable[[str, str], None]) -> Iterator[tuple[str, SentencePair]]:
    for row in rows:
        try:
            pair = SentencePair(_decode(row.source_place, row.source), _decode(row.target_place, row.target))
        except _Unreadable as fault:
            unreadable(fault.reason, str(fault))
        else:
            yield row.place, pair


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
        UserError: a file is missing.
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


def _text_rows(config: CorpusConfig, split: str) -> Iterator[_Row]:
    count_pairs(config, split)  # refuses unequal sides before any work is done
    source_file, target_file = text_files(config, split)
    lines = zip(read_lines(source_file), read_lines(target_file), strict=True)
    for number, (source, target) in enumerate(lines, start=1):
        place = f"line {number}"
        yield _Row(place, f"{source_file} {place}", source, f"{target_file} {place}", target)


def _dataset_rows(config: CorpusConfig, split: str) -> Iterator[_Row]:
    assert config.dataset is not None
    split_name = getattr(config, split).split
    rows = load_rows(config.dataset, config.dataset_config, split_name, config.revision, config.data_files or None)
    for place, row in rows:
        full = place if " line " in place else f"{config.dataset} {split_name} {place}"
        yield _Row(
            place.rpartition("/")[2],
            f"{full}, {config.source_column}",
            cell(row, config.source_column, "corpus.source_column", full),
            f"{full}, {config.target_column}",
            cell(row, config.target_column, "corpus.target_column", full),
        )
