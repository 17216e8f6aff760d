"""The confusion matrix of a classifier as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transloom.pipeline.figures.png import new_figure, save_png

DOTS_PER_INCH = 150
MOST_NUMBERS = 20  # labels; with more, the cells are too small for their counts
LABEL_CHARS = 24


def draw_confusion(confusion: np.ndarray, labels: Sequence[str], title: str, path: Path) -> Path:
    """Draws a PNG: a row for each label, a column for each predicted label, darker for a larger share of the row.

    Args:
        confusion: (C, C) numbers of texts.
    """
    import matplotlib

    names = [label if len(label) <= LABEL_CHARS else f"{label[:LABEL_CHARS]}…" for label in labels]
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    size = min(14.0, 2.8 + 0.55 * len(labels))
    with matplotlib.rc_context({"text.parse_math": False}):  # a dollar in a label is no mathematics
        figure = new_figure(size + 1.2, size)
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
        axes.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 4 else 0)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted label")
        axes.set_ylabel("label")
        axes.set_title(title, fontsize=10)
        if len(labels) <= MOST_NUMBERS:
            for row, column in np.ndindex(*confusion.shape):
                color = "white" if shares[row, column] > 0.55 else "black"
                text = f"{confusion[row, column]:,}\n{100 * shares[row, column]:.0f} %"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
        figure.colorbar(image, ax=axes, label="share of the label's texts", shrink=0.8)
        return save_png(figure, path, DOTS_PER_INCH)
