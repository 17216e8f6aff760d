"""Pictures of attention: every head of every layer, and the alignment that the last layer makes of a translation."""

import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transloom.pipeline.attention_maps import AttentionMaps
from transloom.pipeline.figures.png import new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DOTS_PER_INCH = 150
FONT = "DejaVu Sans"  # comes with matplotlib
NO_FONT = "Last Resort"  # so does this one, which has a box for every character there is
UNSEEN, FRAME = "#e4e4e4", "#b0b0b0"
MIN_POINTS = 5.0  # of letters that can still be read: where a token has less room, some labels are left out


class _Side(NamedTuple):
    """Queries or keys: the tokens' labels, and what they are."""

    labels: Sequence[str]
    name: str


def draw_attention(maps: AttentionMaps, folder: Path) -> list[Path]:
    """Draws PNG files into the folder and returns their paths: alignment, the last layer's cross-attention averaged
    over its heads; cross, decoder and encoder, with a panel for each layer and head; each of a model that has such. A
    row of a panel is a query, its dark cells are the keys that it takes most of."""
    import matplotlib

    sentences = f"{maps.sentence}\n→ {maps.translation}" if maps.translation else maps.sentence
    families, missing = _fonts("".join((sentences, *maps.source, *maps.read, *maps.written)))

    def readable(text: str) -> str:
        return "".join(f"U+{ord(letter):04X}" if letter in missing else letter for letter in text)

    source, read, written = ([readable(label) for label in part] for part in (maps.source, maps.read, maps.written))
    is_pair = maps.cross is not None
    texts = _Side(source, "source" if is_pair else "text")
    writes = _Side(written, "translation: what is being written" if is_pair else "what comes next")
    has_been = _Side(read, "translation: what has been written" if is_pair else "what has been read")
    below = f"\n{readable(sentences)}"
    # A dollar in a sentence is no mathematics.
    with matplotlib.rc_context({"text.parse_math": False, "font.family": families}):
        figures = {}
        if maps.cross is not None:
            last = maps.cross[-1]
            title = "Cross-attention" + (", mean of the last layer's heads" if len(last) > 1 else "")
            figures["alignment"] = _draw_alignment(last.mean(axis=0), writes, texts, title + below)
            if maps.encoder is not None:
                figures["cross"] = _draw_heads(maps.cross, writes, texts, "Cross-attention" + below)
        if maps.decoder is not None:
            decoder = np.ma.masked_array(maps.decoder, np.triu(np.ones(maps.decoder.shape, dtype=bool), 1))
            title = "Decoder self-attention" if is_pair else "Self-attention"
            figures["decoder"] = _draw_heads(decoder, writes, has_been, title + below)
        if maps.encoder is not None:
            title = "Encoder self-attention" if is_pair else "Self-attention"
            figures["encoder"] = _draw_heads(maps.encoder, texts, texts, title + below)
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            save_png(figure, folder / f"{name}.png", DOTS_PER_INCH)
    return [folder / f"{name}.png" for name in figures]


def _draw_heads(weights: np.ndarray, rows: _Side, columns: _Side, title: str) -> "Figure":
    """weights: (layers, heads, queries, keys)"""
    layers, heads, queries, keys = weights.shape
    # Inches of a token: all heads together are at most 24 wide, and those of a few tokens not tiny.
    cell = max(min(0.19, 24 / (heads * keys)), 1.0 / max(queries, keys))
    figure = _figure(heads * keys * cell, layers * queries * cell, title)
    panels = figure.subplots(layers, heads, sharex=True, sharey=True, squeeze=False)
    image = None
    for (layer, head), axes in np.ndenumerate(panels):
        image = _draw_weights(axes, weights[layer, head])
        if layer == 0:
            axes.set_title(f"head {head + 1}", fontsize=9)
        if head == heads - 1:
            axes.annotate(
                f"layer {layer + 1}", (1.02, 0.5), xycoords="axes fraction", rotation=270, va="center", fontsize=9
            )
    for axes in panels[-1]:
        _label_tokens(axes.xaxis, columns, cell, 7.0, rotation=90)
    for axes in panels[:, 0]:
        _label_tokens(axes.yaxis, rows, cell, 7.0)
    figure.supxlabel(columns.name, fontsize=9)
    figure.supylabel(rows.name, fontsize=9)
    assert image is not None
    _explain(figure, image, list(panels.flat))
    return figure


def _draw_alignment(weights: np.ndarray, rows: _Side, columns: _Side, title: str) -> "Figure":
    """weights: (queries, keys)"""
    queries, keys = weights.shape
    cell = min(0.4, 16 / keys)
    figure = _figure(keys * cell, queries * cell, title)
    axes = figure.subplots()
    image = _draw_weights(axes, weights)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    _label_tokens(axes.xaxis, columns, cell, 11.0, rotation=90)
    _label_tokens(axes.yaxis, rows, cell, 11.0)
    axes.set_xlabel(columns.name, fontsize=10)
    axes.set_ylabel(rows.name, fontsize=10)
    _explain(figure, image, [axes])
    return figure


def _figure(width: float, height: float, title: str) -> "Figure":
    """A figure with room for panels of that size in inches, and for what stands around them."""
    width = max(width + 2.0, 5.0)
    points = min(max(width * 0.7, 10.0), 16.0)
    lines = [part for line in title.split("\n") for part in textwrap.wrap(line, round(width * 110 / points))]
    figure = new_figure(width, height + 1.6 + 0.018 * points * len(lines))
    figure.suptitle("\n".join(lines), fontsize=points)
    return figure


def _draw_weights(axes: "Axes", weights: np.ndarray) -> "AxesImage":
    from matplotlib.colors import PowerNorm

    axes.set_facecolor(UNSEEN)
    axes.spines[:].set_color(FRAME)
    axes.tick_params(length=0)
    # All panels on one scale; its square root still shows the 0.02 of a head that looks at 50 tokens alike.
    return axes.imshow(weights, cmap="Blues", norm=PowerNorm(0.5, 0.0, 1.0), aspect="auto", interpolation="nearest")


def _label_tokens(axis: "Axis", side: _Side, cell: float, most_points: float, rotation: float = 0) -> None:
    points = min(most_points, cell * 72 * 0.8)
    every = int(np.ceil(MIN_POINTS / points))
    places = range(0, len(side.labels), every)
    axis.set_ticks(places, [side.labels[i] for i in places], fontsize=max(points, MIN_POINTS), rotation=rotation)


def _explain(figure: "Figure", image: "AxesImage", panels: list["Axes"]) -> None:
    ticks = (0.0, 0.05, 0.2, 0.5, 1.0)
    share = min(0.9, 5 / figure.get_figheight())  # of the height; at most 5 inches
    bar = figure.colorbar(image, ax=panels, ticks=ticks, aspect=25, pad=0.02, shrink=share, anchor=(0, 1))
    bar.ax.set_yticklabels([f"{tick:g}" for tick in ticks], fontsize=8)
    bar.set_label("attention weight (a row sums to 1)", fontsize=8)


def _fonts(text: str) -> tuple[list[str], set[str]]:
    """The families of fonts that together have the text's letters, and the letters that no installed font has."""
    from matplotlib.font_manager import findfont, fontManager, get_font

    families, missing = [FONT], _lacking(get_font(findfont(FONT)), set(text) - {"\n"})
    for entry in fontManager.ttflist if missing else ():
        if NO_FONT in entry.name or entry.style != "normal":
            continue
        with suppress(OSError, RuntimeError):  # it is gone, or of a kind that can't be drawn
            left = _lacking(get_font(entry.fname), missing)
            if len(left) < len(missing):
                families.append(entry.name)
            missing = left
    return families, missing


def _lacking(font: Any, letters: set[str]) -> set[str]:
    return {letter for letter in letters if not font.get_char_index(ord(letter))}
