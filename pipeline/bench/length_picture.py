"""The bench of lengths as a picture: seconds and memory of a training step over the text's length."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transloom.pipeline.figures.curves import BLUE, DOTS_PER_INCH, GREEN, ORANGE, WIDTH_PIXELS
from transloom.pipeline.figures.png import new_figure, save_png

COLORS = {"full": ORANGE, "window": BLUE, "linear": GREEN}


def draw_lengths(result: Mapping[str, Any], path: Path) -> Path:
    """Draws a PNG of 1000 pixels' width: a step's time and attention's part of it, and peak memory, on logarithmic
    axes.

    Args:
        result: with "lengths" (`length_result`) and "machine".
    """
    figure = new_figure(WIDTH_PIXELS / DOTS_PER_INCH, 9.0)
    time, memory = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    kinds = result["lengths"]["kinds"]
    ticks = sorted({int(length) for kind in kinds.values() for length in kind["lengths"]})
    for name, kind in kinds.items():
        if not kind["lengths"]:
            continue
        lengths = sorted(map(int, kind["lengths"]))  # the file has them in the order of their letters
        rows = [kind["lengths"][str(length)] for length in lengths]
        slope = kind["exponent"]
        label = f"{name}, exponent {slope['value']:.2f}" if slope else name
        color = COLORS[name]
        steps = [row["seconds"] for row in rows]
        median = [step["median"] for step in steps]
        errors = [[step["median"] - step["least"] for step in steps], [step["most"] - step["median"] for step in steps]]
        time.errorbar(lengths, median, errors, color=color, marker="o", capsize=3, label=label)
        alone = [row["attention_seconds"]["median"] for row in rows]
        time.plot(lengths, alone, color=color, ls=":", lw=1.5)
        memory.plot(lengths, [row["peak_bytes"] / 1e9 for row in rows], color=color, marker="o", label=name)
    time.plot([], [], color="black", ls=":", label="attention alone")
    for axes, label in ((time, "seconds a training step (median, range)"), (memory, "peak memory (GB)")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=10 if axes is time else 2)  # memory spans few decades
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
    time.legend(frameon=False)
    memory.set_xlabel("tokens of the text")
    about = result["machine"]
    title = f"{about['gpu'] or about['processor']}, {about['cores']} cores"
    measured = result["lengths"]["measured"]
    if measured["turns"] < measured["of"]:
        title += f"\nstopped after {measured['turns']} of {measured['of']} measurements"
    figure.suptitle(title, fontsize=13)
    return save_png(figure, path, DOTS_PER_INCH)
