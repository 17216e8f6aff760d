"""The picture of a race: scores against time and against floating-point operations, speed against sentence length."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transloom.pipeline.figures.curves import (
    BLUE,
    DOTS_PER_INCH,
    GREEN,
    ORANGE,
    WIDTH_PIXELS,
    scale_scores,
    score_label,
)
from transloom.pipeline.figures.png import new_figure, save_png
from transloom.pipeline.tasks.task import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), ("#CC79A7", "D"), ("#000000", "v"))  # Okabe and Ito, as there


@dataclass(frozen=True)
class Course:
    """What the picture shows of one contender; one entry a validation, but for the last.

    Attributes:
        seconds: of training until then. flops: floating-point operations until then. scores: on the validation set.
        speed: sentence length in tokens → target tokens per second in training.
    """

    seconds: Sequence[float]
    flops: Sequence[float]
    scores: Sequence[float]
    speed: Mapping[int, float]


def draw_race(courses: Mapping[str, Course], path: Path, title: str, metric: Metric) -> Path:
    """Draws a PNG of 1000 pixels' width: above, validation scores against minutes of training and against
    floating-point operations; below, where it was measured, target tokens per second against sentence length."""
    with_speed = any(course.speed for course in courses.values())
    figure = new_figure(WIDTH_PIXELS / DOTS_PER_INCH, 8 if with_speed else 4.5)
    panels = figure.subplot_mosaic([["time", "flops"], *([["speed", "speed"]] if with_speed else [])])
    panels["flops"].sharey(panels["time"])
    costs = [flops for course in courses.values() for flops in course.flops]
    power = 3 * int(math.log10(max(costs, default=1.0)) // 3)
    for (name, course), (color, marker) in zip(courses.items(), STYLES, strict=False):
        style = {"color": color, "marker": marker, "markersize": 5, "lw": 1.8, "label": name}
        panels["time"].plot([seconds / 60 for seconds in course.seconds], course.scores, **style)
        panels["flops"].plot([flops / 10**power for flops in course.flops], course.scores, **style)
        if with_speed:
            panels["speed"].plot(list(course.speed), list(course.speed.values()), **style)
    scale_scores(panels["time"], metric, [score for course in courses.values() for score in course.scores])
    panels["time"].set_ylabel(f"validation {score_label(metric)}")
    panels["time"].set_xlabel("minutes of training")
    panels["flops"].set_xlabel(f"training cost (10$^{{{power}}}$ floating-point operations)")
    panels["flops"].tick_params(labelleft=False)
    for name in ("time", "flops"):
        panels[name].set_xlim(left=0)
    if with_speed:
        _finish_speed(panels["speed"], sorted({length for course in courses.values() for length in course.speed}))
    for axes in panels.values():
        axes.grid(color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    lines, labels = panels["time"].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=12)
    figure.suptitle(title, fontsize=14, x=0.01, y=0.985, ha="left")
    return save_png(figure, path, DOTS_PER_INCH)


def _finish_speed(axes: "Axes", lengths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_xlabel("sentence length (tokens on each side; as many tokens in every step)")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.03)
    axes.set_ylabel("target tokens per second\nin training, one worker")
    axes.yaxis.set_major_formatter(lambda speed, _: f"{speed:,.0f}")
