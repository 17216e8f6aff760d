"""The settings of a bench, beside those of a run."""

from dataclasses import dataclass
from enum import Enum

WARM_UP_STEPS = 20  # before anything is measured: kernels are prepared and memory is taken in the first ones


class Part(Enum):
    """What is measured."""

    all = "all"
    train = "train"
    decode = "decode"


@dataclass(frozen=True)
class BenchConfig:
    """How much is measured.

    Attributes:
        rounds: turns that each contender gets.
        steps: optimizer steps in a turn of training.
        sentences: of the test set, translated in a turn of decoding; from all over it.
        train_steps: where no model is given, steps that ours has taken before its weights are used for decoding.

    Raises:
        ValueError: naming the field.
    """

    part: Part = Part.all
    rounds: int = 5
    steps: int = 10
    sentences: int = 500
    train_steps: int = 400

    def __post_init__(self) -> None:
        for name in ("rounds", "steps", "sentences", "train_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")

    @property
    def trains(self) -> bool:
        return self.part is not Part.decode

    @property
    def decodes(self) -> bool:
        return self.part is not Part.train

    @property
    def steps_in_all(self) -> int:
        """Steps that ours has taken when its weights are used."""
        return max(self.train_steps, WARM_UP_STEPS + self.rounds * self.steps)
