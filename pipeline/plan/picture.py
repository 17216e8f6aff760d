"""The picture of a plan: how the time of a step, and the workers' efficiency, change from 1 to 1024 workers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transloom.pipeline.figures.curves import DOTS_PER_INCH, GREEN, GREY, ORANGE, WIDTH_PIXELS
from transloom.pipeline.figures.png import new_figure, save_png

# Colour, marker and width: an H200 computes as an H100, so its line is a pale band on which the other one lies
STYLES = (("#9fcdee", "o", 8.0), (GREEN, "^", 1.8), (ORANGE, "s", 1.8), (GREY, "D", 1.8))


def draw_plan(plan: Mapping[str, Any], path: Path, title: str) -> Path:
    """Draws a PNG of 1000 pixels' width: above, seconds of a step against workers; below, efficiency. Solid where the
    batch grows with the workers, dashed where the same batch is shared."""
    from matplotlib.lines import Line2D

    figure = new_figure(WIDTH_PIXELS / DOTS_PER_INCH, 8)
    above, below = figure.subplots(2, 1, sharex=True)
    names = {one["key"]: one["name"] for one in plan["hardware"]}
    for rows, (color, marker, width) in zip(plan["growth"].values(), STYLES, strict=False):
        dashes = (0, (8 / width, 4 / width))  # counted in widths: 8 points and 4 between them, for every line
        for batch, line in (("growing_batch", "-"), ("same_batch", dashes)):
            known = [row for row in rows if row[batch]]
            workers = [row["workers"] for row in known]
            style = {"color": color, "marker": marker, "markersize": width + 2.5, "lw": width, "ls": line}
            above.plot(workers, [row[batch]["total"] for row in known], **style)
            below.plot(workers, [row[batch]["efficiency"] for row in known], **style)
    above.set_yscale("log")
    above.set_ylabel("seconds of a step")
    below.set_ylim(0, 1.05)
    below.set_ylabel("efficiency: speed over that of\nas many workers without loss")
    below.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    below.set_xlabel("workers")
    below.set_xscale("log", base=2)
    ticks = [row["workers"] for row in next(iter(plan["growth"].values()))]
    below.set_xticks(ticks, [str(tick) for tick in ticks])
    for axes in (above, below):
        axes.grid(color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    devices = [Line2D([], [], color=color, marker=marker, lw=w) for color, marker, w in STYLES[: len(names)]]
    batches = [Line2D([], [], color="black", ls=line, lw=1.8) for line in ("-", "--")]
    labels = [*names.values(), "a batch that grows with the workers", "the same batch"]
    figure.legend([*devices, *batches], labels, loc="outside lower center", ncols=3, frameon=False, fontsize=11)
    figure.suptitle(title, fontsize=14)
    return save_png(figure, path, DOTS_PER_INCH)
