"""Prompts with their responses, made of records by a template."""

import hashlib
import os
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from transloom.pipeline.data.records import (
    Record,
    RecordSource,
    read_records,
    record_files,
    records_fingerprint,
    with_local_records,
)
from transloom.pipeline.data.squad import ANSWERS, FIELDS, read_squad
from transloom.pipeline.data.synthetic import FIELD, SyntheticConfig, draw_records
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import absolute_path
from transloom.pipeline.progress import Progress, no_progress
from transloom.pipeline.storage.files import is_url

SPLITS = ("train", "validation", "test")


class PromptsKind(Enum):
    """Files of records, a JSON file in the form of SQuAD's, or examples drawn at random."""

    records = "records"
    squad = "squad"
    synthetic = "synthetic"


class ResponseMetric(Enum):
    """The measure of responses: ROUGE, equality with the reference, SQuAD's exact match and F1, or the share of the
    reference's characters that stand in their places."""

    rouge = "rouge"
    exact_match = "exact_match"
    squad = "squad"
    symbols = "symbols"


class TooLong(Enum):
    """What becomes of a prompt that leaves no room for its response: its first or its last tokens are cut away, or the
    example is left out of train."""

    cut_left = "cut_left"
    cut_right = "cut_right"
    drop = "drop"


class Part(NamedTuple):
    """A part of a template: literal text, then a field's text if `field` is set."""

    literal: str
    field: str | None


def template_parts(template: str) -> list[Part]:
    """The parts of a template such as "{text}\\nTL;DR:\\n": {name} stands for a record's field, {{ and }} for braces,
    and a backslash with n or t for a line break or a tab, as a shell passes them on.

    Raises:
        ValueError: a brace has no counterpart, or braces hold something else than a field's name.
    """
    try:
        parsed = list(string.Formatter().parse(template.replace("\\n", "\n").replace("\\t", "\t")))
    except ValueError as error:
        raise ValueError(f"template: {error} in {template!r}; a brace of the text itself is written twice") from None
    parts = []
    for literal, name, specification, conversion in parsed:
        if name is not None and (specification or conversion or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name)):
            raise ValueError(f"template: {{{name}}} is no field's name; a brace of the text itself is written twice")
        parts.append(Part(literal, name))
    return parts


@dataclass(frozen=True)
class Template:
    """A template of prompts; see `template_parts`.

    Attributes:
        fields: the fields' names, each once, in the template's order.
        tail: the literal text behind the last field: the separator, which no cutting of a long prompt takes away.
    """

    parts: tuple[Part, ...]

    @staticmethod
    def of(template: str) -> "Template":
        return Template(tuple(template_parts(template)))

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.field for part in self.parts if part.field is not None))

    @property
    def tail(self) -> str:
        return "".join(part.literal for part in self._behind)

    @property
    def _behind(self) -> tuple[Part, ...]:
        """The parts behind the last field."""
        return tuple(takewhile(lambda part: part.field is None, reversed(self.parts)))[::-1]

    def body(self, record: Mapping[str, str]) -> str:
        """The prompt of a record, up to the last field."""
        parts = self.parts[: len(self.parts) - len(self._behind)]
        return "".join(part.literal + ("" if part.field is None else record[part.field]) for part in parts)

    def prompt(self, record: Mapping[str, str]) -> str:
        """The whole prompt of a record."""
        return self.body(record) + self.tail


@dataclass(frozen=True)
class PromptsConfig:
    """The prompts and responses that a model learns from.

    Attributes:
        kind: records: see `RecordSource`. squad: train.files is a JSON file in SQuAD's form, with the fields context,
            question and answers; the splits are folds of its paragraphs. synthetic: see `SyntheticConfig`; the field
            is prompt.
        name: of the corpus; part of folders' names and of the run's.
        path: the folder of the splits' files; none: the command's working directory.
        columns: the names of a table's columns, for .tsv and .csv files without a header.
        template: the prompt; {name} stands for a record's field, {{ and }} for braces. The text behind the last field
            separates prompt and response, and is never cut away.
        response: the field of the response: a text, or a list of allowed ones, of which the first is learned.
        metric: the measure of generated responses.
        max_response_tokens: the room that every prompt leaves for its response, and the limit of a generated one.
            Records of train with a longer response are left out.
        too_long: what becomes of a prompt that leaves less room.
        validation_examples: the examples, spread over validation, whose responses are generated in each validation; 0:
            all. The loss is always that of all.
        held_out: the share of train that becomes validation where validation has no files.
        keep_overlap: whether records of train stay whose prompt and response are those of a record of validation or
            test.
        fold: of kind squad: the number of the fold that is the test set, from 0; the next one is validation.
        folds: their number.
        synthetic: of kind synthetic: the examples to draw.

    Raises:
        ValueError: the source is missing, or a value is out of its range, naming the field.
    """

    kind: PromptsKind = PromptsKind.records
    name: str = "prompts"
    path: str | None = None
    train: RecordSource = field(default_factory=RecordSource)
    validation: RecordSource = field(default_factory=RecordSource)
    test: RecordSource = field(default_factory=RecordSource)
    columns: list[str] = field(default_factory=list)
    template: str = "{prompt}\n"
    response: str = "response"
    metric: ResponseMetric = ResponseMetric.rouge
    max_response_tokens: int = 64
    too_long: TooLong = TooLong.cut_right
    validation_examples: int = 200
    held_out: float = 0.05
    keep_overlap: bool = False
    fold: int = 0
    folds: int = 5
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name: becomes part of a folder's name: letters, digits, . _ - only, not {self.name!r}")
        if not Template.of(self.template).fields:
            raise ValueError(f"template: {self.template!r} has no field; {{text}} stands for a record's field text")
        if not self.response:
            raise ValueError("response: must name a field")
        if self.max_response_tokens < 2:
            raise ValueError(f"max_response_tokens: must be at least 2, not {self.max_response_tokens}")
        if self.validation_examples < 0:
            raise ValueError(f"validation_examples: must be at least 0, not {self.validation_examples}")
        if not 0.0 <= self.held_out < 1.0:
            raise ValueError(f"held_out: must be a share from 0 to below 1, not {self.held_out}")
        if self.kind is PromptsKind.squad and self.folds < 3:
            raise ValueError(f"folds: test and validation are a fold each, so there are at least 3, not {self.folds}")
        if self.kind is PromptsKind.squad and not 0 <= self.fold < self.folds:
            raise ValueError(f"fold: must be from 0 to below folds ({self.folds}), not {self.fold}")
        if self.kind is PromptsKind.squad and (self.validation.files or self.test.files):
            raise ValueError(
                "validation: has no files of its own with kind=squad, whose splits are folds of train.files"
            )
        if self.kind is PromptsKind.synthetic and any(self.has_own_data(split) for split in SPLITS):
            raise ValueError("kind: synthetic draws its examples, and reads no files: set kind=records")
        if self.train.files is not None and not self.train.patterns:
            raise ValueError("train: files names no file")

    @property
    def paths(self) -> dict[str, str]:
        """Every file, folder and address by its setting's name; the parts of a list one after the other."""
        named = {"corpus.path": (self.path,) if self.path else ()}
        named |= {f"corpus.{split}.files": getattr(self, split).patterns for split in SPLITS if self.path is None}
        return {f"{key}[{i}]" if i else key: path for key, paths in named.items() for i, path in enumerate(paths)}

    @property
    def is_from_hub(self) -> bool:
        """Whether the data come from a hub of data sets."""
        return False

    def with_absolute_paths(self) -> "PromptsConfig":
        """The configuration with paths made absolute (from the working directory), and ~ expanded."""
        if self.path is not None:
            return replace(self, path=absolute_path(self.path))
        return replace(self, **{split: getattr(self, split).with_absolute_paths() for split in SPLITS})

    def source(self, split: str) -> RecordSource:
        """The source of a split, its files below `path`."""
        own: RecordSource = getattr(self, split)
        if self.path is None:
            return own
        folder = self.path
        return own.with_patterns([name if is_url(name) else os.path.join(folder, name) for name in own.patterns])

    @property
    def splits(self) -> tuple[str, ...]:
        """The existing splits among train, validation and test."""
        if self.has_all_splits:
            return SPLITS
        return tuple(
            split
            for split in SPLITS
            if split == "train" or self.has_own_data(split) or (split == "validation" and self.held_out > 0)
        )

    @property
    def has_all_splits(self) -> bool:
        """Whether validation and test follow from the kind alone."""
        return self.kind in (PromptsKind.squad, PromptsKind.synthetic)

    def has_own_data(self, split: str) -> bool:
        """Whether the split has files of its own, rather than records of train."""
        return bool(getattr(self, split).patterns)


class Example(NamedTuple):
    """A prompt and its response.

    Attributes:
        place: file and line, for messages.
        fields: the texts of the template's fields.
        answers: the allowed responses; the first is learned.
    """

    place: str
    fields: dict[str, str]
    answers: list[str]


def read_examples(config: PromptsConfig, split: str) -> Iterator[Example]:
    """Streams the examples of "train", "validation" or "test" in the order of their files.

    Raises:
        UserError: see `read_records` and `read_squad`; or train has no files.
    """
    names = Template.of(config.template).fields
    if config.kind is PromptsKind.synthetic:
        if names != (FIELD,):
            raise UserError(f"corpus.template: {config.template!r} must have the field {{{FIELD}}} of kind=synthetic")
        yield from (
            _listed(record, config.response) for record in draw_records(config.synthetic, split, config.response)
        )
        return
    if not config.has_own_data("train"):
        raise UserError(
            "corpus.train.files: is not set. Name the files of records, such as "
            "'corpus.train.files=my/train.jsonl', or corpus.path= where the corpus names its files"
        )
    if config.kind is PromptsKind.squad:
        if unknown := [name for name in names if name not in FIELDS]:
            raise UserError(f"corpus.template: {{{unknown[0]}}} is none of SQuAD's fields {', '.join(FIELDS)}")
        (file, *more) = record_files(config.source("train"), "corpus.train")
        if more:
            raise UserError(
                f"corpus.train.files: names {1 + len(more)} files, and a corpus of SQuAD's form is one file"
            )
        yield from (_listed(record, ANSWERS) for record in read_squad(file, split, config.fold, config.folds))
        return
    own = split if config.has_own_data(split) else "train"
    records = read_records(config.source(own), names, f"corpus.{own}", config.columns, (config.response,))
    for record in records:
        if (
            config.has_own_data("validation")
            or own != "train"
            or (split == "validation") == _is_held_out(config, record)
        ):
            yield _listed(record, config.response)


def _listed(record: Record, answers: str) -> Example:
    return Example(record.place, record.texts, record.lists[answers])


def _is_held_out(config: PromptsConfig, record: Record) -> bool:
    """Whether a record of train is one of validation, by a hash of its fields: equal prompts stay together."""
    digest = hashlib.blake2b("\0".join(record.texts.values()).encode(), digest_size=8).digest()
    return int.from_bytes(digest) < config.held_out * 2**64


def prompts_key(config: PromptsConfig) -> dict[str, Any]:
    """All settings, besides the files, that the splits' examples and their baselines depend on: for a stage's key."""
    key: dict[str, Any] = {
        "kind": config.kind.value,
        "template": config.template,
        "response": config.response,
        "columns": config.columns,
        "metric": config.metric.value,
        "keep_overlap": config.keep_overlap,
    }
    if config.kind is PromptsKind.squad:
        return key | {"fold": config.fold, "folds": config.folds}
    if config.kind is PromptsKind.synthetic:
        drawn = asdict(config.synthetic)
        return key | {"synthetic": drawn | {"problem": config.synthetic.problem.value}}
    return key if config.has_own_data("validation") else key | {"held_out": config.held_out}


def prompts_fingerprint(config: PromptsConfig) -> dict[str, str]:
    """Hashes of the files of each split, independent of folder names.

    Raises:
        UserError: there is no file.
    """
    return {
        split: records_fingerprint(config.source(split), f"corpus.{split}")
        for split in SPLITS
        if config.has_own_data(split)
    }


def with_local_prompts(config: PromptsConfig, folder: Path, progress: Progress = no_progress) -> PromptsConfig:
    """The configuration with each URL replaced by the path of a copy below `folder`.

    Raises:
        UserError: a file can't be reached, or a URL is a pattern; names the setting.
    """
    if not any(is_url(pattern) for split in SPLITS for pattern in config.source(split).patterns):
        return config
    local = {split: with_local_records(config.source(split), folder, f"corpus.{split}", progress) for split in SPLITS}
    return replace(config, path=None, **local)
