"""The settings of a parallel corpus."""

import os
import re
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from transloom.pipeline.data.sources import SourceConfig, as_settings, parse_sources, with_absolute_sources
from transloom.pipeline.files import absolute_path

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
