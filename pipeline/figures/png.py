"""A figure, and its file. Matplotlib is imported when the first figure is made: it takes most of a second."""

from pathlib import Path
from typing import TYPE_CHECKING

from transloom.pipeline.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches. Not pyplot's, which stay alive and, where there is a screen, open windows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: "Figure", path: Path, dots_per_inch: int) -> Path:
    """Writes the figure, and its folder where there is none; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=dots_per_inch)
    return path
