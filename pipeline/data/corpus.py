"""A parallel corpus: the sources and the pairs of its splits, before any are held out or cleaned."""

import glob
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from transloom.pipeline.data.corpus_config import SPLITS, CorpusConfig, CorpusKind, MixConfig, SplitConfig
from transloom.pipeline.data.mix import draw_counts
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.portions import Portion, Unreadable, portion_pairs, refuse, row_portions, source_portions
from transloom.pipeline.data.sources import (
    Row,
    Source,
    SourceConfig,
    count_source,
    fingerprint,
    open_source,
    refuse_wrong_source,
)
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import sha256_file


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


def tagged(pair: SentencePair, tags: tuple[str, ...], source: int) -> SentencePair:
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
            yield place, tagged(pair, tags, portion.source)


def text_files(config: CorpusConfig, split: str) -> tuple[Path, Path]:
    """The files of a split's two sides.

    Raises:
        UserError: a file is missing.
    """
    (source,) = split_sources(config, split)
    return source.sides[0]
