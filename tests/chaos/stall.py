"""How long training stands still for a checkpoint, on a model as large as that for Multi30k."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from chaos.report import stalls
from chaos.training import Place, step_times, train
from transloom.pipeline.files import read_json

EVERY = 10
# As conf/experiment/multi30k_en_de.yaml, on text that is made up.
WORDS_OF_MULTI30K = (
    "corpus.phrasebook_pairs=20000",
    "tokenizer=bpe_6k",
    "tokenizer.vocab_size=6000",
    "model=small_pre_norm",
    "schedule=inverse_sqrt",
    "batch.tokens=4096",
    "batch.micro_tokens=2048",
)


def measure_stall(place: Place, times: int) -> dict[str, Any]:
    """Trains for `times` checkpoints.

    Returns:
        seconds of each stall; their median and quartiles; the median as a share of a minute; seconds of a step, and
        megabytes of a checkpoint.
    """
    place.every = EVERY
    name, total = "stall", EVERY * (times + 1)
    train(place, name, *WORDS_OF_MULTI30K, steps=total)
    folder = place.run(name)
    return summary(
        stalls(step_times(folder), EVERY)[:times],
        read_json(folder / "training.json")["seconds"] / total,
        _megabytes(folder / "checkpoints" / f"step_{total:08d}"),
    )


def summary(seconds: Sequence[float], step_seconds: float, megabytes: float) -> dict[str, Any]:
    low, _, high = quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    return {
        "seconds": list(seconds),
        "median_seconds": median(seconds),
        "quartiles": [low, high],
        "share_at_one_a_minute": median(seconds) / 60,
        "share_quartiles": [low / 60, high / 60],
        "step_seconds": step_seconds,
        "checkpoint_megabytes": megabytes,
    }


def write_stall(folder: Path, found: dict[str, Any], machine: str) -> str:
    """Writes stall.json and stall.md; the text of the latter."""
    low, high = found["quartiles"]
    stall, share = found["median_seconds"], found["share_at_one_a_minute"]
    text = (
        f"{machine}. {len(found['seconds'])} checkpoints of {found['checkpoint_megabytes']:.0f} MB, "
        f"steps of {found['step_seconds']:.2f} s.\n\n"
        "| Stall of a checkpoint in s, median (quartiles) | Share of the time at one checkpoint a minute |\n"
        "|---:|---:|\n"
        f"| {stall:.2f} ({low:.2f} to {high:.2f}) | {share:.2%} ({low / 60:.2%} to {high / 60:.2%}) |\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stall.json").write_text(json.dumps(found | {"machine": machine}, indent=2) + "\n")
    (folder / "stall.md").write_text(text)
    return text


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6
