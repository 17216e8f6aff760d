"""Prompts and responses that are drawn at random: problems that tell what a model can remember or find in its text.

Each example is a pure function of (settings, split, number): the same on every machine, whoever draws it.
"""

import string
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np

from transloom.pipeline.data.records import Record

FIELD = "prompt"  # of a record
SPLITS = ("train", "validation", "test")
COPIED, BLANK = "abcdefgh", "-"
NUM_COPIED = 10
DIGITS, MARKED, SUMS = string.digits, "abcdefghij", string.ascii_uppercase[:19]
SYMBOLS = string.ascii_letters + string.digits
HAY, NUM_DIGITS = string.ascii_lowercase, 5


class Problem(Enum):
    """copy_memory: ten symbols of eight, then blanks; the response is the symbols (Hochreiter and Schmidhuber 1997;
    Arjovsky et al. 2016, section 4.1). adding: digits, two of which are marked by letters in their place; the response
    is the marked digits' sum, a letter of 19 (after Hochreiter and Schmidhuber 1997, who have real numbers). induction:
    symbols, each at most once; the response is the same symbols again (Olsson et al. 2022). needle: letters at random,
    with five digits somewhere; the response is the digits. recall: keys in random order, each with its value; the
    response is the keys in their fixed order, each with its value (after Arora et al. 2023, multi-query associative
    recall)."""

    copy_memory = "copy_memory"
    adding = "adding"
    induction = "induction"
    needle = "needle"
    recall = "recall"


@dataclass(frozen=True)
class SyntheticConfig:
    """Examples that are drawn at random, for corpus.kind=synthetic.

    Attributes:
        problem: the kind of example.
        length: of copy_memory the paper's T: T - 1 blanks stand between the symbols and the template's separator; of
            adding the digits; of induction the most symbols, of which an example has from half to all; of needle the
            letters and digits; of recall the keys, the first of the letters and digits, of which each example has all.
        examples: of train.
        held_out: examples of validation, and as many of test.
        seed: another seed draws other examples.

    Raises:
        ValueError: a number is out of its range, naming the field.
    """

    problem: Problem = Problem.copy_memory
    length: int = 500
    examples: int = 20_000
    held_out: int = 200
    seed: int = 1

    def __post_init__(self) -> None:
        for name, least in (("length", 2), ("examples", 1), ("held_out", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, not {getattr(self, name)}")
        if self.problem in (Problem.induction, Problem.recall) and self.length > len(SYMBOLS):
            raise ValueError(
                f"length: {self.problem.value} has {len(SYMBOLS)} symbols, each at most once, not {self.length}"
            )
        if self.problem is Problem.needle and self.length < NUM_DIGITS:
            raise ValueError(f"length: needle has {NUM_DIGITS} digits among its letters, not {self.length} in all")


def draw_records(config: SyntheticConfig, split: str, response: str) -> Iterator[Record]:
    """Yields the records of "train", "validation" or "test", with the field prompt.

    Args:
        response: the name of the response's field.
    """
    count = config.examples if split == "train" else config.held_out
    for number in range(count):
        prompt, answer = draw(config, np.random.default_rng([config.seed, SPLITS.index(split), number]))
        yield Record(f"{split} {number + 1}", {FIELD: prompt}, {response: [answer]})


def draw(config: SyntheticConfig, random: np.random.Generator) -> tuple[str, str]:
    """A prompt and its response."""
    match config.problem:
        case Problem.copy_memory:
            symbols = "".join(COPIED[i] for i in random.integers(0, len(COPIED), NUM_COPIED))
            return symbols + BLANK * (config.length - 1), symbols
        case Problem.adding:
            numbers = random.integers(0, len(DIGITS), config.length)
            half = config.length // 2
            # One in each half, as in the paper.
            marked = (int(random.integers(0, half)), int(random.integers(half, config.length)))
            prompt = [(MARKED if i in marked else DIGITS)[number] for i, number in enumerate(numbers)]
            return "".join(prompt), SUMS[numbers[list(marked)].sum()]
        case Problem.induction:
            size = int(random.integers(-(-config.length // 2), config.length + 1))
            symbols = "".join(SYMBOLS[i] for i in random.permutation(len(SYMBOLS))[:size])
            return symbols, symbols
        case Problem.needle:
            digits = "".join(DIGITS[i] for i in random.integers(0, len(DIGITS), NUM_DIGITS))
            hay = "".join(HAY[i] for i in random.integers(0, len(HAY), config.length - NUM_DIGITS))
            place = int(random.integers(0, len(hay) + 1))
            return hay[:place] + digits + hay[place:], digits
        case Problem.recall:
            values = [SYMBOLS[i] for i in random.integers(0, len(SYMBOLS), config.length)]
            told = "".join(SYMBOLS[key] + values[key] for key in random.permutation(config.length))
            return told, "".join(SYMBOLS[key] + value for key, value in enumerate(values))
