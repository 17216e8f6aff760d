"""Texts with labels: their files, the parts of a corpus, tokenised texts as examples, and packed batches."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from transloom.model.packing import Layout
from transloom.pipeline.data.clean import shortened
from transloom.pipeline.data.document_shards import COLUMN
from transloom.pipeline.data.documents import document_hash
from transloom.pipeline.data.packing import filler, pack
from transloom.pipeline.data.pieces import inputs_and_labels
from transloom.pipeline.data.records import Record, RecordSource, read_records, records_fingerprint, with_local_records
from transloom.pipeline.data.shards import open_shards
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import absolute_path
from transloom.pipeline.progress import Progress, no_progress
from transloom.pipeline.storage.files import is_url

SPLITS = ("train", "validation", "test")
LABELS_FILE = "labels"  # `split`.labels.npy: (texts,) int32, each text's label by its number


@dataclass(frozen=True)
class LabelledConfig:
    """The texts and labels that a classifier learns from.

    Attributes:
        name: of the corpus; part of folders' names and of the run's.
        path: the folder of files that are named without one.
        text_field: the field of a record that has its text.
        label_field: the field of its label, a text or a whole number; the labels of train, sorted as texts, are those
            that there are.
        columns: the names of a table's columns, for tables without a header.
        held_out: the share of train that is held out for validation, where validation has no files. A hash of the seed
            and the text decides, so equal texts stay together.
        held_out_seed: chooses another part of train.

    Raises:
        ValueError: a setting is missing or out of range, naming the field.
    """

    name: str = "labelled"
    path: str | None = None
    train: RecordSource = field(default_factory=RecordSource)
    validation: RecordSource = field(default_factory=RecordSource)
    test: RecordSource = field(default_factory=RecordSource)
    text_field: str = "text"
    label_field: str = "label"
    columns: list[str] = field(default_factory=list)
    held_out: float = 0.1
    held_out_seed: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name: becomes part of a folder's name: letters, digits, . _ - only, not {self.name!r}")
        for name in ("text_field", "label_field"):
            if not getattr(self, name):
                raise ValueError(f"{name}: must name a field")
        if self.text_field == self.label_field:
            raise ValueError(f"label_field: is the field of the text, {self.text_field!r}")
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out: must be a share above 0 and below 1, not {self.held_out}")
        if not 0 <= self.held_out_seed < 2**32:
            raise ValueError(f"held_out_seed: must be from 0 to 2^32 - 1, not {self.held_out_seed}")

    @property
    def kind(self) -> str:
        """The kind of source, which other corpora choose among."""
        return "records"

    @property
    def is_from_hub(self) -> bool:
        """False: the data never come from a hub of data sets."""
        return False

    @property
    def paths(self) -> dict[str, str]:
        """Every pattern and address by its setting's name; the parts of a list one after the other."""
        named = {f"corpus.{split}.files": self.source(split).patterns for split in SPLITS}
        return {f"{key}[{i}]" if i else key: path for key, paths in named.items() for i, path in enumerate(paths)}

    def source(self, split: str) -> RecordSource:
        """The files of a split, in the folder `path`."""
        source: RecordSource = getattr(self, split)
        if self.path is None:
            return source
        folder = self.path
        return source.with_patterns(
            [name if is_url(name) or os.path.isabs(name) else os.path.join(folder, name) for name in source.patterns]
        )

    def with_absolute_paths(self) -> "LabelledConfig":
        """The configuration with paths made absolute (from the working directory), and ~ expanded."""
        if self.path is not None:
            return replace(self, path=absolute_path(self.path))
        return replace(self, **{split: getattr(self, split).with_absolute_paths() for split in SPLITS})

    def has_own_data(self, split: str) -> bool:
        """Whether the split has files of its own."""
        return bool(getattr(self, split).patterns)

    @property
    def splits(self) -> tuple[str, ...]:
        """The existing splits; validation always exists, from files or held out of train."""
        return SPLITS if self.has_own_data("test") else SPLITS[:2]


def labelled_key(config: LabelledConfig) -> dict[str, Any]:
    """All settings, besides the files, that the splits depend on: for the key of a stage."""
    key: dict[str, Any] = {"text_field": config.text_field, "label_field": config.label_field}
    if config.columns:
        key["columns"] = list(config.columns)
    if not config.has_own_data("validation"):
        key["held_out"] = [config.held_out, config.held_out_seed]
    return key


def labelled_fingerprint(config: LabelledConfig) -> dict[str, str]:
    """Hashes of the files of each split.

    Raises:
        UserError: train names no file, or a file is missing.
    """
    refuse_no_train(config)
    return {
        split: records_fingerprint(config.source(split), f"corpus.{split}")
        for split in SPLITS
        if config.has_own_data(split)
    }


def refuse_no_train(config: LabelledConfig) -> None:
    """
    Raises:
        UserError: train names no file.
    """
    if not config.has_own_data("train"):
        raise UserError(
            "corpus.train.files: is missing: a pattern of files with a text and a label in each record, such as "
            "corpus.train.files=train.tsv"
        )


def with_local_labelled(config: LabelledConfig, folder: Path, progress: Progress = no_progress) -> LabelledConfig:
    """The configuration with each URL replaced by the path of a copy below `folder`; see `with_local_records`.

    Raises:
        UserError: a file can't be reached; names the setting.
    """
    sources = {split: with_local_records(config.source(split), folder, f"corpus.{split}", progress) for split in SPLITS}
    return replace(config, path=None, **sources)


class LabelledText(NamedTuple):
    """A text and its label; `place` is the file and line."""

    place: str
    text: str
    label: str


@dataclass
class LabelledSplits:
    """The texts of all splits, and those that were left out of train.

    Attributes:
        labels: all labels of train, sorted.
        dropped: texts left out, by reason; `examples`: the first of each.
        held_out: texts of train that validation has.
    """

    texts: dict[str, list[LabelledText]]
    labels: list[str]
    dropped: Counter[str]
    examples: dict[str, str]
    held_out: int


def read_labelled(config: LabelledConfig) -> LabelledSplits:
    """Reads all splits. Empty texts, and texts that validation or test has too, are left out of train.

    Raises:
        UserError: a file can't be read; a label is empty; validation or test has an empty text, or a label that train
            lacks (names file and line); train has one label only, or a split has no text.
    """
    refuse_no_train(config)
    texts = {split: list(_read(config, split)) for split in config.splits if config.has_own_data(split)}
    train = texts["train"]
    held_out = 0
    if "validation" not in texts:
        # A text that is empty is no example anywhere: it stays in train, where it is counted.
        is_held_out = [bool(one.text.strip()) and _is_held_out(one.text, config) for one in train]
        texts["validation"] = [one for one, held in zip(train, is_held_out, strict=True) if held]
        train = [one for one, held in zip(train, is_held_out, strict=True) if not held]
        held_out = len(texts["validation"])
    evaluation = {
        document_hash(one.text): split for split in ("test", "validation") for one in texts.get(split, ())
    }  # a text in both counts as validation's
    dropped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    kept = []
    for one in train:
        split = evaluation.get(document_hash(one.text))
        reason = "empty" if not one.text.strip() else f"in_{split}" if split else None
        if reason is None:
            kept.append(one)
            continue
        dropped[reason] += 1
        examples.setdefault(reason, f"{one.place}: {shortened(one.text)}")
    texts["train"] = kept
    _refuse_few(config, texts)
    labels = sorted({one.label for one in kept})
    if len(labels) == 1:
        raise UserError(
            f"corpus.train.files: all {len(kept):,} texts have the label {labels[0]!r}, so there is nothing to learn. "
            f"corpus.label_field is {config.label_field!r}"
        )
    for split in texts.keys() - {"train"}:
        for one in texts[split]:
            if one.label not in labels:
                if not config.has_own_data(split):
                    raise UserError(
                        f"corpus.held_out: all texts with the label {one.label!r}, such as {one.place}, fell into the "
                        "share that is held out. Take another corpus.held_out_seed, more such texts, or validation "
                        "files"
                    )
                known = ", ".join(map(repr, labels[:10])) + (" and more" if len(labels) > 10 else "")
                raise UserError(f"{one.place}: the label {one.label!r} does not occur in train, only {known}")
    return LabelledSplits({split: texts[split] for split in config.splits}, labels, dropped, examples, held_out)


def _read(config: LabelledConfig, split: str) -> Iterator[LabelledText]:
    fields = (config.text_field, config.label_field)
    record: Record
    for record in read_records(config.source(split), fields, f"corpus.{split}", config.columns):
        text, label = (record.texts[name] for name in fields)
        if not label.strip():
            raise UserError(f"{record.place}: the label (corpus.label_field={config.label_field}) is empty")
        if not label.strip().isprintable():  # a label is written beside its text, one a line
            raise UserError(f"{record.place}: the label {label.strip()!r} has a tab, a line break or the like in it")
        if split != "train" and not text.strip():
            raise UserError(f"{record.place}: the text (corpus.text_field={config.text_field}) is empty")
        yield LabelledText(record.place, text, label.strip())


def _is_held_out(text: str, config: LabelledConfig) -> bool:
    digest = hashlib.blake2b(f"{config.held_out_seed} {text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < config.held_out * 2**64


def _refuse_few(config: LabelledConfig, texts: dict[str, list[LabelledText]]) -> None:
    for split in config.splits:
        if texts[split]:
            continue
        if config.has_own_data(split):
            raise UserError(f"corpus.{split}.files: has no text that is not empty or in another split")
        raise UserError(
            f"corpus.held_out: no text of train fell into the share of {config.held_out}. Raise it, or give "
            "corpus.validation.files"
        )


class LabelledTexts:
    """The texts of a split as examples, with the columns label (one number) and text (the ids that the model reads).

    Attributes:
        lengths: (texts, 2) elements of each column.
        num_cut: texts that have more than `context` tokens, of which the first are read.
    """

    columns = ("label", "text")

    def __init__(self, corpus: Path, shards: Path, split: str, end_of_text: int, context: int) -> None:
        self._tokens = open_shards(shards, split, (COLUMN,))
        self._end_of_text = end_of_text
        self.labels = np.load(corpus / f"{split}.{LABELS_FILE}.npy", allow_pickle=False)
        own = self._tokens.lengths[:, 0]
        self.num_cut = int((own > context).sum())
        self.lengths = np.stack([np.ones_like(own), np.minimum(own, context)], axis=1)

    def __len__(self) -> int:
        return len(self.labels)

    def get(self, column: str, row: int) -> np.ndarray:
        if column == "label":
            return self.labels[row : row + 1]
        # The end of text, then the text's tokens: as a language model reads the beginning of a document.
        return inputs_and_labels(self._tokens.get(COLUMN, row), 0, int(self.lengths[row, 1]), self._end_of_text)[0]


def text_input(ids: np.ndarray, end_of_text: int, context: int) -> np.ndarray:
    """What a classifier reads of a text's ids: the end of text, then the first of the ids, at most `context` in all."""
    return np.concatenate([np.array([end_of_text], ids.dtype), ids])[:context]


@dataclass(frozen=True)
class LabelledBatch:
    """One micro-batch of packed texts, then filler. Letters: N tokens, B real texts.

    Attributes:
        tokens: (N,) ids. layout: of the texts; no text sees another.
        labels: (B,) numbers of the labels.
        num_tokens: of the real texts.
    """

    tokens: Tensor
    layout: Layout
    labels: Tensor
    num_tokens: int

    def to(self, device: torch.device) -> "LabelledBatch":
        """Returns the batch on another device, without waiting for the copy."""
        if device.type == "cpu":
            return self
        tokens, labels = (x.pin_memory().to(device, non_blocking=True) for x in (self.tokens, self.labels))
        return LabelledBatch(tokens, self.layout.to(device), labels, self.num_tokens)

    @property
    def padding_share(self) -> float:
        """The share of padding and filler in the padded grid, on which attention works."""
        return 1.0 - self.num_tokens / self.layout.token_of_cell.numel()

    @property
    def in_words(self) -> str:
        return f"{len(self.labels):,} texts"


def collate_labelled(texts: Any, rows: Sequence[int] | np.ndarray) -> LabelledBatch:
    """Packs the `LabelledTexts` of these rows."""
    inputs = [texts.get("text", row) for row in rows]
    lengths = [len(ids) for ids in inputs]
    (behind,) = filler([lengths])
    tokens, layout = pack(inputs, behind)
    labels = np.concatenate([texts.get("label", row) for row in rows]).astype(np.int64)
    return LabelledBatch(tokens, layout, torch.from_numpy(labels), sum(lengths))
