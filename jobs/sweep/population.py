"""What is a population's own in a sweep: how the training is cut, what it cost, and how the best's settings went."""

from collections.abc import Mapping, Sequence
from typing import Any

from transloom.jobs.config.schema import Config
from transloom.jobs.sweep.table import shown_value
from transloom.jobs.terminal.console import console, table
from transloom.pipeline.errors import UserError
from transloom.pipeline.sweep.space import parse_space
from transloom.pipeline.sweep.study import Record, lineage
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.train.schedule import NEED_TOTAL


def share_of(config: Config) -> int:
    """Steps of a generation."""
    return config.train.max_steps // config.sweep.generations


def refuse_uneven(config: Config) -> None:
    """A generation ends where a validation is due, and all its members at the same step. Each generation is a training
    with a train.max_steps of its own, so that a curve which ends with the training would end with every generation.

    Raises:
        UserError: naming the setting.
    """
    train, generations = config.train, config.sweep.generations
    for name in ("max_minutes", "patience"):
        if getattr(train, name):
            raise UserError(f"train.{name}: the members of a population train for equally many steps; set it to 0")
    choices = [one.choices for one in parse_space(config.sweep.space) if one.name == "schedule.name"]
    for name in NEED_TOTAL:
        if config.schedule.name is name or any(name.value in values for values in choices):
            raise UserError(
                f"schedule.name: the curve of {name.value} ends with train.max_steps, which grows with each generation "
                "of a population; take inverse_sqrt, noam or constant"
            )
    if train.max_steps % (generations * train.validate_every):
        raise UserError(
            f"sweep.generations: {generations} of them cut train.max_steps={train.max_steps} into shares of "
            f"{train.max_steps / generations:g} steps; take numbers of which a share is some whole times "
            f"train.validate_every={train.validate_every}"
        )


def own_cost(records: Mapping[int, Record], one: Record) -> tuple[int, float]:
    """Target tokens and seconds of a trial without what its parent had been trained."""
    if one.parent is None:
        return one.tokens, one.seconds
    parent = records[one.parent]
    return max(0, one.tokens - parent.tokens), max(0.0, one.seconds - parent.seconds)


def history_of(records: Mapping[int, Record], best: Record, config: Config) -> list[dict[str, Any]]:
    """How the best came to be, by generation: the settings that it had from a step to another. Empty for other sweeps,
    whose trials keep their settings."""
    if not best.generation:
        return []
    share = share_of(config)
    return [
        {
            "from_step": share * (one.generation - 1),
            "to_step": share * one.generation,
            "trial": one.number,
            "run": one.run,
            "point": one.point,
            best.metric.name: one.score,
        }
        for one in lineage(records, best.number)
    ]


def history_in_words(history: Sequence[Mapping[str, Any]], metric: Metric) -> list[str]:
    """A line for each generation."""
    return [
        f"steps {one['from_step']:,} to {one['to_step']:,} (trial {one['trial']}, "
        f"{metric.title} {metric.shown(one[metric.name])}): "
        + ", ".join(f"{name}={shown_value(value)}" for name, value in one["point"].items())
        for one in history
    ]


def print_history(
    history: Sequence[Mapping[str, Any]], names: Sequence[str], columns: Sequence[str], metric: Metric
) -> None:
    """The best's settings by step, as a table."""
    rows = [
        [
            f"{one['from_step']:,}",
            f"{one['to_step']:,}",
            str(one["trial"]),
            *(shown_value(one["point"][name]) for name in names),
            metric.shown(one[metric.name]),
        ]
        for one in history
    ]
    heads = ["from step", "to", "trial", *columns, f"validation {metric.title}"]
    console.print(table("\nHow the best was trained", heads, rows, right=(0, 1, 2, len(heads) - 1)))
