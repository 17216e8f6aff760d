"""Pictures of a comparison, for light pages and dark ones: curves of the trainings, and scores of parts of the test
set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transloom.pipeline.figures.png import new_figure, save_png
from transloom.pipeline.figures.race import STYLES
from transloom.pipeline.tasks.task import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours again, those of them that stand out on a dark page
DARK_COLORS = ("#56B4E9", "#E69F00", "#2DC9A0", "#CC79A7", "#F0E442")
LINES = ("-", "--", ":")  # when the colours are used up
HATCHES = ("", "///", "...", "xxx", "\\\\\\")
SIZE, DOTS_PER_INCH = (12.0, 6.4), 110
LEGEND_CHARS = 150  # in a row of that width


def draw_courses(
    runs: Mapping[str, Mapping[str, Any]],
    path: Path,
    metric: Metric,
    column: str,
    with_losses: bool = True,
    dark: bool = False,
) -> Path:
    """Draws a PNG: loss above, validation scores below, each against steps, tokens and time. Training losses are thin,
    validation losses have marks.

    Args:
        runs: by name, "course" and "validations" as `RunFacts` has them.
        column: whose tokens are predicted. with_losses: whether the runs' losses are of the same tokens.
    """
    longest = max((one["seconds"] for run in runs.values() for one in run["validations"]), default=0.0)
    unit, seconds = ("hours", 3600.0) if longest > 5400 else ("minutes", 60.0)
    axes_of = (
        ("step", 1.0, "steps"),
        (f"{column}_tokens", 1e6, f"million {column} tokens"),
        ("seconds", seconds, f"{unit} of training"),
    )
    with _theme(dark):
        whats = ["loss", metric.name] if with_losses else [metric.name]
        figure = new_figure(SIZE[0], SIZE[1] / 2 * len(whats) + (0.6 if len(whats) == 1 else 0.0))
        panels = figure.subplots(len(whats), len(axes_of), sharey="row", sharex="col", squeeze=False)
        for row, what in enumerate(whats):
            for place_across, (key, factor, label) in enumerate(axes_of):
                axes = panels[row, place_across]
                for place, (name, run) in enumerate(runs.items()):
                    style = _style(place, dark)
                    if what == "loss":
                        _plot(axes, run["course"], key, factor, what, color=style["color"], lw=0.9, alpha=0.55)
                    _plot(axes, run["validations"], key, factor, what, label=name, markersize=4, lw=1.8, **style)
                axes.set_xlim(left=0)
                _finish(axes)
                if row == len(whats) - 1:
                    axes.set_xlabel(label)
        losses = [one["loss"] for run in runs.values() for one in (*run["course"], *run["validations"])]
        if with_losses:
            panels[0, 0].set_ylabel(f"loss, nats per {column} token\n(thin: in training)")
        if with_losses and losses:  # the first steps' would press all that follows into a line
            low, top = min(losses), float(np.percentile(losses, 97))
            panels[0, 0].set_ylim(low - 0.06 * (top - low) - 0.02, top + 0.02)
        note = f"{metric.limits[0]:g} to {metric.limits[1]:g}" if metric.limits else "lower is better"
        panels[-1, 0].set_ylabel(f"validation {metric.title}\n({note})")
        if metric.limits:
            panels[-1, 0].set_ylim(bottom=metric.limits[0])
        _legend(figure, panels[-1, 0])
        return save_png(figure, path, DOTS_PER_INCH)


def _plot(axes: "Axes", moments: Sequence[Mapping[str, float]], key: str, factor: float, what: str, **style) -> None:
    axes.plot([one[key] / factor for one in moments], [one[what] for one in moments], **style)


def draw_buckets(comparison: Mapping[str, Any], path: Path, dark: bool = False) -> Path:
    """Draws a PNG: BLEU by the references' length and, where it was counted, F1 of words by training frequency."""
    parts = [("by_length", "bleu", "BLEU", "words of the reference", "sentences")]
    if comparison["by_frequency"]:
        parts.append(("by_frequency", "f1", "F1 of words", "times in the training text", "words"))
    names = list(comparison["systems"])
    with _theme(dark):
        figure = new_figure(SIZE[0], 3.9)
        panels = figure.subplots(1, len(parts), squeeze=False)[0]
        for axes, (part, score, label, what, counted) in zip(panels, parts, strict=True):
            rows = comparison[part]
            width = 0.8 / len(names)
            for place, name in enumerate(names):
                at = np.arange(len(rows)) + (place - (len(names) - 1) / 2) * width
                color, hatch = _style(place, dark)["color"], HATCHES[place % len(HATCHES)]
                style = {"color": color, "hatch": hatch, "edgecolor": axes.get_facecolor(), "lw": 0.5, "label": name}
                axes.bar(at, [row[score][name] for row in rows], width * 0.94, **style)
            axes.set_xticks(range(len(rows)), [f"{row['bucket']}\n{row[counted]:,}" for row in rows])
            axes.set_xlabel(f"{what}; below, how many {counted} that is")
            axes.set_ylabel(f"{label} (0 to 100)")
            _finish(axes)
        _legend(figure, panels[0])
        return save_png(figure, path, DOTS_PER_INCH)


def _style(place: int, dark: bool) -> dict[str, Any]:
    color, marker = STYLES[place % len(STYLES)]
    line = LINES[place // len(STYLES) % len(LINES)]
    return {"color": DARK_COLORS[place % len(STYLES)] if dark else color, "marker": marker, "ls": line}


def _theme(dark: bool):
    from matplotlib import rc_context

    paper, ink, grid = ("#1b1d21", "#d9dce1", "#3a3d44") if dark else ("#ffffff", "#222222", "#e6e6e6")
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return rc_context(
        {"figure.facecolor": paper, "axes.facecolor": paper, "grid.color": grid, **dict.fromkeys(inked, ink)}
    )


def _finish(axes: "Axes") -> None:
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(len(labels), LEGEND_CHARS // (max(map(len, labels)) + 8)))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=11)
