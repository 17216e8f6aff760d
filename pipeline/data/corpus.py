"""A parallel corpus: its settings, its pairs, and those of train that are held out for validation and test."""

import glob
import heapq
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from transloom.pipeline.data.mix import draw_counts
from transloom.pipeline.data.overlap import Sides, pair_hash
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.portions import (
    Portion,
    Unreadable,
    map_portions,
    portion_pairs,
    refuse,
    row_portions,
    source_portions,
)
from transloom.pipeline.data.sources import (
    Row,
    Source,
    SourceConfig,
    as_settings,
    count_source,
    fingerprint,
    open_source,
    parse_sources,
    refuse_wrong_source,
    with_absolute_sources,
)
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import absolute_path, sha256_file
from transloom.pipeline.progress import MapTasks

SPLITS = ("train", "validation", "test")


class CorpusKind(Enum):
    """Embedded phrases, two text files of equally many lines, a data set by name, or sources of any format."""

    phrasebook = "phrasebook"
    text = "text"
    dataset = "dataset"
    sources = "sources"


@dataclass(frozen=True)
class SplitConfig:
    """The source of a split: two text files, the name of a split of a data set, or a list of sources.

    Attributes:
        source: a text file of source sentences, a line each, plain or compressed (.gz, .xz, .zst).
        target: the text file of their translations, line for line.
        split: the name of a split of the data set.
        sources: a list of sources, each with the fields of `SourceConfig`.

    Raises:
        ValueError: a source can't be read, naming its field.
    """

    source: str | None = None
    target: str | None = None
    split: str | None = None
    sources: Any = None

    def __post_init__(self) -> None:
        if self.sources and self.source is not None:
            raise ValueError("sources: give the files as one of the sources, or as source and target, not both")
        _ = self.parsed

    @property
    def parsed(self) -> tuple[SourceConfig, ...]:
        """The list of sources."""
        return parse_sources(self.sources)


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
        kind: the embedded phrasebook, two text files a split, a list of sources, or a data set of the `datasets`
            library.
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
        mix: what is mixed into train.
        temperature: T: sources are drawn in proportion to weight times size to the power of 1/T; see `mix.py`.
        language_tags: whether each source sentence begins with the tag of its target language, <2de>, for a model of
            several target languages.

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
    temperature: float = 1.0
    language_tags: bool = False

    def __post_init__(self) -> None:
        if not self.temperature >= 1.0:
            raise ValueError(f"temperature: must be at least 1, not {self.temperature}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name: becomes part of a folder's name: letters, digits, . _ - only, not {self.name!r}")
        for name in ("held_out", "phrasebook_pairs", "published_pairs"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name}: must be at least 1, not {count}")
        if self.kind is CorpusKind.dataset and self.path is None and self.dataset is None:
            raise ValueError("dataset: the name of a data set is missing (or path: a folder with its text files)")
        if self.kind is not CorpusKind.sources:
            for name in SPLITS:
                if getattr(self, name).sources:
                    raise ValueError(f"{name}.sources: a list of sources needs corpus.kind=sources (corpus=sources)")
        if self.kind is CorpusKind.phrasebook:
            return
        for name in SPLITS:
            split: SplitConfig = getattr(self, name)
            for place, source in enumerate(split.parsed if name != "train" else ()):
                if source.weight != 1.0:
                    raise ValueError(f"{name}.sources[{place}].weight: only sources of train are drawn by weight")
            if self.reads_text and (split.source is None) != (split.target is None):
                raise ValueError(f"{name}: source and target go together, and one of them is missing")
        if not self.has_own_data("train"):
            what = "sources" if self.kind is CorpusKind.sources else "source and target" if self.reads_text else "split"
            raise ValueError(f"train: {what} must be set")
        if self.train.sources and not any(source.weight for source in self.train.parsed):
            raise ValueError("train.sources: every weight is 0, so nothing would be drawn")

    @property
    def paths(self) -> dict[str, str]:
        """Every file, folder and address by its setting's name."""
        of_splits: dict[str, str | None] = {}
        for name in SPLITS:
            split: SplitConfig = getattr(self, name)
            of_splits |= {f"corpus.{name}.source": split.source, f"corpus.{name}.target": split.target}
            for place, source in enumerate(split.parsed):
                key = f"corpus.{name}.sources[{place}]"
                of_splits |= {f"{key}.source": source.source, f"{key}.target": source.target}
                of_splits |= {f"{key}.files[{i}]": pattern for i, pattern in enumerate(source.patterns)}
        # With a path, the splits' files are in that folder.
        has_own = self.kind in (CorpusKind.text, CorpusKind.sources) and self.path is None
        own = {key: path for key, path in of_splits.items() if path is not None and (has_own or "://" in path)}
        own |= {} if self.path is None else {"corpus.path": self.path}
        own |= {f"corpus.data_files.{name}": file for name, file in self.data_files.items()}
        mix = {"corpus.mix.source": self.mix.source, "corpus.mix.target": self.mix.target}
        return own | {key: path for key, path in mix.items() if path is not None}

    @property
    def is_from_hub(self) -> bool:
        """Whether the data come from a hub of data sets."""
        if self.kind is CorpusKind.sources:
            return any(
                source.dataset and not source.data_files for name in SPLITS for source in getattr(self, name).parsed
            )
        return self.kind is CorpusKind.dataset and self.path is None and not self.data_files

    def with_absolute_paths(self) -> "CorpusConfig":
        """The configuration with paths made absolute (from the working directory), and ~ expanded."""
        is_own = self.kind in (CorpusKind.text, CorpusKind.sources) and self.path is None
        change = absolute_path if is_own else os.path.expanduser
        splits: dict[str, Any] = {}
        for name in SPLITS:
            split: SplitConfig = getattr(self, name)
            source, target = (side and change(side) for side in (split.source, split.target))
            sources = with_absolute_sources(split.parsed, self.path)
            splits[name] = replace(split, source=source, target=target, sources=as_settings(sources))
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
        """Whether a split is two text files."""
        return self.kind is CorpusKind.text or (self.kind is CorpusKind.dataset and self.path is not None)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each source of train; none where each pair is drawn once an epoch."""
        weights = tuple(source.weight for source in self.train.parsed)
        return weights if self.temperature != 1.0 or any(weight != 1.0 for weight in weights) else ()

    @property
    def languages(self) -> tuple[str, str]:
        return self.source_language, self.target_language

    def has_own_data(self, split: str) -> bool:
        """Whether the split has data of its own, rather than pairs held out of train."""
        if self.kind is CorpusKind.phrasebook:
            return True
        where: SplitConfig = getattr(self, split)
        if self.kind is CorpusKind.sources:
            return where.source is not None or bool(where.sources)
        return where.source is not None if self.reads_text else where.split is not None


def split_sources(config: CorpusConfig, split: str) -> list[Source]:
    """The sources of a split with data of its own, their files known; none of the phrasebook.

    Raises:
        UserError: a file is missing.
    """
    if config.kind is CorpusKind.phrasebook:
        return []
    where: SplitConfig = getattr(config, split)
    key, languages = f"corpus.{split}", config.languages
    if where.sources:
        return [
            open_source(source, f"{key}.sources[{place}]", languages, config.path)
            for place, source in enumerate(where.parsed)
        ]
    if config.kind is not CorpusKind.dataset or config.path is not None:
        text = SourceConfig(config.name, source=where.source, target=where.target)
        return [open_source(text, key, languages, config.path, is_named=False)]
    hub = SourceConfig(
        config.name,
        source_column=config.source_column,
        target_column=config.target_column,
        dataset=config.dataset,
        dataset_config=config.dataset_config,
        revision=config.revision,
        split=where.split,
        data_files=config.data_files,
    )
    return [open_source(hub, "corpus", languages)]


def drawn_counts(config: CorpusConfig, counts: Mapping[str, Any]) -> list[int]:
    """How many pairs of each source of train an epoch draws.

    Args:
        counts: of the corpus's manifest.
    """
    sizes = [source["pairs"] for source in counts["sources"]]
    return draw_counts(sizes, config.weights, config.temperature) if config.weights else sizes


def source_tags(config: CorpusConfig, split: str) -> tuple[str, ...]:
    """The tag that begins the source sentences of each source of a split: <2de>; none without language_tags."""
    if not config.language_tags:
        return ()
    where: SplitConfig = getattr(config, split)
    sources = where.parsed or ((None,) if where.source is not None or config.kind is not CorpusKind.sources else ())
    return tuple(f"<2{(source and source.target_language) or config.target_language}>" for source in sources)


def _tagged(pair: SentencePair, tags: tuple[str, ...], source: int) -> SentencePair:
    return SentencePair(f"{tags[source]} {pair.source}", pair.target) if tags else pair


def split_portions(config: CorpusConfig, split: str) -> Iterator[Portion]:
    """The rows of a split with data of its own in portions, which are read independently of each other."""
    if config.kind is CorpusKind.phrasebook:
        from transloom.pipeline.phrasebook import phrasebook_pairs

        count = count_pairs(config, split)
        pairs = phrasebook_pairs(*config.languages, split, count)
        rows = (Row(f"pair {i}", one.encode(), other.encode()) for i, (one, other) in enumerate(pairs, 1))
        yield from row_portions(rows, 0, "pair ", config.languages)
        return
    for place, source in enumerate(split_sources(config, split)):
        yield from source_portions(source, place)


def read_pairs(
    config: CorpusConfig,
    split: str,
    unreadable: Unreadable = refuse,
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


@dataclass(frozen=True)
class HeldOut:
    """Pairs of train that are held out.

    Attributes:
        pairs: by split.
        rows: the places of these pairs: of each portion of train, by its number, the numbers of the rows.
    """

    pairs: dict[str, list[SentencePair]]
    rows: dict[int, frozenset[int]]


def held_out_pairs(config: CorpusConfig, unreadable: Unreadable = refuse) -> dict[str, list[SentencePair]]:
    """The pairs of `hold_out`."""
    return hold_out(config, unreadable).pairs


def hold_out(config: CorpusConfig, unreadable: Unreadable = refuse, map_tasks: MapTasks = map) -> HeldOut:
    """Chooses pairs of train for validation or test, where these have no data of their own.

    The pairs with the smallest hashes are held out, so the choice does not depend on the corpus's order. No two of them
    share a sentence. So at least half of the different pairs are left when all pairs that share a sentence with them
    are taken out of train.

    Raises:
        UserError: too few pairs of train share no sentence.
    """
    lacking = [split for split in ("validation", "test") if not config.has_own_data(split)]
    if not lacking:
        return HeldOut({}, {})
    wanted = config.held_out * len(lacking)
    for size in (4 * wanted, 16 * wanted, 64 * wanted):  # larger only if many pairs share sentences
        candidates, usable = _smallest_hashes(config, size, unreadable, map_tasks)
        apart: list[_Candidate] = []
        sides = Sides()
        for candidate in candidates:
            if not sides.share(candidate.pair):
                sides.add(candidate.pair)
                apart.append(candidate)
        if len(apart) >= 2 * wanted:
            rows: dict[int, set[int]] = {}
            for candidate in apart[:wanted]:
                rows.setdefault(candidate.portion, set()).add(candidate.row)
            tags = source_tags(config, "train")
            pairs = [_tagged(candidate.pair, tags, candidate.source) for candidate in apart]
            return HeldOut(
                {split: pairs[i * config.held_out : (i + 1) * config.held_out] for i, split in enumerate(lacking)},
                {portion: frozenset(numbers) for portion, numbers in rows.items()},
            )
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
    if config.kind is CorpusKind.sources:
        return "corpus.train"
    return config.data_files.get(config.train.split or "", config.dataset or config.name)


class _Candidate(NamedTuple):
    """A pair that may be held out, and the place where it stands first."""

    digest: int
    portion: int
    row: int
    source: int
    pair: SentencePair


def _smallest_hashes(
    config: CorpusConfig, size: int, unreadable: Unreadable, map_tasks: MapTasks
) -> tuple[list[_Candidate], int]:
    """The `size` different pairs of train with the smallest hashes, in the hashes' order, and the number of pairs that
    are not empty."""
    chosen: list[_Candidate] = []
    usable = 0
    tasks = (_CandidatesTask(portion, size, unreadable) for portion in split_portions(config, "train"))
    for number, (candidates, count) in enumerate(map_portions(_smallest_of_portion, tasks, map_tasks)):
        usable += count
        chosen += [candidate._replace(portion=number) for candidate in candidates]
        chosen.sort()
        chosen = [one for i, one in enumerate(chosen) if i == 0 or chosen[i - 1].digest != one.digest][:size]
    return chosen, usable


@dataclass(frozen=True)
class _CandidatesTask:
    """The arguments of `_smallest_hashes`, for one portion."""

    portion: Portion
    size: int
    unreadable: Unreadable


def _smallest_of_portion(task: _CandidatesTask) -> tuple[list[_Candidate], int]:
    """As `_smallest_hashes`, of one portion, whose number is still 0."""
    portion, size = task.portion, task.size
    chosen: dict[int, _Candidate] = {}
    largest: list[int] = []  # a heap of the chosen hashes, negated: the largest one first
    usable = 0
    for number, _, pair in portion_pairs(portion, task.unreadable):
        if not pair.source.strip() or not pair.target.strip():
            continue
        usable += 1
        digest = pair_hash(pair)
        if digest in chosen or (len(chosen) == size and digest > -largest[0]):
            continue
        chosen[digest] = _Candidate(digest, 0, number, portion.source, pair)
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
    if config.reads_text or config.kind is CorpusKind.sources:
        tags = {"language_tags": "yes"} if config.language_tags else {}
        return tags | {
            name: value
            for split in filter(config.has_own_data, SPLITS)
            for place, source in enumerate(split_sources(config, split))
            for name, value in fingerprint(source, split if source.short_places else f"{split}.{place}").items()
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
    counts = [count_source(source) for source in split_sources(config, split)]
    return sum(counts) if all(counts) else 0


def count_mix(config: CorpusConfig) -> int:
    """`count_pairs` of the corpus to mix in; 0 without one."""
    if other := config.mixed_in:
        with _of_mix():
            return count_pairs(other, "train")
    return 0


def mix_portions(config: CorpusConfig) -> Iterator[Portion]:
    """`split_portions` of the corpus to mix in."""
    assert config.mixed_in is not None
    with _of_mix():
        yield from split_portions(config.mixed_in, "train")


def refuse_wrong_files(config: CorpusConfig) -> None:
    """Checks the beginning of text files before any other work.

    Raises:
        UserError: a file is missing, is not text with a sentence a line, or both sides are the same.
    """
    if other := config.mixed_in:
        with _of_mix():
            refuse_wrong_files(other)
    is_same_language = config.source_language == config.target_language
    if config.reads_text or config.kind is CorpusKind.sources:
        for split in filter(config.has_own_data, SPLITS):
            for source in split_sources(config, split):
                refuse_wrong_source(source)
    elif config.kind is CorpusKind.dataset and config.source_column == config.target_column and not is_same_language:
        raise UserError(
            f"corpus.target_column: {config.target_column} is corpus.source_column, too: nothing would be translated"
        )


def read_own(config: CorpusConfig, split: str, unreadable: Unreadable = refuse) -> Iterator[tuple[str, SentencePair]]:
    """Streams (place, pair) of a split with data of its own, held-out pairs included; see `read_pairs`."""
    count_pairs(config, split)  # refuses unequal sides before any work is done
    tags = source_tags(config, split) if split != "train" else ()  # those of train are added when it is cleaned
    for portion in split_portions(config, split):
        for _, place, pair in portion_pairs(portion, unreadable):
            yield place, _tagged(pair, tags, portion.source)


def text_files(config: CorpusConfig, split: str) -> tuple[Path, Path]:
    """The files of a split's two sides.

    Raises:
        UserError: a file is missing.
    """
    (source,) = split_sources(config, split)
    return source.sides[0]
