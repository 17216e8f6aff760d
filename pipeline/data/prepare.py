"""Prepares tokenised shards from a corpus, in three stages; a stage with unchanged inputs and settings is skipped."""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transloom.pipeline.data.clean import CleanConfig, CleanReport, Invalid, clean_pairs
from transloom.pipeline.data.corpus import (
    SPLITS,
    CorpusConfig,
    corpus_fingerprint,
    count_mix,
    count_pairs,
    held_out_pairs,
    read_mix,
    read_own,
    read_pairs,
    refuse_wrong_files,
)
from transloom.pipeline.data.mix import MIX
from transloom.pipeline.data.overlap import Sides
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.shards import shard_tasks, tokenize_shard
from transloom.pipeline.data.tokenizer import MODEL_FILE, TokenizerConfig, existing_tokenizer, train_tokenizer
from transloom.pipeline.data.words import count_words
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import Stage, atomic_write, stage, without_defaults
from transloom.pipeline.progress import MapTasks, Progress, no_progress

# Parts of the keys below: CORPUS_FORMAT of the corpus, FORMAT of the other stages. Raise a format if equal settings no
# longer give the same files, or when a default changes: keys hold only settings that differ from the defaults.
FORMAT = 1
CORPUS_FORMAT = 2

FEW_PAIRS = 20_000  # are tokenised here, within a second or so: other processes would import for longer


@dataclass(frozen=True)
class Prepared:
    """The folders of the cleaned corpus, the tokenizer and the shards."""

    corpus: Stage
    tokenizer: Stage
    shards: Stage


def unit_of(counts: Mapping[str, Any]) -> str:
    """The name of a corpus's examples in its manifest's counts: pairs, documents, texts or examples."""
    return next(unit for unit in ("pairs", "documents", "texts", "examples") if unit in counts["splits"]["train"])


def prepare(
    corpus: CorpusConfig,
    clean: CleanConfig,
    tokenizer: TokenizerConfig,
    output_dir: Path,
    map_tasks: MapTasks = map,
    progress: Progress = no_progress,
    shard_pairs: int = 50_000,
    only_find: bool = False,
) -> Prepared:
    """Cleans the corpus, trains the tokenizer and tokenises everything, below `output_dir`.

    Folders: corpora/<name>-<hash>/ with train, validation and test as .source and .target (train cleaned, validation
    and test unchanged line for line; with corpus.mix also mix, cleaned as train), tokenizers/<hash>/ and
    shards/<hash>/. A changed setting makes new folders for the stages that depend on it; the other stages are found
    done.

    Args:
        map_tasks: as `map`, results in the order of the tasks; may run the tasks in parallel, in other processes that
            see `output_dir`.
        progress: called with (what, done, total); total is 0 while unknown.
        only_find: build nothing.

    Raises:
        NotBuilt: with `only_find`, if a stage is not built.
        UserError: see `read_pairs`, `train_tokenizer` and `stage`.
    """

    corpus_stage = stage(
        output_dir / "corpora",
        f"{corpus.name}-",
        {"format": CORPUS_FORMAT, "clean": without_defaults(clean), "held_out": _held_out_key(corpus)},
        corpus_fingerprint(corpus),
        None if only_find else (lambda folder: _build_corpus(folder, corpus, clean, progress)),
    )
    hashes = {name: file["sha256"] for name, file in corpus_stage.manifest["files"].items()}
    train_files = [corpus_stage.folder / f"train.{side}" for side in SentencePair._fields]
    if tokenizer.path:  # the file's hash counts, and no other setting
        learnt, learnt_from = {}, {MODEL_FILE: hashlib.sha256(existing_tokenizer(tokenizer.path)).hexdigest()}
    else:
        learnt, learnt_from = without_defaults(tokenizer), {file.name: hashes[file.name] for file in train_files}
    tokenizer_stage = stage(
        output_dir / "tokenizers",
        "",
        {"format": FORMAT, "tokenizer": learnt},
        learnt_from,
        None if only_find else (lambda folder: _build_tokenizer(folder, train_files, tokenizer, progress)),
    )
    shards_stage = stage(
        output_dir / "shards",
        "",
        {"format": FORMAT, "shard_pairs": shard_pairs},
        hashes | {MODEL_FILE: tokenizer_stage.manifest["counts"]["sha256"]},
        None
        if only_find
        else (lambda folder: _build_shards(folder, corpus_stage, tokenizer_stage, shard_pairs, map_tasks, progress)),
    )
    return Prepared(corpus_stage, tokenizer_stage, shards_stage)


def _held_out_key(corpus: CorpusConfig) -> dict[str, int]:
    return {split: corpus.held_out for split in SPLITS if not corpus.has_own_data(split)}


def _build_corpus(folder: Path, corpus: CorpusConfig, clean: CleanConfig, progress: Progress) -> dict[str, Any]:
    refuse_wrong_files(corpus)
    totals = {split: count_pairs(corpus, split) for split in SPLITS}  # refuses unequal sides of any split at once
    totals |= {MIX: count_mix(corpus)}
    report = CleanReport()

    def drop_or_refuse(reason: str, message: str) -> None:
        if reason != "too_long" and clean.invalid is Invalid.error:
            raise UserError(f"{message} Mend it, or set clean.invalid=drop to leave such pairs out of train.")
        report.drop(reason, message)

    # Unreadable pairs are counted while train is read, not while held-out pairs are chosen.
    held_out = held_out_pairs(corpus, drop_or_refuse)
    report = CleanReport()
    splits: dict[str, Any] = {}
    is_same_language = corpus.source_language == corpus.target_language
    validation, evaluation, test_in_validation = Sides(), Sides(), 0
    for split in ("validation", "test"):  # before train, which must not contain their sentences

        def noted(split: str = split) -> Iterator[SentencePair]:
            nonlocal test_in_validation
            for pair in read_pairs(corpus, split, held_out=held_out):
                if split == "validation":
                    validation.add(pair)
                else:
                    test_in_validation += validation.share(pair)
                evaluation.add(pair)
                yield pair

        splits[split] = _write_pairs(folder, split, noted(), totals[split], is_same_language, progress)
    rows = read_own(corpus, "train", drop_or_refuse)
    taken = [pair for pairs in held_out.values() for pair in pairs]
    kept = clean_pairs(rows, clean, report, evaluation, taken)
    splits["train"] = _write_pairs(
        folder, "train", kept, totals["train"], is_same_language, progress, lambda: report.read
    )
    dropped = dict(sorted(report.dropped.items()))
    if not report.kept:
        examples = "".join(f"\n  {rule}: {example}" for rule, example in report.examples.items())
        raise UserError(
            f"corpus {corpus.name}: no training pair is left after cleaning; dropped: {dropped or 'none'}{examples}"
        )
    own_report, mix = report, {}
    if corpus.mix.share:
        report = CleanReport()
        rows = read_mix(corpus, drop_or_refuse)
        kept = clean_pairs(rows, clean, report, evaluation)
        splits[MIX] = _write_pairs(folder, MIX, kept, totals[MIX], is_same_language, progress, lambda: report.read)
        mix = {MIX: {"read": report.read, "dropped": dict(sorted(report.dropped.items()))}}
        report = own_report
    for split in splits:
        if not splits[split]["pairs"]:
            raise UserError(f"corpus.{split}: has no pairs")
    return {
        "splits": {split: splits[split] for split in (*SPLITS, MIX) if split in splits},
        **mix,
        "read": report.read,
        "held_out": {split: len(pairs) for split, pairs in held_out.items()},
        "dropped": dropped,
        "examples": report.examples,
        "contaminated": report.contaminated,
        "test_in_validation": test_in_validation,
    }


def _write_pairs(
    folder: Path,
    split: str,
    pairs: Iterable[SentencePair],
    total: int,
    is_same_language: bool,
    progress: Progress,
    read: Callable[[], int] | None = None,
) -> dict[str, int]:
    """Writes a split's two files.

    Args:
        total: number of pairs to read, 0 if unknown.
        read: returns the number of pairs read so far; None where all pairs that are read are written.
    Raises:
        UserError: the sides of most pairs are equal, though their languages are not.
    """
    counts = {"pairs": 0, "source_words": 0, "target_words": 0}
    equal = 0
    with ExitStack() as files:
        source, target = (
            files.enter_context(atomic_write(folder / f"{split}.{side}")) for side in SentencePair._fields
        )
        for pair in pairs:
            source.write(pair.source.encode() + b"\n")
            target.write(pair.target.encode() + b"\n")
            counts["pairs"] += 1
            counts["source_words"] += count_words(pair.source)
            counts["target_words"] += count_words(pair.target)
            equal += pair.source == pair.target
            if counts["pairs"] % 10_000 == 0:
                progress(f"clean {split}", read() if read else counts["pairs"], total)
    done = read() if read else counts["pairs"]
    progress(f"clean {split}", done, done)
    if 2 * equal > counts["pairs"] and not is_same_language:
        raise UserError(
            f"corpus.{split}: source and target are equal in {equal:,} of {counts['pairs']:,} pairs: nothing is "
            "translated. Check which file or column is which language; where both sides are meant to be one language, "
            "set corpus.source_language and corpus.target_language to the same."
        )
    return counts


def _build_tokenizer(folder: Path, files: list[Path], tokenizer: TokenizerConfig, progress: Progress) -> dict[str, Any]:
    progress("train tokenizer", 0, 1)
    counts = train_tokenizer(files, tokenizer, folder)
    progress("train tokenizer", 1, 1)
    return counts


def _build_shards(
    folder: Path, corpus: Stage, tokenizer: Stage, shard_pairs: int, map_tasks: MapTasks, progress: Progress
) -> dict[str, Any]:
    present = [split for split in (*SPLITS, MIX) if split in corpus.manifest["counts"]["splits"]]
    tasks = [
        task for split in present for task in shard_tasks(corpus.folder, tokenizer.folder, folder, split, shard_pairs)
    ]
    total = sum(task.pairs for task in tasks)
    done = 0
    splits: dict[str, dict[str, int]] = {split: defaultdict(int) for split in present}
    spread: MapTasks = map_tasks if total > FEW_PAIRS else map
    for task, counts in zip(tasks, spread(tokenize_shard, tasks), strict=True):
        split = splits[task.split]
        split["shards"] += 1
        for name, count in dataclasses.asdict(counts).items():
            split[name] = max(split[name], count) if name.startswith("longest") else split[name] + count
        done += task.pairs
        progress("tokenise", done, total)
    model = {name: tokenizer.manifest["counts"][name] for name in ("vocab_size", "sha256")}
    return {"splits": splits, "tokenizer": model}
