"""What checkpoints, snapshots and validations take of a training, and how often is often enough."""

import math
from dataclasses import dataclass, replace

from transloom.model.config import LanguageModelConfig
from transloom.model.flops import training_flops
from transloom.pipeline.plan.hardware import Hardware
from transloom.pipeline.plan.launches import launches
from transloom.pipeline.plan.training import Training

LARGE_SHARE = 0.05  # of the time: more than that is worth a change
FORWARD = 1 / 3  # of a training step's operations and kernels
VALIDATION_PAIRS = 3000  # of news test sets, where no validation set is counted
TOKENS_PER_SENTENCE = 30.0
BATCH_SENTENCES = 64  # translated at a time
LONGEST_OF_BATCH = 1.25  # tokens of the longest sentence of such a batch, for its mean: they are sorted by length


@dataclass(frozen=True)
class Stops:
    """Seconds of a step, and seconds that the training stops for.

    Attributes:
        checkpoint: each train.checkpoint_every steps.
        validation: each train.validate_every steps, with the snapshot of the weights.
    """

    step: float
    checkpoint: float
    validation: float

    def share(self, checkpoint_every: float, validate_every: float) -> float:
        """The part of the training's time that it stands still."""
        stopped = self.checkpoint / checkpoint_every + self.validation / validate_every
        return stopped / (self.step + stopped)


def less_often(
    stops: Stops, checkpoint_every: int, validate_every: int, most_checkpoint: int, most_validate: int
) -> dict[str, int]:
    """The settings, by name, that bring the share of the stops below LARGE_SHARE; empty where it is below already.

    Args:
        most_checkpoint, most_validate: the largest values that make sense.
    """
    allowed = stops.step * LARGE_SHARE / (1 - LARGE_SHARE)  # seconds of stops for each step
    saving, validating = stops.checkpoint / checkpoint_every, stops.validation / validate_every
    if saving + validating <= allowed:
        return {}
    changes: dict[str, int] = {}
    if saving > allowed / 2:
        left = allowed - validating if validating <= allowed / 2 else allowed / 2
        changes["checkpoint_every"] = min(_round_up(stops.checkpoint / left), max(most_checkpoint, checkpoint_every))
    if validating > allowed / 2:
        left = allowed - saving if saving <= allowed / 2 else allowed / 2
        changes["validate_every"] = min(_round_up(stops.validation / left), max(most_validate, validate_every))
    now = {"checkpoint_every": checkpoint_every, "validate_every": validate_every}
    return {name: value for name, value in changes.items() if value > now[name]}


def _round_up(number: float) -> int:
    """To two digits: 1234 -> 1300."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit


def validation_seconds(training: Training, hardware: Hardware, workers: int) -> float | None:
    """Seconds of a validation that all workers share: the loss, and of translations a search. None: the size of the
    validation set is not known."""
    tokens = training.validation_tokens
    if tokens is None and isinstance(training.model, LanguageModelConfig):
        return None
    if tokens is None:
        tokens = (VALIDATION_PAIRS * TOKENS_PER_SENTENCE,) * 2
    flops = FORWARD * training_flops(training.model, training.vocab_size, *map(round, tokens))
    speed = workers * hardware.flops_per_second(hardware.precision_of(training.precision), workers)
    if isinstance(training.model, LanguageModelConfig):
        return flops / speed
    sentences = training.validation_sentences or VALIDATION_PAIRS
    mean = tokens[-1] / sentences
    batches = -(-sentences // (BATCH_SENTENCES * workers))  # of each worker
    kernels = FORWARD * launches(replace(training.model, encoder_layers=1))  # of a step of the search
    search = batches * LONGEST_OF_BATCH * mean * kernels * hardware.launch
    return flops / speed + max(training.train.validation_beam * flops / speed, search)
