"""Prepares tokenised shards from texts with labels, in three stages; a stage with unchanged inputs and settings is
skipped."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from transloom.pipeline.data.document_store import write_documents
from transloom.pipeline.data.label_baselines import label_baselines
from transloom.pipeline.data.labelled import (
    LABELS_FILE,
    LabelledConfig,
    labelled_fingerprint,
    labelled_key,
    read_labelled,
    refuse_no_train,
)
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.data.prepare_documents import prepare_text_stages
from transloom.pipeline.data.records import record_files
from transloom.pipeline.data.shards import write_array
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig
from transloom.pipeline.files import stage, write_json
from transloom.pipeline.progress import MapTasks, Progress, no_progress

FORMAT = 1  # part of the corpus's key; to be raised when the same settings no longer give the same files


def prepare_labelled(
    corpus: LabelledConfig,
    tokenizer: TextTokenizerConfig,
    output_dir: Path,
    map_tasks: MapTasks = map,
    progress: Progress = no_progress,
    only_find: bool = False,
) -> Prepared:
    """Reads the texts and labels, learns the tokenizer and tokenises everything, below `output_dir`; see
    `pipeline.data.prepare.prepare` for the arguments.

    The corpus's manifest has the labels in the order of their numbers, and the accuracy of simple models on validation
    and test.

    Raises:
        NotBuilt: with `only_find`, if a stage is not built.
        UserError: see `read_labelled`, `train_text_tokenizer` and `stage`.
    """
    corpus_stage = stage(
        output_dir / "corpora",
        f"{corpus.name}-",
        {"format": FORMAT, "labelled": labelled_key(corpus)},
        labelled_fingerprint(corpus),
        None if only_find else (lambda folder: _build_corpus(folder, corpus, progress)),
    )
    return prepare_text_stages(corpus_stage, tokenizer, corpus.splits, output_dir, map_tasks, progress, None, only_find)


def refuse_missing_records(corpus: LabelledConfig) -> None:
    """Checks that the files of all splits exist.

    Raises:
        UserError: train names no file, or a pattern matches none.
    """
    refuse_no_train(corpus)
    for split in filter(corpus.has_own_data, corpus.splits):
        record_files(corpus.source(split), f"corpus.{split}")


def _build_corpus(folder: Path, corpus: LabelledConfig, progress: Progress) -> dict[str, Any]:
    data = read_labelled(corpus)
    number_of = {label: number for number, label in enumerate(data.labels)}
    write_json(folder / "labels.json", data.labels)  # other names make another run
    splits: dict[str, dict[str, Any]] = {}
    for split, texts in data.texts.items():
        written = write_documents(folder, split, (one.text for one in texts), progress)
        numbers = np.array([number_of[one.label] for one in texts], np.int32)
        write_array(folder / f"{split}.{LABELS_FILE}.npy", numbers)
        counts = Counter(one.label for one in texts)
        splits[split] = {"texts": len(texts), "bytes": written["bytes"], "labels": {k: counts[k] for k in data.labels}}
    progress("baselines", 0, 1)
    columns = {split: ([one.text for one in of], [one.label for one in of]) for split, of in data.texts.items()}
    train = columns.pop("train")
    baselines = label_baselines(*train, columns)
    progress("baselines", 1, 1)
    return {
        "splits": splits,
        "labels": data.labels,
        "read": splits["train"]["texts"] + data.dropped.total() + data.held_out,
        "held_out": {} if corpus.has_own_data("validation") else {"validation": data.held_out},
        "dropped": dict(sorted(data.dropped.items())),
        "examples": data.examples,
        "baselines": baselines,
    }
