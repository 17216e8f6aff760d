"""Pictures of a run, drawn from the points that it logged."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transloom.pipeline.figures.png import new_figure, save_png
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tracking.spool import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Okabe and Ito's colours, which people with any colour vision tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#707070"
WIDTH_PIXELS, DOTS_PER_INCH = 1000, 100
SMOOTHED_FROM = 40  # points; below, the curve is drawn as it is

Series = dict[int, float]  # step -> value


def draw_curves(
    points: Iterable[Point],
    path: Path,
    title: str,
    metric: Metric,
    columns: Sequence[str] = ("source", "target"),
    baselines: Mapping[str, float] | None = None,
    loss_unit: str | None = None,
) -> Path:
    """Draws a PNG of 1000 pixels' width, one panel above the other, all against training steps: the losses (nats per
    predicted token) with the learning rate; the validation scores with the best one; tokens per second. A panel
    without points is left out.

    Args:
        title: names the run and its corpus.
        metric: of the scores.
        columns: whose tokens are counted; those of the last are predicted.
        baselines: what simple models come to on the validation set, by name.
        loss_unit: what the losses are of; None: a token of the last column.
    Raises:
        ValueError: if no point belongs in any panel.
    """
    series = _by_metric(points)
    panels: list[tuple[int, Callable[[Axes, dict[str, Series]], None]]] = []
    if "train/loss" in series or "validation/loss" in series:
        panels.append((3, partial(_draw_losses, loss_unit or f"{columns[-1]} token")))
    if f"validation/{metric.name}" in series:
        panels.append((3, partial(_draw_scores, metric, baselines or {})))
    if f"train/{columns[-1]}_tokens_per_second" in series:
        panels.append((2, partial(_draw_speed, columns)))
    if not panels:
        raise ValueError(f"no loss, {metric.title} or speed among the points: nothing to draw")

    heights = [height for height, _ in panels]
    figure = new_figure(WIDTH_PIXELS / DOTS_PER_INCH, 1.1 * sum(heights) + 1)
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (_, draw) in zip(rows, panels, strict=True):
        draw(axes, series)
        axes.grid(color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.spines["top"].set_visible(False)
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    rows[-1].set_xlabel("training step")
    rows[-1].set_xlim(left=0)
    figure.suptitle(title, fontsize=14)
    return save_png(figure, path, DOTS_PER_INCH)


def _by_metric(points: Iterable[Point]) -> dict[str, Series]:
    """{metric: {step: value}}, by ascending step; of several values for a step the last counts; NaN is left out."""
    series: dict[str, Series] = {}
    for point in points:
        if np.isfinite(point.value):
            series.setdefault(point.key, {})[point.step] = point.value
    return {key: dict(sorted(values.items())) for key, values in series.items()}


def _draw_losses(unit: str, axes: "Axes", series: dict[str, Series]) -> None:
    top = 0.0
    if train := series.get("train/loss"):
        smooth = _plot_smoothed(axes, train, BLUE, "training loss")
        # The first steps' losses are so high that they would press all that follows into a line.
        top = max(top, float(np.percentile(smooth, 98)))
    if validation := series.get("validation/loss"):
        axes.plot(list(validation), list(validation.values()), color=ORANGE, marker="o", markersize=4, lw=1.8)
        axes.lines[-1].set_label("validation loss")
        top = max(top, float(np.percentile(list(validation.values()), 98)))
    lowest = min(min(series[key].values()) for key in ("train/loss", "validation/loss") if key in series)
    margin = 0.08 * (top - lowest) or 0.1
    axes.set_ylim(lowest - margin, top + margin)
    axes.set_ylabel(f"loss (nats per {unit})")
    lines = list(axes.get_lines())
    if rate := series.get("train/learning_rate"):
        right = axes.twinx()
        right.plot(list(rate), list(rate.values()), color=GREY, lw=1.2, ls="--", label="learning rate (right)")
        right.set_ylim(bottom=0)
        right.set_ylabel("learning rate", color=GREY)
        right.tick_params(axis="y", colors=GREY)
        right.yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
        right.spines["top"].set_visible(False)
        lines += list(right.get_lines())
    _put_legend(axes, lines)


def _draw_scores(metric: Metric, baselines: Mapping[str, float], axes: "Axes", series: dict[str, Series]) -> None:
    scores = series[f"validation/{metric.name}"]
    best = min(scores, key=lambda step: metric.sort_key(scores[step]))
    label = f"validation {metric.title}"
    axes.plot(list(scores), list(scores.values()), color=ORANGE, marker="o", markersize=4, lw=1.8, label=label)
    axes.plot([best], [scores[best]], "*", color=GREEN, markersize=15, ls="none")
    axes.lines[-1].set_label(f"best: {metric.shown(scores[best])} at step {best:,}")
    if averaged := series.get(f"averaged/validation_{metric.name}"):
        value = list(averaged.values())[-1]
        axes.axhline(value, color=GREY, lw=1.2, ls="--", label=f"averaged weights: {metric.shown(value)}")
    for name, value in baselines.items():
        axes.axhline(value, color=BLUE, lw=1.2, ls=":")
        place = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "bottom", "fontsize": 10}
        axes.text(0.01, value, f"{name}: {metric.shown(value)}", color=BLUE, **place)  # the legend's row is full
    axes.set_ylabel(score_label(metric))
    scale_scores(axes, metric, scores.values())
    axes.spines["right"].set_visible(False)
    _put_legend(axes, axes.get_lines())


def score_label(metric: Metric) -> str:
    """The metric's title with its limits and, where that is so, that lower is better: of an axis."""
    notes = [f"{metric.limits[0]:g} to {metric.limits[1]:g}"] if metric.limits else []
    notes += [] if metric.higher_is_better else ["lower is better"]
    return f"{metric.title} ({', '.join(notes)})" if notes else metric.title


def scale_scores(axes: "Axes", metric: Metric, scores: Iterable[float]) -> None:
    """Lets an upright axis of scores begin at the metric's lower limit and end above the highest score; without limits
    the axis fits the scores."""
    if metric.limits:
        low, high = metric.limits
        span, highest = high - low, max(scores, default=low)
        axes.set_ylim(low, min(high + 0.02 * span, low + 1.12 * (highest - low) + 0.01 * span))


def _draw_speed(columns: Sequence[str], axes: "Axes", series: dict[str, Series]) -> None:
    for column, color in zip(reversed(columns), (BLUE, GREEN), strict=False):
        if speed := series.get(f"train/{column}_tokens_per_second"):
            _plot_smoothed(axes, speed, color, f"{column} tokens")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens per second\n(without padding)")
    axes.yaxis.set_major_formatter(lambda speed, _: f"{speed:,.0f}")
    axes.spines["right"].set_visible(False)
    _put_legend(axes, axes.get_lines())


def _put_legend(axes: "Axes", lines: Iterable["Line2D"]) -> None:
    """In a row above the panel, where no curve runs."""
    labelled = {str(line.get_label()): line for line in lines if not str(line.get_label()).startswith("_")}
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axes.legend(labelled.values(), labelled, ncols=len(labelled), frameon=False, **place)


def _plot_smoothed(axes: "Axes", values: Series, color: str, label: str) -> np.ndarray:
    """Plots a running mean over about 2 % of the points, with the points themselves in pale; returns the mean."""
    steps, raw = np.array(list(values)), np.array(list(values.values()))
    half_window = len(raw) // 100 + 2
    if len(raw) < SMOOTHED_FROM:
        axes.plot(steps, raw, color=color, lw=1.8, label=label)
        return raw
    axes.plot(steps, raw, color=color, lw=0.8, alpha=0.3)
    sums = np.concatenate([[0.0], np.cumsum(raw)])
    # The window shrinks at both ends, alike on both sides, so that a steep start is not flattened.
    reach = np.minimum(half_window, np.minimum(np.arange(len(raw)), np.arange(len(raw))[::-1]))
    first, last = np.arange(len(raw)) - reach, np.arange(len(raw)) + reach + 1
    smooth = (sums[last] - sums[first]) / (last - first)
    axes.plot(steps, smooth, color=color, lw=1.8, label=label)
    return smooth
