"""Prepares tokenised prompts and responses, in three stages; a stage with unchanged inputs and settings is skipped.

The corpus has each split's texts as documents (`document_store`), of example i the prompt at 2i and the response at
2i + 1, and the allowed responses of validation and test in <split>.answers.jsonl, a list a line. Shards have the
columns prompt and response; a response ends in the end of text.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transloom.pipeline.data.clean import shortened
from transloom.pipeline.data.document_store import open_documents, write_documents
from transloom.pipeline.data.documents import document_hash
from transloom.pipeline.data.lines import read_lines
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.data.prompts import (
    SPLITS,
    Example,
    PromptsConfig,
    Template,
    prompts_fingerprint,
    prompts_key,
    read_examples,
)
from transloom.pipeline.data.records import record_files
from transloom.pipeline.data.shards import shard_name, write_shard
from transloom.pipeline.data.text_tokenizer import (
    TextTokenizer,
    TextTokenizerConfig,
    load_text_tokenizer,
    tokenizer_fingerprint,
    train_text_tokenizer,
)
from transloom.pipeline.disk import explain_full_disk
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import Stage, atomic_write, stage, without_defaults
from transloom.pipeline.progress import MapTasks, Progress, no_progress

FORMAT = 1  # part of every key below; to be raised when the same settings no longer give the same files
COLUMNS = ("prompt", "response")
EXAMPLES_PER_SHARD = 20_000
MOST_KEPT = 100_000  # examples of train in memory, for the baselines

# (train, examples of a split) to the scores of simple responses by the baselines' names.
Baselines = Callable[[PromptsConfig, Sequence[Example], Sequence[Example]], Mapping[str, float]]


def prepare_prompts(
    corpus: PromptsConfig,
    tokenizer: TextTokenizerConfig,
    output_dir: Path,
    baselines: Baselines,
    map_tasks: MapTasks = map,
    progress: Progress = no_progress,
    shard_examples: int = EXAMPLES_PER_SHARD,
    only_find: bool = False,
) -> Prepared:
    """Reads the records, learns the tokenizer and tokenises everything, below `output_dir`; see
    `pipeline.data.prepare.prepare` for the other arguments. The corpus's manifest has the baselines' scores.

    Raises:
        NotBuilt: with `only_find`, if a stage is not built.
        UserError: see `read_examples`, `train_text_tokenizer` and `stage`; or a split has no examples.
    """
    corpus_stage = stage(
        output_dir / "corpora",
        f"{corpus.name}-",
        {"format": FORMAT, "prompts": prompts_key(corpus)},
        prompts_fingerprint(corpus),
        None if only_find else (lambda folder: _build_corpus(folder, corpus, baselines, progress)),
    )
    hashes = {name: file["sha256"] for name, file in corpus_stage.manifest["files"].items()}
    settings = without_defaults(tokenizer)
    settings.pop("path", None)  # the file's hash counts
    tokenizer_stage = stage(
        output_dir / "tokenizers",
        "",
        {"format": FORMAT, "text_tokenizer": settings, "documents": "prompts"},
        tokenizer_fingerprint(tokenizer)
        or {name: value for name, value in hashes.items() if name.startswith("train.")},
        None if only_find else (lambda folder: _build_tokenizer(folder, corpus_stage.folder, tokenizer, progress)),
    )
    of_training = {
        "tail": corpus_stage.manifest["counts"]["tail"],
        "metric": corpus.metric.value,
        "max_response_tokens": corpus.max_response_tokens,
        "too_long": corpus.too_long.value,
        "validation_examples": corpus.validation_examples,
    }
    shards_stage = stage(
        output_dir / "shards",
        "",
        # What a run depends on beside the shards themselves makes other shards: a run is named by its shards.
        {"format": FORMAT, "prompts": of_training, "shard_examples": shard_examples},
        hashes | {key: str(tokenizer_stage.manifest["counts"][key]) for key in ("sha256", "end_of_text")},
        None
        if only_find
        else (lambda folder: _build_shards(folder, corpus_stage, tokenizer_stage, shard_examples, map_tasks, progress)),
    )
    return Prepared(corpus_stage, tokenizer_stage, shards_stage)


def refuse_missing_records(corpus: PromptsConfig) -> None:
    """Checks that the files of all splits exist.

    Raises:
        UserError: a pattern matches no file, or train has no files.
    """
    for split in SPLITS:
        if corpus.has_own_data(split):
            try:
                record_files(corpus.source(split), f"corpus.{split}")
            except UserError as error:
                if corpus.path is not None or any("/" in pattern for pattern in corpus.source(split).patterns):
                    raise
                raise UserError(f"{error} The files' folder is set by corpus.path=<folder>.") from None
    next(read_examples(corpus, "train"), None)


def open_answers(corpus: Path, split: str) -> list[list[str]]:
    """The allowed responses of each example of validation or test."""
    return [json.loads(line) for line in read_lines(corpus / f"{split}.answers.jsonl")]


def open_texts(corpus: Path, split: str) -> tuple[list[str], list[str]]:
    """The prompts and the responses of a split."""
    texts = list(open_documents(corpus, split))
    return texts[::2], texts[1::2]


def encode_prompts(tokenizer: TextTokenizer, prompts: Sequence[str], tail: str) -> list[np.ndarray]:
    """The ids of prompts, whose tail is tokenised apart from what stands before it: so cutting can spare it."""
    ends = tokenizer.encode([tail])[0] if tail else np.empty(0, np.int32)
    bodies = tokenizer.encode([prompt.removesuffix(tail) if tail else prompt for prompt in prompts])
    return [np.concatenate([ids, ends]) for ids in bodies]


def _build_corpus(folder: Path, corpus: PromptsConfig, baselines: Baselines, progress: Progress) -> dict[str, Any]:
    template = Template.of(corpus.template)
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    splits: dict[str, dict[str, int]] = {}
    evaluation: dict[bytes, str] = {}
    of_split: dict[str, list[Example]] = {}

    def texts(split: str) -> Iterator[str]:
        for example in read_examples(corpus, split):
            prompt, response = template.prompt(example.fields), example.answers[0]
            digest = document_hash(f"{prompt}\0{response}")
            if split != "train":
                evaluation[digest] = split
            else:
                if digest in evaluation:
                    counts[f"in_{evaluation[digest]}"] += 1
                reason = (
                    "empty_response"
                    if not response.strip()
                    else f"in_{evaluation[digest]}"
                    if digest in evaluation and not corpus.keep_overlap
                    else None
                )
                if reason is not None:
                    dropped[reason] += 1
                    examples.setdefault(reason, f"{example.place}: {shortened(prompt)}")
                    continue
            if split != "train" or len(of_split[split]) < MOST_KEPT:
                of_split[split].append(example)
            yield prompt
            yield response

    dropped: Counter[str] = Counter()
    for split in (*corpus.splits[:0:-1], "train"):  # train last: it leaves out the records of the other splits
        of_split[split] = []
        written = write_documents(folder, split, texts(split), progress)
        splits[split] = {"examples": written["documents"] // 2, "bytes": written["bytes"]}
        if not splits[split]["examples"]:
            shown = "".join(f"\n  {reason}: {example}" for reason, example in examples.items())
            raise UserError(f"corpus.{split}: has no examples; left out: {dict(dropped) or 'none'}{shown}")
        if split != "train":
            _write_answers(folder / f"{split}.answers.jsonl", (example.answers for example in of_split[split]))
    is_own = corpus.has_own_data("validation") or corpus.has_all_splits
    held_out = {} if is_own else {"validation": splits["validation"]["examples"]}
    progress("baselines", 0, 1)
    scores = {split: dict(baselines(corpus, of_split["train"], of_split[split])) for split in corpus.splits[1:]}
    progress("baselines", 1, 1)
    return {
        "splits": {split: splits[split] for split in corpus.splits},
        "read": splits["train"]["examples"] + dropped.total() + sum(held_out.values()),
        "held_out": held_out,
        "dropped": dict(sorted(dropped.items())),
        "examples": examples,
        "overlap": dict(sorted(counts.items())),
        "tail": template.tail,
        "baselines": {split: of_baselines for split, of_baselines in scores.items() if of_baselines},
    }


def _write_answers(file: Path, answers: Iterable[Sequence[str]]) -> None:
    with atomic_write(file) as opened:
        for allowed in answers:
            opened.write(json.dumps(list(allowed), ensure_ascii=False).encode() + b"\n")


def _build_tokenizer(folder: Path, corpus: Path, tokenizer: TextTokenizerConfig, progress: Progress) -> dict[str, Any]:
    progress("train tokenizer", 0, 1)
    counts = train_text_tokenizer(open_documents(corpus, "train"), tokenizer, folder)
    progress("train tokenizer", 1, 1)
    return counts


@dataclass(frozen=True)
class _ShardTask:
    """One shard's share of a split: the examples from `first` to before `end`."""

    corpus: str
    tokenizer: str
    output: str
    tail: str
    split: str
    index: int
    first: int
    end: int


@dataclass(frozen=True)
class _ShardCounts:
    """The counts of a shard; a response's tokens include the end of text."""

    examples: int
    prompt_tokens: int
    response_tokens: int
    longest_prompt: int
    longest_response: int


def _build_shards(
    folder: Path, corpus: Stage, tokenizer: Stage, shard_examples: int, map_tasks: MapTasks, progress: Progress
) -> dict[str, Any]:
    counts = corpus.manifest["counts"]
    folders = (str(corpus.folder), str(tokenizer.folder), str(folder))
    tasks = [
        _ShardTask(*folders, counts["tail"], split, index, first, min(first + shard_examples, size["examples"]))
        for split, size in counts["splits"].items()
        for index, first in enumerate(range(0, size["examples"], shard_examples))
    ]
    total, done = sum(task.end - task.first for task in tasks), 0
    splits: dict[str, dict[str, int]] = {split: defaultdict(int) for split in counts["splits"]}
    for task, of_shard in zip(tasks, map_tasks(_tokenize, tasks), strict=True):
        split = splits[task.split]
        split["shards"] += 1
        for name, count in asdict(of_shard).items():
            split[name] = max(split[name], count) if name.startswith("longest") else split[name] + count
        done += task.end - task.first
        progress("tokenise", done, total)
    model = {name: tokenizer.manifest["counts"][name] for name in ("vocab_size", "sha256")}
    tail = load_text_tokenizer(tokenizer.folder).encode([counts["tail"]])[0]
    return {"splits": splits, "tokenizer": model, "tail_tokens": len(tail)}


def _tokenize(task: _ShardTask) -> _ShardCounts:
    """Runs on any machine that sees the folders."""
    tokenizer = load_text_tokenizer(Path(task.tokenizer))
    documents = open_documents(Path(task.corpus), task.split)
    prompts = encode_prompts(tokenizer, [documents[2 * i] for i in range(task.first, task.end)], task.tail)
    end = np.array([tokenizer.end_of_text], dtype=np.int32)
    texts = [documents[2 * i + 1] for i in range(task.first, task.end)]
    responses = [np.concatenate([ids, end]) for ids in tokenizer.encode(texts)]
    folder = Path(task.output)
    with explain_full_disk(folder):
        for column, of_column in zip(COLUMNS, (prompts, responses), strict=True):
            write_shard(folder, shard_name(task.split, task.index), column, of_column, tokenizer.vocab_size)
    lengths = [[len(ids) for ids in column] for column in (prompts, responses)]
    return _ShardCounts(len(prompts), sum(lengths[0]), sum(lengths[1]), max(lengths[0]), max(lengths[1]))
