"""Pictures of what is inside models: scores of heads, heads taken out, gradients by distance, losses by length."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transloom.pipeline.figures.png import new_figure, save_png
from transloom.pipeline.inside.gradient import FLOOR, NEAR, GradientByDistance
from transloom.pipeline.inside.heads import StackScores
from transloom.pipeline.inside.positions import Extrapolated
from transloom.pipeline.inside.prune import Pruned
from transloom.pipeline.tasks.task import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOTS_PER_INCH = 150
COLORS = ("#2a6fbb", "#d1495b", "#3a9a5b", "#8a5fbf", "#c98a1b", "#555555")
NAMES = {"encoder": "encoder self-attention", "decoder": "causal self-attention", "cross": "cross-attention"}
MOST_NUMBERED = 130  # heads of a panel; with more, the cells are too small for their numbers


def draw_heads(stacks: Mapping[str, StackScores], title: str, path: Path) -> Path:
    """Draws a PNG with a row of panels for each stack, a panel for each score, in it a cell for each layer and head."""
    widest = max(len(scores.heads) for scores in stacks.values())
    shapes = [next(iter(scores.heads.values())).shape for scores in stacks.values()]
    cell = 0.36
    width = widest * max(1.9, cell * max(heads for _, heads in shapes) + 0.7)
    heights = [max(1.3, cell * layers + 0.9) for layers, _ in shapes]
    figure = new_figure(width, sum(heights) + 0.6)
    grids = figure.subfigures(len(stacks), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (stack, scores) in zip(grids, stacks.items(), strict=True):
        panels = part.subplots(1, widest, squeeze=False)[0]
        part.supylabel(NAMES[stack], fontsize=9)
        for axes, (name, values) in zip(panels, scores.heads.items(), strict=False):
            layers, heads = values.shape
            axes.imshow(values, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
            axes.set_title(f"{name}\n(alike: {scores.uniform[name]:.2f})", fontsize=9)
            axes.set_xticks(range(heads), range(1, heads + 1), fontsize=7)
            axes.set_yticks(range(layers), range(1, layers + 1), fontsize=7)
            axes.tick_params(length=0)
            if values.size <= MOST_NUMBERED:
                for (layer, head), value in np.ndenumerate(values):
                    color = "white" if value > 0.55 else "black"
                    axes.text(head, layer, _share(value), ha="center", va="center", fontsize=6.5, color=color)
        for axes in panels[len(scores.heads) :]:
            axes.set_visible(False)
        panels[0].set_ylabel("layer", fontsize=8)
        for axes in panels:
            axes.set_xlabel("head", fontsize=8)
    figure.suptitle(title, fontsize=11)
    return save_png(figure, path, DOTS_PER_INCH)


def _share(value: float) -> str:
    """0.07 as .07"""
    return f"{value:.2f}".removeprefix("0")


def draw_pruning(points: Sequence[Pruned], metric: Metric, title: str, path: Path) -> Path:
    """Draws a PNG: the metric and the loss against the number of heads left."""
    figure = new_figure(8.0, 4.2)
    scores, losses = figure.subplots(1, 2)
    scored = [point for point in points if metric.name in point.scores]
    scores.plot([p.left for p in scored], [p.scores[metric.name] for p in scored], "o-", color=COLORS[0], ms=4)
    scores.set_ylabel(f"validation {metric.title}")
    if metric.limits is not None:
        scores.set_ylim(bottom=metric.limits[0])
    losses.plot([p.left for p in points], [p.loss for p in points], "o-", color=COLORS[1], ms=3)
    losses.set_ylabel("loss, nats a token")
    for axes in (scores, losses):
        axes.set_xlabel("heads left")
        axes.invert_xaxis()
        _plain(axes)
    figure.suptitle(title, fontsize=11)
    return save_png(figure, path, DOTS_PER_INCH)


def draw_gradients(gradients: Mapping[str, GradientByDistance], title: str, path: Path) -> Path:
    """Draws a PNG: the gradient's norm against the distance, on a logarithmic scale, and the fitted exponentials."""
    figure = new_figure(8.0, 4.8)
    axes = figure.subplots()
    for (name, gradient), color in zip(gradients.items(), _cycle(len(gradients)), strict=True):
        distances = np.arange(len(gradient.norms))
        seen = gradient.norms > FLOOR
        axes.plot(distances[seen], gradient.norms[seen], color=color, lw=0.7, alpha=0.45)
        smooth = np.array([gradient.mean_at(int(distance)) for distance in distances])
        axes.plot(distances[seen], smooth[seen], color=color, lw=1.8, label=f"{name}: rate {gradient.rate:.4f} a token")
        if len(gradient.fitted) >= 3:
            fitted = gradient.fitted
            level = np.log(gradient.norms[fitted]).mean() + gradient.rate * fitted.mean()
            axes.plot(fitted, np.exp(level - gradient.rate * fitted), color=color, lw=1.0, ls="--")
    axes.set_yscale("log")
    axes.set_xlabel(f"tokens before the one that predicts the last (fitted from {NEAR} on)")
    axes.set_ylabel("norm of d loss(last token) / d embedding")
    _plain(axes)
    axes.legend(fontsize=9, frameon=False)
    axes.set_title(title, fontsize=11)
    return save_png(figure, path, DOTS_PER_INCH)


def draw_lengths(results: Mapping[str, Sequence[Extrapolated]], title: str, path: Path) -> Path:
    """Draws a PNG: the loss of each model against the length of the texts that it reads."""
    figure = new_figure(7.0, 4.6)
    axes = figure.subplots()
    for (name, lengths), color in zip(results.items(), _cycle(len(results)), strict=True):
        read = [(result.length, result.loss) for result in lengths if result.loss is not None]
        label = name if len(read) == len(lengths) else f"{name} (no positions beyond {read[-1][0]:,})"
        axes.plot(*zip(*read, strict=True), "o-", color=color, label=label)
    places = sorted({result.length for lengths in results.values() for result in lengths})
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{length:,}" for length in places])
    axes.minorticks_off()
    axes.set_xlabel("tokens that are read at once; the shortest were trained on")
    axes.set_ylabel("loss, nats a token")
    _plain(axes)
    axes.legend(fontsize=9, frameon=False)
    axes.set_title(title, fontsize=11)
    return save_png(figure, path, DOTS_PER_INCH)


def _cycle(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def _plain(axes: "Axes") -> None:
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
