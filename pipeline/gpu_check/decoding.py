"""Beam search with the demo's model: ours, and the `generate` of Hugging Face's Marian with the same weights."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import torch

from transloom.pipeline.bench.report import Spread
from transloom.pipeline.bench.search import Found, Program, Request, SearchTask, make_searcher
from transloom.pipeline.data.tokenizer import Tokenizer
from transloom.pipeline.evaluate.scores import score
from transloom.pipeline.evaluate.tokenizers import tokenizer_for
from transloom.pipeline.export import Format, export
from transloom.pipeline.files import read_json
from transloom.pipeline.gpu_check.demo import MODEL, read_test_set
from transloom.pipeline.gpu_check.outcome import Outcome, Skipped, Target
from transloom.pipeline.gpu_check.settings import DecodingSize

LABELS = {Program.ours: "ours", Program.ours_bf16: "ours in bf16", Program.huggingface: "Marian"}
WARM_UP_SENTENCES = 32


def measure_decoding(size: DecodingSize, device: torch.device, demo: Path, folder: Path) -> Outcome:
    """All translate the demo's test set in turns, in fp32, and ours in bf16 too.

    A last pass without a length penalty, of which each has a formula of its own, says which translations are the same.

    Args:
        demo: the folder of `run_demo`. folder: for the exported model.
    Raises:
        Skipped: the demo has left no model.
    """
    if not (demo / MODEL / "config.json").exists():
        raise Skipped("the demo has left no model")
    sources, references = read_test_set(demo)
    tokenizer = Tokenizer.load(demo / MODEL)
    tokenize = tokenizer_for(read_json(demo / MODEL / "config.json")["target_language"])
    ids = tokenizer.encode(sources)
    export(demo / MODEL, folder / "marian", Format.huggingface)
    searches = {
        program: _search(program, folder / "marian" if program is Program.huggingface else demo / MODEL, device)
        for program in LABELS
    }
    for search in searches.values():
        search(Request(ids[:WARM_UP_SENTENCES], size.decode))
    found: dict[Program, list[Found]] = {program: [] for program in LABELS}
    for number in range(size.rounds):
        for program in list(LABELS) if number % 2 == 0 else list(LABELS)[::-1]:
            found[program].append(searches[program](Request(ids, size.decode)))
    exact = replace(size.decode, length_penalty=0.0)
    targets = {program: search(Request(ids, exact)).targets for program, search in searches.items()}

    speed = {program: Spread.of([len(ids) / one.seconds for one in rounds]) for program, rounds in found.items()}
    same = {program: _same(targets[program], targets[Program.ours]) for program in LABELS}
    figures = {
        LABELS[program]: {
            "sentences_per_second": asdict(speed[program]),
            "bleu": score(tokenizer.decode(found[program][0].targets), references, tokenize=tokenize)["bleu"].value,
            "identical_to_ours_without_length_penalty": same[program],
        }
        for program in LABELS
    }
    ratio = median(one.seconds for one in found[Program.huggingface]) / median(
        one.seconds for one in found[Program.ours]
    )
    figures |= {"sentences": len(ids), "beam": size.decode.beam, "ours_over_marian": ratio}
    told = ", ".join(f"{label} {speed[program].median:,.1f}" for program, label in LABELS.items())
    summary = f"beam {size.decode.beam}: {told} sentences/s; {same[Program.huggingface]:.1%} of Marian's lines as ours"
    wanted = [Target("share of Marian's lines as ours", same[Program.huggingface], size.goal)] if size.goal else []
    return Outcome(summary, figures, wanted)


def _search(program: Program, folder: Path, device: torch.device) -> Callable[[Request], Found]:
    search, _ = make_searcher(SearchTask(program, str(folder), 1, 1, use_gpu=device.type == "cuda"))
    return search


def _same(some: Sequence[list[int]], others: Sequence[list[int]]) -> float:
    return sum(one == other for one, other in zip(some, others, strict=True)) / len(some)
