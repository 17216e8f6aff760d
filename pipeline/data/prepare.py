"""Prepares tokenised shards from a corpus, in three stages; a stage with unchanged inputs and settings is skipped."""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from transloom.pipeline.data.clean import CleanConfig, CleanReport
from transloom.pipeline.data.clean_portions import Rules, clean_split, invalid_line
from transloom.pipeline.data.corpus import (
    corpus_fingerprint,
    count_mix,
    count_pairs,
    mix_portions,
    refuse_wrong_files,
    source_tags,
    split_portions,
    split_sources,
)
from transloom.pipeline.data.corpus_config import SPLITS, CorpusConfig, CorpusKind
from transloom.pipeline.data.held_out import HeldOut, hold_out, read_pairs
from transloom.pipeline.data.mix import MIX
from transloom.pipeline.data.overlap import Sides
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.scripts import scripts_of
from transloom.pipeline.data.shards import done_shard, shard_tasks, tokenize_shard
from transloom.pipeline.data.sources import Source, source_bytes
from transloom.pipeline.data.tokenizer import MODEL_FILE, TokenizerConfig, existing_tokenizer, train_tokenizer
from transloom.pipeline.data.words import count_words
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import Stage, atomic_write, kept_work, stage, without_defaults
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

    corpus_stage = prepare_corpus(corpus, clean, output_dir, map_tasks, progress, only_find)
    hashes = {name: file["sha256"] for name, file in corpus_stage.manifest["files"].items()}
    train_files = [corpus_stage.folder / f"train.{side}" for side in SentencePair._fields]
    if tokenizer.path:  # the file's hash counts, and no other setting
        learnt, learnt_from = {}, {MODEL_FILE: hashlib.sha256(existing_tokenizer(tokenizer.path)).hexdigest()}
    else:
        learnt, learnt_from = without_defaults(tokenizer), {file.name: hashes[file.name] for file in train_files}
    tags = sorted({tag for split in SPLITS for tag in source_tags(corpus, split)})
    if tags and not tokenizer.path:
        learnt["tags"] = tags
    tokenizer_stage = stage(
        output_dir / "tokenizers",
        "",
        {"format": FORMAT, "tokenizer": learnt},
        learnt_from,
        None if only_find else (lambda folder: _build_tokenizer(folder, train_files, tokenizer, tags, progress)),
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


def prepare_corpus(
    corpus: CorpusConfig,
    clean: CleanConfig,
    output_dir: Path,
    map_tasks: MapTasks = map,
    progress: Progress = no_progress,
    only_find: bool = False,
) -> Stage:
    """The first stage of `prepare`: the cleaned corpus."""
    return stage(
        output_dir / "corpora",
        f"{corpus.name}-",
        {"format": CORPUS_FORMAT, "clean": without_defaults(clean), "held_out": _held_out_key(corpus)},
        corpus_fingerprint(corpus),
        None if only_find else (lambda folder: _build_corpus(folder, corpus, clean, map_tasks, progress)),
    )


def _held_out_key(corpus: CorpusConfig) -> dict[str, int]:
    return {split: corpus.held_out for split in SPLITS if not corpus.has_own_data(split)}


def _build_corpus(
    folder: Path, corpus: CorpusConfig, clean: CleanConfig, map_tasks: MapTasks, progress: Progress
) -> dict[str, Any]:
    refuse_wrong_files(corpus)
    _refuse_unknown_scripts(corpus, clean)
    totals = {split: count_pairs(corpus, split) for split in SPLITS}  # refuses unequal sides of any split at once
    held_out = hold_out(corpus, partial(invalid_line, clean.invalid), map_tasks)
    splits: dict[str, Any] = {}
    is_same_language = corpus.source_language == corpus.target_language
    validation, test_in_validation = Sides(), 0
    for split in ("validation", "test"):  # before train, which must not contain their sentences

        def noted(split: str = split) -> Iterator[SentencePair]:
            nonlocal test_in_validation
            for pair in read_pairs(corpus, split, held_out=held_out.pairs):
                if split == "validation":
                    validation.add(pair)
                else:
                    test_in_validation += validation.share(pair)
                yield pair

        splits[split] = _write_pairs(folder, split, noted(), totals[split], is_same_language, progress)
        if not splits[split]["pairs"]:
            raise UserError(f"corpus.{split}: has no pairs")
    sources = split_sources(corpus, "train")
    languages = tuple(source.languages for source in sources) or (corpus.languages,)
    rules = Rules(clean, languages, folder, tuple(held_out.pairs), source_tags(corpus, "train"))
    with kept_work(folder) as work:
        splits["train"], reports, report = clean_split(
            *(split_portions(corpus, "train"), "train", folder, work, rules, held_out),
            *(map_tasks, progress, totals["train"], sum(map(source_bytes, sources))),
        )
        dropped = dict(sorted(report.dropped.items()))
        if not report.kept:
            examples = "".join(f"\n  {rule}: {some[0]}" for rule, some in report.examples.items())
            raise UserError(
                f"corpus {corpus.name}: no training pair is left after cleaning; dropped: {dropped or 'none'}{examples}"
            )
        _refuse_equal_sides("train", report.equal, report.kept, is_same_language)
        mix = {}
        if corpus.mix.share:
            tags = (f"<2{corpus.target_language}>",) if corpus.language_tags else ()
            counts, _, of_mix = clean_split(
                *(mix_portions(corpus), MIX, folder, work, replace(rules, languages=(corpus.languages,), tags=tags)),
                *(HeldOut({}, {}), map_tasks, progress, count_mix(corpus), 0),
            )
            _refuse_equal_sides(MIX, of_mix.equal, of_mix.kept, is_same_language)
            if not of_mix.kept:
                raise UserError(f"corpus.{MIX}: has no pairs")
            splits[MIX] = counts
            mix = {MIX: {"read": of_mix.read, "dropped": dict(sorted(of_mix.dropped.items()))}}
    named = {} if corpus.kind is not CorpusKind.sources else {"sources": _counts_of_sources(sources, reports)}
    return {
        "splits": {split: splits[split] for split in (*SPLITS, MIX) if split in splits},
        **mix,
        **named,
        "read": report.read,
        "held_out": {split: len(pairs) for split, pairs in held_out.pairs.items()},
        "dropped": dropped,
        "changed": dict(sorted(report.changed.items())),
        "examples": report.examples,
        "contaminated": report.contaminated,
        "test_in_validation": test_in_validation,
    }


def _counts_of_sources(sources: Sequence[Source], reports: Sequence[CleanReport]) -> list[dict[str, Any]]:
    """The counts of each source of train, whose pairs come one source after another."""
    return [
        {
            "name": source.config.name,
            "licence": source.config.licence,
            "read": report.read,
            "pairs": report.kept,
            "held_out": report.held_out,
            "dropped": dict(sorted(report.dropped.items())),
        }
        for source, report in zip_longest(sources, reports, fillvalue=CleanReport())
        if isinstance(source, Source) and isinstance(report, CleanReport)
    ]


def _refuse_unknown_scripts(corpus: CorpusConfig, clean: CleanConfig) -> None:
    """
    Raises:
        UserError: clean.min_script is set, and a language's script is not known.
    """
    sources = split_sources(corpus, "train") if clean.min_script else ()
    for language in {language for source in sources for language in source.languages}:
        try:
            scripts_of(language)
        except ValueError as error:
            raise UserError(f"clean.min_script: {error}; or set clean.min_script=0") from None


def _write_pairs(
    folder: Path,
    split: str,
    pairs: Iterable[SentencePair],
    total: int,
    is_same_language: bool,
    progress: Progress,
) -> dict[str, int]:
    """Writes the two files of a split that is not cleaned.

    Args:
        total: number of pairs to read, 0 if unknown.
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
                progress(f"clean {split}", counts["pairs"], total)
    progress(f"clean {split}", counts["pairs"], counts["pairs"])
    _refuse_equal_sides(split, equal, counts["pairs"], is_same_language)
    return counts


def _refuse_equal_sides(split: str, equal: int, pairs: int, is_same_language: bool) -> None:
    if 2 * equal > pairs and not is_same_language:
        raise UserError(
            f"corpus.{split}: source and target are equal in {equal:,} of {pairs:,} pairs: nothing is translated. "
            "Check which file or column is which language; where both sides are meant to be one language, set "
            "corpus.source_language and corpus.target_language to the same."
        )


def _build_tokenizer(
    folder: Path, files: list[Path], tokenizer: TokenizerConfig, tags: Sequence[str], progress: Progress
) -> dict[str, Any]:
    progress("train tokenizer", 0, 1)
    counts = train_tokenizer(files, tokenizer, folder, tags)
    progress("train tokenizer", 1, 1)
    return counts


def _build_shards(
    folder: Path, corpus: Stage, tokenizer: Stage, shard_pairs: int, map_tasks: MapTasks, progress: Progress
) -> dict[str, Any]:
    present = [split for split in (*SPLITS, MIX) if split in corpus.manifest["counts"]["splits"]]
    splits: dict[str, dict[str, int]] = {split: defaultdict(int) for split in present}
    with kept_work(folder) as work:
        tasks = [
            task for split in present for task in shard_tasks(corpus.folder, tokenizer.folder, work, split, shard_pairs)
        ]
        total = sum(task.pairs for task in tasks)
        before = [done_shard(task) for task in tasks]
        left = [task for task, counts in zip(tasks, before, strict=True) if counts is None]
        spread: MapTasks = map_tasks if total > FEW_PAIRS else map
        fresh = spread(tokenize_shard, left)
        done = num_tokens = 0
        for task, earlier in zip(tasks, before, strict=True):
            counts = earlier or next(fresh)
            split = splits[task.split]
            split["shards"] += 1
            for name, count in dataclasses.asdict(counts).items():
                split[name] = max(split[name], count) if name.startswith("longest") else split[name] + count
            done += task.pairs
            num_tokens += counts.source_tokens + counts.target_tokens
            progress("tokenise", done, total, f"{num_tokens:,} tokens")
        for file in work.glob("*.npy"):
            file.rename(folder / file.name)
    model = {name: tokenizer.manifest["counts"][name] for name in ("vocab_size", "sha256")}
    return {"splits": splits, "tokenizer": model}
