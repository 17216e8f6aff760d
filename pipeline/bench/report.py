"""What the turns amount to: medians and their spread, ratios, and whether the targets are met."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from transloom.model.build import ModelConfig
from transloom.model.flops import training_flops
from transloom.pipeline.bench.task import Ready
from transloom.pipeline.bench.turns import Rounds, Turn

# The contenders of training by the names that figures and files have.
BARE, ZERO0, ZERO1, TWO = "ours", "ours, Ray + ZeRO-0", "ours, Ray + ZeRO-1", "ours, Ray + ZeRO-1, two workers"
CONTROL, MARIAN = "torch.nn.Transformer", "Hugging Face Marian"
NANOGPT, HUGGINGFACE = "plain loop as nanoGPT's", "Hugging Face"  # of language models


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, with the least and the largest."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        return Spread(median(values), min(values), max(values))


@dataclass(frozen=True)
class Ratio:
    """One contender over another, with what was aimed at.

    Attributes:
        value: of the medians; the spread is over the rounds, in each of which both did the same work.
        at_least: False where the goal is a most.
    """

    what: str
    value: float
    spread: Spread
    goal: float
    at_least: bool = True

    @property
    def is_met(self) -> bool:
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "is_met": self.is_met}


def summarise_training(
    rounds: Rounds, ready: Mapping[str, Sequence[Ready]], model: ModelConfig, vocab_size: int
) -> dict[str, Any]:
    """By contender: tokens per second, model FLOP/s and their share of the matrix product's, memory, loss. JSON values.
    Contenders that have had no turn are left out.

    Args:
        ready: what each contender's members said before they began.
    """
    matmul = Spread.of(rounds.matmul)
    contenders: dict[str, Any] = {}
    for name, turns in rounds.turns.items():
        if not turns:
            continue
        flops = Spread.of(
            [training_flops(model, vocab_size, one.source_tokens, one.target_tokens) / one.seconds for one in turns]
        )
        contenders[name] = {
            "source_tokens_per_second": asdict(Spread.of([one.source_tokens / one.seconds for one in turns])),
            "target_tokens_per_second": asdict(Spread.of([one.target_tokens / one.seconds for one in turns])),
            "model_flops_per_second": asdict(flops),
            "share_of_matmul": flops.median / matmul.median,
            "peak_bytes": max(one.peak_bytes for one in turns),
            "imported_bytes": sum(one.imported_bytes for one in ready[name]),
            "members": len(ready[name]),
            "threads": ready[name][0].threads,
            "gpu_peak_bytes": max(one.gpu_peak_bytes for one in turns),
            "loss": turns[-1].loss,
            "steps": turns[-1].steps,
            "cpu_share": sum(one.cpu_seconds for one in turns) / sum(one.seconds for one in turns),
            "other_cpu_share": sum(one.other_cpu_seconds for one in turns) / sum(one.seconds for one in turns),
            "stolen_cpu_share": sum(one.stolen_seconds for one in turns) / sum(one.seconds for one in turns),
            "turns": [asdict(one) for one in turns],
        }
    return {"matmul_flops_per_second": asdict(matmul), "contenders": contenders}


def training_ratios(rounds: Rounds, is_fp32: bool = False) -> list[Ratio]:
    """The ratios that there are targets for, as far as the contenders were there; over the rounds that both have had.

    Args:
        is_fp32: the products, which all contenders take from the same libraries, are most of a step then: no contender
            can be much quicker than another.
    """
    turns = {name: turns for name, turns in rounds.turns.items() if turns}
    control = NANOGPT if NANOGPT in turns else CONTROL
    over_control, over_best = (1.2, 1.2) if control is NANOGPT else (1.25, 1.25) if is_fp32 else (2.5, 2.0)
    peers = [name for name in (CONTROL, MARIAN, NANOGPT, HUGGINGFACE) if name in turns]
    best = max(peers, key=lambda name: _speed(turns[name]), default=None)
    pairs = [
        (f"{BARE} / {control}", BARE, control, over_control),
        (f"{BARE} / best of the others, {best}", BARE, best, over_best),
        (f"{ZERO0} / {BARE}", ZERO0, BARE, 0.97),
        (f"{ZERO1} / {BARE}", ZERO1, BARE, 0.93),
        (f"{TWO} / one", TWO, ZERO1, 0.9),
    ]
    ratios = [
        Ratio(
            f"target tokens/s: {what}",
            _speed(turns[one][:both]) / _speed(turns[other][:both]),
            _by_round(turns[one], turns[other]),
            goal,
        )
        for what, one, other, goal in pairs
        if one in turns and other in turns
        for both in [min(len(turns[one]), len(turns[other]))]
    ]
    if BARE in turns and CONTROL in turns:
        # On a GPU its memory is the one that runs out.
        ours, theirs = (max(one.gpu_peak_bytes or one.peak_bytes for one in turns[name]) for name in (BARE, CONTROL))
        value = ours / theirs
        ratios.append(
            Ratio(f"peak memory: {BARE} / {CONTROL}", value, Spread(value, value, value), 0.7, at_least=False)
        )
    return ratios


def _speed(turns: Sequence[Turn]) -> float:
    return median(one.target_tokens / one.seconds for one in turns)


def _by_round(turns: Sequence[Turn], others: Sequence[Turn]) -> Spread:
    """Turn by turn, in each of which both read about as many tokens."""
    speeds = ([one.target_tokens / one.seconds for one in some] for some in (turns, others))
    return Spread.of([one / other for one, other in zip(*speeds, strict=False)])
