"""The decoding part of a language model's bench: ours and Hugging Face continue the same prompts with the same weights,
greedily and with a cache."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from transloom.jobs.bench.contenders import cores, environment
from transloom.jobs.ray_cluster.machine import native_precisions
from transloom.pipeline.bench.config import BenchConfig
from transloom.pipeline.bench.continuations import Continued, ContinueTask, Prompts, make_continuer
from transloom.pipeline.bench.report import Ratio, Spread
from transloom.pipeline.bench.search import Program
from transloom.pipeline.data.document_store import open_documents
from transloom.pipeline.errors import UserError
from transloom.pipeline.huggingface import write_huggingface
from transloom.pipeline.model_folder import load_language_model
from transloom.pipeline.processes import Meeting
from transloom.pipeline.progress import Progress

PROMPT_TOKENS, PROMPT_BYTES = 24, 400
BATCHES = (1, 32)  # prompts side by side: one that waits, and many
GOAL = 1.0  # no slower than Hugging Face's generate
LABELS = {Program.ours: "ours", Program.ours_bf16: "ours in bf16", Program.huggingface: "Hugging Face"}


def measure_continuing(
    model: Path, corpus: Path, bench: BenchConfig, use_gpu: bool, progress: Progress
) -> dict[str, Any]:
    """Lets both continue beginnings of test documents in turns, in fp32, and ours in bf16 where the device has it.

    Each prompt is continued by half of the context, at most by 128 tokens; `bench.sentences` prompts at most, a tenth
    of them where they are continued one by one.

    Args:
        model: a model folder. corpus: its prepared documents.
    Raises:
        UserError: the model is no language model, the test documents are too short, or a contender died.
    """
    loaded = load_language_model(model, torch.device("cpu"), torch.float32)
    config = loaded.model.config
    length = min(PROMPT_TOKENS, max(1, config.max_positions // 4))
    prompts = _prompts(corpus, loaded.tokenizer, length, bench.sentences)
    new_tokens = min(128, config.max_positions // 2)
    notes: list[str] = []
    with ExitStack() as stack:
        written = Path(stack.enter_context(TemporaryDirectory(prefix="transloom-bench-")))
        folders = {Program.ours: model, Program.ours_bf16: model}
        if "bf16" not in native_precisions(use_gpu):
            del folders[Program.ours_bf16]
            notes.append(f"{LABELS[Program.ours_bf16]} is left out: this device has no instructions for bf16")
        try:
            write_huggingface(written, config, loaded.model.vocab_size, loaded.model.state_dict())
            folders[Program.huggingface] = written
        except UserError as error:
            notes.append(f"{LABELS[Program.huggingface]} is left out: {error}")
        del loaded
        meeting = stack.enter_context(Meeting())
        names = {LABELS[program]: ContinueTask(program, str(folder), use_gpu) for program, folder in folders.items()}
        lost = {name: meeting.start_processes(name, 1, environment(cores())) for name in names}
        contenders = {name: meeting.meet(name, 1, lost[name]) for name in names}
        for name, contender in contenders.items():
            contender.send(partial(make_continuer, names[name]))
        for contender in contenders.values():
            contender.receive()
        requests = {
            1: Prompts(prompts[: max(1, len(prompts) // 10)], new_tokens, 1),
            BATCHES[1]: Prompts(prompts, new_tokens, BATCHES[1]),
        }
        for name, contender in contenders.items():
            progress(f"warming up {name}", 0, 0)
            contender.ask(dataclasses.replace(requests[BATCHES[1]], prompts=prompts[: BATCHES[1]]))
        found: dict[str, dict[int, list[Continued]]] = {name: {batch: [] for batch in BATCHES} for name in names}
        total, done = bench.rounds * len(BATCHES) * len(names), 0
        for number in range(bench.rounds):
            for batch in BATCHES:
                for name in list(names) if number % 2 == 0 else list(names)[::-1]:
                    progress(f"decoding, round {number + 1} of {bench.rounds}, batch {batch}: {name}", done, total)
                    found[name][batch] += contenders[name].ask(requests[batch])
                    done += 1
    return {
        "model": str(model),
        "prompts": len(prompts),
        "prompt_tokens": length,
        "new_tokens": new_tokens,
        "contenders": {
            name: {str(batch): _row(turns, found[LABELS[Program.ours]][batch]) for batch, turns in by_batch.items()}
            for name, by_batch in found.items()
        },
        "ratios": [one.as_dict() for one in _ratios(found)],
        "notes": notes,
    }


def _prompts(corpus: Path, tokenizer: Any, length: int, count: int) -> list[list[int]]:
    """The first `length` tokens of documents from all over the test set, and where these are few, of later parts.

    Raises:
        UserError: no document is so long.
    """
    documents = open_documents(corpus, "test" if (corpus / "test.ends.npy").exists() else "validation")
    found: list[list[int]] = []
    for index in range(len(documents)):
        data = documents.data(index)
        starts = range(0, max(1, len(data)), max(PROMPT_BYTES, len(data) * len(documents) // count))
        texts = [data[start : start + PROMPT_BYTES].decode(errors="ignore") for start in starts]
        found += [ids[:length].tolist() for ids in tokenizer.encode(texts) if len(ids) >= length]
    if not found:
        raise UserError(f"corpus.test: no document has the {length} tokens of a prompt")
    return [found[len(found) * i // count] for i in range(count)] if len(found) > count else found


def _speed(turns: Sequence[Continued]) -> list[float]:
    return [sum(map(len, one.tokens)) / one.seconds for one in turns]


def _row(turns: Sequence[Continued], ours: Sequence[Continued]) -> dict[str, Any]:
    same = [one == other for one, other in zip(turns[0].tokens, ours[0].tokens, strict=True)]
    return {
        "tokens_per_second": dataclasses.asdict(Spread.of(_speed(turns))),
        "identical_to_ours": sum(same) / len(same),
        "peak_bytes": max(one.peak_bytes for one in turns),
    }


def _ratios(found: dict[str, dict[int, list[Continued]]]) -> list[Ratio]:
    """Ours in fp32 over Hugging Face."""
    if LABELS[Program.huggingface] not in found:
        return []
    ratios = []
    for batch in BATCHES:
        ours, theirs = (_speed(found[LABELS[program]][batch]) for program in (Program.ours, Program.huggingface))
        spread = Spread.of([one / other for one, other in zip(ours, theirs, strict=True)])
        what = f"tokens/s, {batch} at a time: ours / Hugging Face"
        ratios.append(Ratio(what, median(ours) / median(theirs), spread, GOAL))
    return ratios
