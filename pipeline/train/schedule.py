"""Learning-rate schedules: plain functions of the step."""

from dataclasses import dataclass
from enum import Enum


class ScheduleName(Enum):
    """Which curve; see ScheduleConfig."""

    noam = "noam"
    inverse_sqrt = "inverse_sqrt"


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate goes.

    Attributes:
        name: noam: scale · d_model^-0.5 · min(s^-0.5, s · warmup_steps^-1.5), equation 3 of the paper.
            inverse_sqrt: linearly up to peak_learning_rate, then falling with s^-0.5 (fairseq's name).
        warmup_steps: steps until the highest rate.
        scale: factor of noam. peak_learning_rate: highest rate of inverse_sqrt.
    """

    name: ScheduleName = ScheduleName.noam
    warmup_steps: int = 4000
    scale: float = 1.0
    peak_learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for field in ("warmup_steps", "scale", "peak_learning_rate"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field}: must be above 0, not {getattr(self, field)}")


def learning_rate(config: ScheduleConfig, step: int, d_model: int) -> float:
    """The rate of optimizer step `step`, counted from 1."""
    warmup = min(step**-0.5, step * config.warmup_steps**-1.5)
    if config.name is ScheduleName.noam:
        return config.scale * d_model**-0.5 * warmup
    return config.peak_learning_rate * config.warmup_steps**0.5 * warmup
