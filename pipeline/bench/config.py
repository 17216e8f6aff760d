"""The settings of a bench, beside those of a run."""

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

WARM_UP_STEPS = 20  # before anything is measured: kernels are prepared and memory is taken in the first ones


class Part(Enum):
    """What is measured."""

    all = "all"
    train = "train"
    decode = "decode"
    length = "length"


@dataclass(frozen=True)
class BenchConfig:
    """How much is measured.

    Attributes:
        rounds: turns that each contender gets.
        steps: optimizer steps in a turn of training.
        sentences: of the test set, translated in a turn of decoding; from all over it.
        lengths: with part=length, tokens of the texts, rising.
        most_seconds: with part=length, a step that would take longer is left out, and the steps of one length take
            about as long together, or are one.
        train_steps: where no model is given, steps that ours has taken before its weights are used for decoding.

    Raises:
        ValueError: naming the field.
    """

    part: Part = Part.all
    rounds: int = 5
    steps: int = 10
    sentences: int = 500
    train_steps: int = 400
    lengths: tuple[int, ...] = tuple(2**power for power in range(10, 18))
    most_seconds: int = 120

    def __post_init__(self) -> None:
        for name in ("rounds", "steps", "sentences", "train_steps", "most_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")

        if not self.lengths or self.lengths[0] < 2 or any(b <= a for a, b in pairwise(self.lengths)):
            shown = ",".join(map(str, self.lengths))
            raise ValueError(f"lengths: must be rising numbers of at least 2, not {shown or 'nothing'}")

    @property
    def trains(self) -> bool:
        return self.part in (Part.all, Part.train)

    @property
    def decodes(self) -> bool:
        return self.part in (Part.all, Part.decode)

    @property
    def steps_in_all(self) -> int:
        """Steps that ours has taken when its weights are used."""
        return max(self.train_steps, WARM_UP_STEPS + self.rounds * self.steps)
