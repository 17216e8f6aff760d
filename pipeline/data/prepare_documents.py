"""Prepares tokenised shards from documents, in three stages; a stage with unchanged inputs and settings is skipped."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transloom.pipeline.data.document_shards import DocumentsTask, document_tasks, tokenize_documents
from transloom.pipeline.data.document_store import Documents, open_documents, write_documents
from transloom.pipeline.data.documents import (
    DocumentsConfig,
    DocumentsKind,
    Dropped,
    HeldOutBy,
    documents_fingerprint,
    documents_key,
    evaluation_hashes,
    read_documents,
    refuse_nothing_left,
    source_files,
)
from transloom.pipeline.data.ngram import train_ngram
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.data.text_tokenizer import (
    TextTokenizerConfig,
    chosen_documents,
    tokenizer_fingerprint,
    train_text_tokenizer,
)
from transloom.pipeline.files import Stage, stage, without_defaults
from transloom.pipeline.progress import MapTasks, Progress, no_progress

FORMAT = 1  # part of every key below; to be raised when the same settings no longer give the same files
LEAST_SHARD_BYTES, MAX_SHARDS = 4 * 2**20, 256
FEW_BYTES = 2 * 2**20  # of text are tokenised here, as FEW_PAIRS in prepare.py
BASELINE = "5-gram of bytes"  # interpolated Kneser-Ney
BASELINE_BYTES = 64 * 2**20  # of train that the baseline is trained on, in a quarter of a minute


def prepare_documents(
    corpus: DocumentsConfig,
    tokenizer: TextTokenizerConfig,
    output_dir: Path,
    map_tasks: MapTasks = map,
    progress: Progress = no_progress,
    shard_bytes: int | None = None,
    only_find: bool = False,
) -> Prepared:
    """Reads the documents, learns the tokenizer and tokenises everything, below `output_dir`; see
    `pipeline.data.prepare.prepare` for the other arguments.

    The corpus's manifest has the bits per byte of a 5-gram model on validation and test: the baseline that a language
    model must beat.

    Args:
        shard_bytes: of text in a shard, about. None: LEAST_SHARD_BYTES, or more so that a split has at most MAX_SHARDS,
            since each shard keeps a file open.
    Raises:
        NotBuilt: with `only_find`, if a stage is not built.
        UserError: see `read_documents`, `train_text_tokenizer` and `stage`.
    """

    corpus_stage = stage(
        output_dir / "corpora",
        f"{corpus.name}-",
        {"format": FORMAT, "documents": documents_key(corpus)},
        documents_fingerprint(corpus),
        None if only_find else (lambda folder: _build_documents(folder, corpus, progress)),
    )
    return prepare_text_stages(
        corpus_stage, tokenizer, corpus.splits, output_dir, map_tasks, progress, shard_bytes, only_find
    )


def prepare_text_stages(
    corpus: Stage,
    tokenizer: TextTokenizerConfig,
    splits: tuple[str, ...],
    output_dir: Path,
    map_tasks: MapTasks,
    progress: Progress,
    shard_bytes: int | None,
    only_find: bool,
) -> Prepared:
    """The tokenizer and the shards of a corpus of texts; see `prepare_documents`.

    Args:
        corpus: its folder has the files of `write_documents`; all of its files are part of the shards' key.
    """
    hashes = {name: file["sha256"] for name, file in corpus.manifest["files"].items()}
    of_train = {name: value for name, value in hashes.items() if name in ("train.text", "train.ends.npy")}
    settings = without_defaults(tokenizer)
    settings.pop("path", None)  # the file's hash counts
    tokenizer_stage = stage(
        output_dir / "tokenizers",
        "",
        {"format": FORMAT, "text_tokenizer": settings},
        tokenizer_fingerprint(tokenizer) or of_train,
        None if only_find else (lambda folder: _build_tokenizer(folder, corpus.folder, tokenizer, progress)),
    )
    shards_stage = stage(
        output_dir / "shards",
        "",
        {"format": FORMAT, "shard_bytes": shard_bytes},
        hashes | {key: str(tokenizer_stage.manifest["counts"][key]) for key in ("sha256", "end_of_text")},
        None
        if only_find
        else (lambda folder: _build_shards(folder, splits, corpus, tokenizer_stage, shard_bytes, map_tasks, progress)),
    )
    return Prepared(corpus, tokenizer_stage, shards_stage)


def refuse_missing_documents(corpus: DocumentsConfig) -> None:
    """Checks that the files of all splits exist.

    Raises:
        UserError: a pattern matches no file.
    """
    if corpus.kind is DocumentsKind.text:
        for split in filter(corpus.has_own_data, corpus.splits):
            source_files(corpus, split)


def _build_documents(folder: Path, corpus: DocumentsConfig, progress: Progress) -> dict[str, Any]:
    splits: dict[str, dict[str, int]] = {}
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    read = 0
    for split in (*corpus.splits[1:], "train"):  # train last: it leaves out the documents of the other splits
        dropped = Dropped()
        known = evaluation_hashes(corpus) if split == "train" else None
        splits[split] = write_documents(folder, split, read_documents(corpus, split, dropped, known), progress)
        refuse_nothing_left(corpus, split, splits[split]["documents"], dropped)
        if split == "train":
            counts, examples = dropped.counts, dropped.examples
            read = splits[split]["documents"] + dropped.counts.total()
    held_out = {split: splits[split]["documents"] for split in corpus.splits[1:] if not corpus.has_own_data(split)}
    by_documents = sum(held_out.values()) if corpus.held_out.by is HeldOutBy.documents else 0
    return {
        "splits": {split: splits[split] for split in corpus.splits},
        "read": read + by_documents,
        "held_out": held_out,
        "dropped": dict(sorted(counts.items())),
        "examples": examples,
        "baselines": _baselines(folder, corpus.splits, progress),
    }


def _baselines(folder: Path, splits: tuple[str, ...], progress: Progress) -> dict[str, dict[str, float]]:
    """Bits per byte of a 5-gram model, by split and name."""
    if len(splits) == 1:
        return {}
    progress("count 5-grams", 0, len(splits) - 1)
    train = open_documents(folder, "train")
    is_part = int(train.num_bytes.sum()) > BASELINE_BYTES
    name = f"{BASELINE}, of {BASELINE_BYTES / 1e6:.0f} MB of train" if is_part else BASELINE
    model = train_ngram(_texts(train))
    baselines: dict[str, dict[str, float]] = {}
    for done, split in enumerate(splits[1:], start=1):
        documents = open_documents(folder, split)
        baselines[split] = {name: float(model.bits(documents).sum()) / int(documents.num_bytes.sum())}
        progress("count 5-grams", done, len(splits) - 1)
    return baselines


def _texts(documents: Documents) -> Iterator[str]:
    """Documents chosen by their hashes, at most BASELINE_BYTES of text."""
    for index in chosen_documents(documents, BASELINE_BYTES):
        yield documents.data(index)[:BASELINE_BYTES].decode(errors="ignore")


def _build_tokenizer(folder: Path, corpus: Path, tokenizer: TextTokenizerConfig, progress: Progress) -> dict[str, Any]:
    progress("train tokenizer", 0, 1)
    counts = train_text_tokenizer(open_documents(corpus, "train"), tokenizer, folder)
    progress("train tokenizer", 1, 1)
    return counts


def _build_shards(
    folder: Path,
    splits: tuple[str, ...],
    corpus: Stage,
    tokenizer: Stage,
    shard_bytes: int | None,
    map_tasks: MapTasks,
    progress: Progress,
) -> dict[str, Any]:
    tasks: list[DocumentsTask] = []
    size_of_all = 0
    for split in splits:
        size = corpus.manifest["counts"]["splits"][split]["bytes"]
        size_of_all += size
        each = shard_bytes or max(LEAST_SHARD_BYTES, -(-size // MAX_SHARDS))
        tasks += document_tasks(corpus.folder, tokenizer.folder, folder, split, each)
    totals: dict[str, dict[str, Any]] = {split: defaultdict(int) for split in splits}
    changed_example, done = "", 0
    total = sum(task.end - task.first for task in tasks)
    spread: MapTasks = map_tasks if size_of_all > FEW_BYTES else map
    for task, counts in zip(tasks, spread(tokenize_documents, tasks), strict=True):
        split = totals[task.split]
        split["shards"] += 1
        for name, count in asdict(counts).items():
            if name == "changed_example":
                changed_example = changed_example or count
            else:
                split[name] = max(split[name], count) if name == "longest" else split[name] + count
        done += task.end - task.first
        progress("tokenise", done, total)
    model = {name: tokenizer.manifest["counts"][name] for name in ("vocab_size", "sha256")}
    return {"splits": totals, "tokenizer": model, "changed_example": changed_example}
