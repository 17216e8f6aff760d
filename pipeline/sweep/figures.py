"""The pictures of a sweep: trials as parallel coordinates, scores against cost, importances, the spread of seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from transloom.pipeline.figures.curves import (
    BLUE,
    DOTS_PER_INCH,
    GREEN,
    GREY,
    ORANGE,
    WIDTH_PIXELS,
    scale_scores,
    score_label,
)
from transloom.pipeline.figures.png import new_figure, save_png
from transloom.pipeline.sweep.seeds import Chance
from transloom.pipeline.sweep.space import Parameter, Value
from transloom.pipeline.sweep.study import Record, State, lineage
from transloom.pipeline.tasks.task import Metric

PALE = "#d0d0d0"


def draw_parallel(
    records: Sequence[Record], parameters: Sequence[Parameter], best: Record, path: Path, title: str
) -> Path:
    """Draws a PNG of 1000 pixels' width: an upright axis for each parameter and one for the score, whose best
    end is on top, a line for each trial that was ever validated, coloured by its score; dashed where the trial was
    stopped early, thick for the best. A parameter that a trial does not have is passed below the axis."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure = new_figure(WIDTH_PIXELS / DOTS_PER_INCH, 5.2)
    axes = figure.subplots()
    metric = best.metric
    ordered = sorted(records, key=lambda record: record.sort_key, reverse=True)  # the best is drawn last
    scored = [(one, one.score) for one in ordered if one.score is not None]
    low, high = min(score for _, score in scored), max(score for _, score in scored)
    if low == high:  # the only score is the best end of the axis
        low, high = (low - 1.0, high) if metric.higher_is_better else (low, high + 1.0)
    colors, shade = colormaps["viridis" if metric.higher_is_better else "viridis_r"], Normalize(low, high)
    for one, score in scored:
        heights = [place(parameter, one.point.get(parameter.name)) for parameter in parameters]
        share = (score - low) / (high - low)
        heights = [-0.06 if height is None else height for height in heights]
        heights.append(share if metric.higher_is_better else 1 - share)
        is_best = one.number == best.number
        style = "-" if one.state is State.finished else "--"
        width, layer = (3.5, 3) if is_best else (1.4, 2)
        axes.plot(range(len(heights)), heights, style, color=colors(shade(score)), lw=width, zorder=layer)
    for i, parameter in enumerate(parameters):
        axes.axvline(i, color=GREY, lw=0.8, zorder=1)
        for height, label in ticks(parameter):
            place_of_label = {"ha": "right", "va": "center", "fontsize": 9, "zorder": 5}
            box = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1.5}
            axes.text(i - 0.02, height, label, color="#303030", bbox=box, **place_of_label)
    axes.axvline(len(parameters), color=GREY, lw=0.8, zorder=1)
    names = [parameter.name.replace(".", ".\n", 1) for parameter in parameters]
    axes.set_xticks(range(len(names) + 1), [*names, f"validation\n{metric.title}"], fontsize=10)
    axes.set_xlim(-0.45, len(names) + 0.05)
    axes.set_ylim(-0.1, 1.05)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    label = f"best validation {metric.title}"
    bar = figure.colorbar(ScalarMappable(shade, colors), ax=axes, label=label, pad=0.01, aspect=30)
    if not metric.higher_is_better:
        bar.ax.invert_yaxis()
    figure.suptitle(f"{title}: solid to the end, dashed stopped early, thick the best", fontsize=12)
    return save_png(figure, path, DOTS_PER_INCH)


def place(parameter: Parameter, value: Value) -> float | None:
    """Where on its axis, from 0 to 1, a value stands; None where a trial does not have the parameter."""
    if parameter.choices:
        if value not in parameter.choices:
            return None
        return parameter.choices.index(value) / max(1, len(parameter.choices) - 1)
    if not isinstance(value, int | float):
        return None
    if parameter.log:
        return math.log(value / parameter.low) / math.log(parameter.high / parameter.low)
    return (value - parameter.low) / (parameter.high - parameter.low)


def ticks(parameter: Parameter) -> list[tuple[float, str]]:
    """Heights and labels of an axis: each choice, or the ends and the middle of a range."""
    if parameter.choices:
        values: list[Value] = list(parameter.choices)
    else:
        low, high = parameter.low, parameter.high
        middle = math.sqrt(low * high) if parameter.log else (low + high) / 2
        values = [low, middle, high]
    labels = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
    return [(place(parameter, value) or 0.0, label) for value, label in zip(values, labels, strict=True)]


def draw_cost(records: Sequence[Record], best: Record, path: Path, title: str, grace: int) -> Path:
    """Draws a PNG of 1000 pixels' width: validation scores against the predicted tokens seen, a line for each trial, a
    cross where one was stopped; `grace` tokens are what every trial gets."""
    figure = new_figure(WIDTH_PIXELS / DOTS_PER_INCH, 5)
    axes = figure.subplots()
    for one in records:
        if not one.curve:
            continue
        tokens, scores = [seen / 1e6 for seen, _ in one.curve], [score for _, score in one.curve]
        color, width, layer = (ORANGE, 2.8, 4) if one.number == best.number else (BLUE, 1.2, 3)
        if one.state is not State.finished:
            color, layer = GREY, 2
            axes.plot(tokens[-1], scores[-1], "x", color=color, markersize=7, zorder=layer)
        axes.plot(tokens, scores, "-o", color=color, lw=width, markersize=3, zorder=layer)
    handles = [
        ("best", {"color": ORANGE, "lw": 2.8}),
        ("to its end", {"color": BLUE, "lw": 1.2}),
        ("stopped early", {"color": GREY, "lw": 1.2, "marker": "x"}),
    ]
    for label, style in handles:
        axes.plot([], [], label=label, **style)
    if any(one.state is State.stopped for one in records):
        axes.axvline(grace / 1e6, color=GREEN, lw=1, ls=":", label="all come to here")
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel(f"validation {score_label(best.metric)}")
    axes.set_xlim(left=0)
    scale_scores(axes, best.metric, [score for one in records for _, score in one.curve])
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right" if best.metric.higher_is_better else "upper right")
    figure.suptitle(title, fontsize=14)
    return save_png(figure, path, DOTS_PER_INCH)


def draw_population(
    records: Mapping[int, Record], parameters: Sequence[Parameter], best: Record, path: Path, title: str
) -> Path:
    """Draws a PNG of 1000 pixels' width: validation scores and every parameter against the tokens seen, a line for each
    trial, which begins where its parent ended; the best and those whose weights it went on with are marked."""
    figure = new_figure(WIDTH_PIXELS / DOTS_PER_INCH, 3.4 + 1.5 * len(parameters))
    heights = [2.2, *[1.0] * len(parameters)]
    panels = figure.subplots(len(parameters) + 1, sharex=True, gridspec_kw={"height_ratios": heights})
    marked = {one.number for one in lineage(records, best.number)}
    for one in records.values():
        if not one.curve:
            continue
        parent = records[one.parent] if one.parent is not None else one
        begin = parent.curve[-1:] if parent is not one else []
        color, width, layer = (ORANGE, 2.8, 4) if one.number in marked else (BLUE, 1.2, 3)
        style = {"color": color, "lw": width, "zorder": layer}
        curve = [(seen / 1e6, score) for seen, score in (*begin, *one.curve)]
        panels[0].plot(*zip(*curve, strict=True), "-o", markersize=3, **style)
        start = begin[0][0] / 1e6 if begin else 0.0
        for axes, parameter in zip(panels[1:], parameters, strict=True):
            before, height = (place(parameter, of.point[parameter.name]) for of in (parent, one))
            axes.plot([start, start, one.tokens / 1e6], [before, height, height], **style)
    for axes, parameter in zip(panels[1:], parameters, strict=True):
        places, labels = zip(*ticks(parameter), strict=True)
        axes.set_yticks(places, labels)
        axes.set_ylim(-0.1, 1.1)
        axes.set_title(parameter.name, fontsize=10, loc="left")
    panels[0].plot([], [], color=ORANGE, lw=2.8, label="the best, and whose weights it has")
    panels[0].plot([], [], color=BLUE, lw=1.2, label="the others")
    panels[0].legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    panels[0].set_ylabel(f"validation {score_label(best.metric)}")
    scale_scores(panels[0], best.metric, [score for one in records.values() for _, score in one.curve])
    panels[-1].set_xlabel("tokens seen (millions)")
    panels[-1].set_xlim(left=0)
    for axes in panels:
        axes.grid(color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=14)
    return save_png(figure, path, DOTS_PER_INCH)


def draw_importance(shares: Mapping[str, float], tokens: int, path: Path, title: str, metric: Metric) -> Path:
    """Draws a PNG of 1000 pixels' width: how much of the variance of the scores after `tokens` predicted tokens each
    parameter explains, the largest on top."""
    figure = new_figure(WIDTH_PIXELS / DOTS_PER_INCH, 1.4 + 0.5 * len(shares))
    axes = figure.subplots()
    names = list(shares)[::-1]
    bars = axes.barh(names, [shares[name] for name in names], color=BLUE)
    axes.bar_label(bars, [f" {shares[name]:.0%}" for name in names])
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"share of the variance of {metric.title} after {tokens / 1e6:.2f} M tokens (fANOVA)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=14)
    return save_png(figure, path, DOTS_PER_INCH)


def draw_seeds(chance: Chance, path: Path, title: str, metric: Metric) -> Path:
    """Draws a PNG of 1000 pixels' width: the best configuration's validation score with each seed, their mean with a
    standard deviation on either side, and the sweep's second."""
    figure = new_figure(WIDTH_PIXELS / DOTS_PER_INCH, 2.6)
    axes = figure.subplots()
    axes.axvspan(chance.mean - chance.deviation, chance.mean + chance.deviation, color=PALE, alpha=0.6, lw=0)
    spread = f"mean {metric.shown(chance.mean)} ± {metric.shown(chance.deviation)}"
    axes.axvline(chance.mean, color=GREY, lw=1.5, label=spread)
    axes.plot(chance.scores[1:], [0] * (len(chance.scores) - 1), "o", color=BLUE, markersize=10, label="other seeds")
    axes.plot(chance.scores[:1], [0], "*", color=ORANGE, markersize=18, label="the seed that won the sweep")
    if chance.second is not None:
        axes.plot([chance.second], [0], "D", color=GREEN, markersize=9, label="the sweep's second")
    axes.set_yticks([])
    axes.set_xlabel(f"validation {score_label(metric)}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    figure.suptitle(title, fontsize=14)
    return save_png(figure, path, DOTS_PER_INCH)
