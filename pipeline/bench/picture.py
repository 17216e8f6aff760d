"""The bench as a picture: speeds and memory of all contenders, and the ratios with their targets."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transloom.pipeline.figures.curves import BLUE, DOTS_PER_INCH, GREEN, GREY, ORANGE, WIDTH_PIXELS
from transloom.pipeline.figures.png import new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALE = "#c9c9c9"
BAR_INCHES = 0.34


def draw_bench(result: Mapping[str, Any], path: Path) -> Path:
    """Draws a PNG of 1000 pixels' width from what the bench saved: one panel above the other, ours in blue.

    Args:
        result: with "training" or "decoding" or both, and "machine".
    """
    panels: list[tuple[int, Callable[[Axes], None]]] = []
    ratios: list[Mapping[str, Any]] = []
    if training := result.get("training"):
        contenders = training["contenders"]
        panels.append((len(contenders), lambda axes: _draw_training(axes, contenders)))
        panels.append((len(contenders), lambda axes: _draw_memory(axes, contenders)))
        ratios += training["ratios"]
    if decoding := result.get("decoding"):
        searches = decoding["contenders"]
        panels.append((2 * len(searches), lambda axes: _draw_decoding(axes, searches)))
        ratios += decoding["ratios"]
    if ratios:
        panels.append((len(ratios), lambda axes: _draw_ratios(axes, ratios)))
    heights = [BAR_INCHES * bars + 0.8 for bars, _ in panels]
    figure = new_figure(WIDTH_PIXELS / DOTS_PER_INCH, sum(heights) + 1.0)
    rows = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (_, draw) in zip(rows, panels, strict=True):
        draw(axes)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    about = result["machine"]
    title = [f"{about['gpu'] or about['processor']}, {about['cores']} cores"]
    for part in ("training", "decoding"):
        measured = result.get(part, {}).get("measured", {"turns": 0, "of": 0})
        if measured["turns"] < measured["of"]:
            title.append(f"stopped after {measured['turns']} of {measured['of']} turns of {part}")
    figure.suptitle("\n".join(title), fontsize=13)
    return save_png(figure, path, DOTS_PER_INCH)


def _draw_training(axes: "Axes", contenders: Mapping[str, Any]) -> None:
    spreads = [one["target_tokens_per_second"] for one in contenders.values()]
    colors = [BLUE if _is_ours(name) else GREY for name in contenders]
    notes = [f"{one['share_of_matmul']:.0%} of matmul" for one in contenders.values()]
    _draw_bars(axes, list(contenders), spreads, colors, notes)
    axes.set_xlabel("training: target tokens/s without padding (median, range)")


def _draw_memory(axes: "Axes", contenders: Mapping[str, Any]) -> None:
    names = list(contenders)
    on_gpu = any(one["gpu_peak_bytes"] for one in contenders.values())
    peaks = [one["gpu_peak_bytes" if on_gpu else "peak_bytes"] / 1e6 for one in contenders.values()]
    axes.barh(names, peaks, color=[BLUE if _is_ours(name) else GREY for name in names], height=0.7)
    if not on_gpu:
        imports = [one["imported_bytes"] / 1e6 for one in contenders.values()]
        axes.barh(names, imports, color=PALE, height=0.7, label="libraries alone")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, frameon=False)
    for place, peak in enumerate(peaks):
        axes.text(peak, place, f" {peak:,.0f}", va="center")
    axes.invert_yaxis()
    axes.set_xlim(right=max(peaks) * 1.12)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(f"training: peak memory{' of the GPU' if on_gpu else ', all its processes'} (MB)")


def _draw_decoding(axes: "Axes", searches: Mapping[str, Any]) -> None:
    names, spreads, colors, notes = [], [], [], []
    for name, by_beam in searches.items():
        for beam, one in by_beam.items():
            is_text = "tokens_per_second" in one
            names.append(f"{name}, {beam} at a time" if is_text else f"{name}, beam {beam}")
            spreads.append(one["tokens_per_second" if is_text else "sentences_per_second"])
            colors.append(BLUE if _is_ours(name) else GREY)
            notes.append(f"{one['identical_to_ours']:.0%} as ours" if is_text else f"BLEU {one['bleu']:.1f}")
    _draw_bars(axes, names, spreads, colors, notes)
    what = "tokens/s (greedy, with a cache" if is_text else "sentences/s (processes x threads"
    axes.set_xlabel(f"decoding: {what}; fp32 or as said)")


def _draw_bars(
    axes: "Axes",
    names: Sequence[str],
    spreads: Sequence[Mapping[str, float]],
    colors: Sequence[str],
    notes: Sequence[str],
) -> None:
    medians = [one["median"] for one in spreads]
    below = [one["median"] - one["least"] for one in spreads]
    above = [one["most"] - one["median"] for one in spreads]
    axes.barh(names, medians, color=colors, height=0.7, xerr=(below, above), error_kw={"lw": 1.2, "capsize": 3})
    for place, (one, note) in enumerate(zip(spreads, notes, strict=True)):
        axes.text(one["most"], place, f"  {one['median']:,.0f}  ({note})", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, max(one["most"] for one in spreads) * 1.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _draw_ratios(axes: "Axes", ratios: Sequence[Mapping[str, Any]]) -> None:
    """How far each is beyond its target: right of the line is met, whichever way it counts."""
    names = [one["what"] for one in ratios]
    reached = [_reached(one) for one in ratios]
    axes.barh(
        names,
        [min(one, 2.0) for one in reached],
        color=[GREEN if one["is_met"] else ORANGE for one in ratios],
        height=0.6,
    )
    axes.axvline(1.0, color="black", lw=1.2)
    for place, (one, value) in enumerate(zip(ratios, reached, strict=True)):
        sign = "≥" if one["at_least"] else "≤"
        axes.text(max(1.0, min(value, 2.0)), place, f"  {one['value']:.3g} ({sign} {one['goal']:g})", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 2.7)
    axes.set_xlabel("targets reached (1: just met)")


def _reached(ratio: Mapping[str, Any]) -> float:
    if ratio["at_least"]:
        return ratio["value"] / ratio["goal"]
    return ratio["goal"] / ratio["value"] if ratio["value"] else float("inf")


def _is_ours(name: str) -> bool:
    return name.startswith("ours")
