"""Learning-rate schedules: plain functions of the step."""

import math
from dataclasses import dataclass
from enum import Enum


class ScheduleName(Enum):
    """The learning rate's curve; see ScheduleConfig."""

    noam = "noam"
    inverse_sqrt = "inverse_sqrt"
    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    warmup_stable_decay = "warmup_stable_decay"


# Schedules whose curves end with the training.
NEED_TOTAL = (ScheduleName.linear, ScheduleName.cosine, ScheduleName.warmup_stable_decay)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate's schedule.

    All schedules but noam rise linearly to peak_learning_rate. The curves of linear, cosine and warmup_stable_decay end
    at final_ratio · peak_learning_rate at step train.max_steps. If train.max_minutes or train.patience ends a training
    earlier, its rate has not come down. A run that is resumed with another train.max_steps follows the new total's
    curve from then on, so the rate may jump.

    Attributes:
        name: noam: scale · d_model^-0.5 · min(s^-0.5, s · warmup_steps^-1.5), equation 3 of the paper.
            inverse_sqrt: falls with s^-0.5 (fairseq's name). constant: stays at the peak. linear: a straight line.
            cosine: half a cosine without restarts (Loshchilov and Hutter 2017, equation 5; GPT's schedule).
            warmup_stable_decay: stays at the peak (Hu et al. 2024, section 4), then falls over the last decay_share of
            all steps with 1 - sqrt(x), x from 0 to 1 (Hägele et al. 2024, section 3.2: better than a straight line).
        warmup_steps: steps until the highest rate.
        scale: factor of noam.
        peak_learning_rate: highest rate of the schedules other than noam.
        final_ratio: rate of the last step, as a share of the peak; GPT-3 has 0.1 (Brown et al. 2020, appendix B).
        decay_share: the share of all steps in which warmup_stable_decay falls.
    """

    name: ScheduleName = ScheduleName.noam
    warmup_steps: int = 4000
    scale: float = 1.0
    peak_learning_rate: float = 1e-3
    final_ratio: float = 0.1
    decay_share: float = 0.2

    def __post_init__(self) -> None:
        for field in ("warmup_steps", "scale", "peak_learning_rate"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field}: must be above 0, not {getattr(self, field)}")
        if not 0.0 <= self.final_ratio <= 1.0:
            raise ValueError(f"final_ratio: must be from 0 to 1, not {self.final_ratio}")
        if not 0.0 < self.decay_share <= 1.0:
            raise ValueError(f"decay_share: must be above 0 and at most 1, not {self.decay_share}")


def check_total(config: ScheduleConfig, total_steps: int) -> None:
    """Checks that the parts of the curve fit into the training; noam and inverse_sqrt always fit.

    Raises:
        ValueError: naming the field.
    """
    if config.name in (ScheduleName.noam, ScheduleName.inverse_sqrt):
        return
    if config.warmup_steps > total_steps:
        raise ValueError(
            f"warmup_steps: {config.warmup_steps} are more than the training has, train.max_steps={total_steps}"
        )
    if config.name is ScheduleName.warmup_stable_decay and config.warmup_steps > _decay_start(config, total_steps):
        raise ValueError(
            f"decay_share: {config.decay_share:g} of train.max_steps={total_steps} leaves no place for "
            f"schedule.warmup_steps={config.warmup_steps}; lower one of the two"
        )


def learning_rate(config: ScheduleConfig, step: int, total_steps: int, d_model: int) -> float:
    """The rate of optimizer step `step`, counted from 1. After step `total_steps` the rate of linear, cosine and
    warmup_stable_decay stays at the curve's end; the other curves do not depend on the total."""
    if config.name in (ScheduleName.noam, ScheduleName.inverse_sqrt):
        warmup = min(step**-0.5, step * config.warmup_steps**-1.5)
        if config.name is ScheduleName.noam:
            return config.scale * d_model**-0.5 * warmup
        return config.peak_learning_rate * config.warmup_steps**0.5 * warmup
    if step < config.warmup_steps:
        return config.peak_learning_rate * step / config.warmup_steps
    return config.peak_learning_rate * _share_of_peak(config, step, total_steps)


def _share_of_peak(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """1 until the curve falls, final_ratio from the last step on."""
    is_stable = config.name is ScheduleName.warmup_stable_decay
    start = _decay_start(config, total_steps) if is_stable else config.warmup_steps
    if config.name is ScheduleName.constant or step <= start:
        return 1.0
    x = (step - start) / (total_steps - start) if step < total_steps else 1.0
    match config.name:
        case ScheduleName.cosine:
            height = (1.0 + math.cos(math.pi * x)) / 2.0
        case ScheduleName.warmup_stable_decay:
            height = 1.0 - math.sqrt(x)
        case _:
            height = 1.0 - x
    return config.final_ratio + (1.0 - config.final_ratio) * height


def _decay_start(config: ScheduleConfig, total_steps: int) -> int:
    """The last step at the peak of warmup_stable_decay."""
    return total_steps - round(config.decay_share * total_steps)
