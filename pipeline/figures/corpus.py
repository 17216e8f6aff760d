"""A parallel corpus as a picture."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from transloom.pipeline.data.corpus_report import BINS, RATIOS
from transloom.pipeline.figures.png import new_figure, save_png

DOTS_PER_INCH = 130
MOST_SCRIPTS = 6


def draw_corpus(report: Mapping[str, Any], counts: Mapping[str, Any], languages: Sequence[str], path: Path) -> Path:
    """Draws a PNG of train: lengths of both sides, the ratio of lengths, scripts, and what cleaning did.

    Args:
        report: see `report_corpus`. counts: of the corpus's manifest.
        languages: of source and target.
    """
    import matplotlib
    from matplotlib.ticker import EngFormatter

    train = report["train"]
    with matplotlib.rc_context({"text.parse_math": False}):  # a dollar in a name is no mathematics
        figure = new_figure(11, 8)
        lengths, ratios, scripts, rules = figure.subplots(2, 2).flatten()
        names = [*(f"{low}" if high == low + 1 else f"{low}–{high - 1}" for low, high in _ends(BINS)), f"{BINS[-1]}+"]
        for i, (side, language) in enumerate(zip(("source", "target"), languages, strict=True)):
            places = [x + 0.4 * (i - 0.5) for x in range(len(BINS))]
            lengths.bar(places, train["lengths"][side], 0.4, label=f"{side} ({language})")
        lengths.set_xticks(range(len(BINS)), names, rotation=45)
        lengths.set(title="Lengths", xlabel="words in a sentence", ylabel="sentences of train")
        lengths.legend()
        names = [*(f"{low:g}–{high:g}" for low, high in _ends(RATIOS)), f"{RATIOS[-1]:g}+"]
        ratios.bar(range(len(RATIOS)), train["ratios"])
        ratios.set_xticks(range(len(RATIOS)), names, rotation=45)
        ratios.set(title="Ratio of lengths", xlabel="target words a source word", ylabel="pairs of train")
        shown = list(dict.fromkeys(name for side in train["scripts"].values() for name in list(side)[:MOST_SCRIPTS]))
        for i, (side, language) in enumerate(zip(("source", "target"), languages, strict=True)):
            letters = max(1, sum(train["scripts"][side].values()))
            shares = [100 * train["scripts"][side].get(name, 0) / letters for name in shown]
            scripts.barh([y + 0.4 * (i - 0.5) for y in range(len(shown))], shares, 0.4, label=f"{side} ({language})")
        scripts.set_yticks(range(len(shown)), shown)
        scripts.set(xlabel="% of the letters, by script")
        scripts.set_xscale("symlog", linthresh=0.01)
        scripts.xaxis.set_major_formatter(lambda x, _: f"{x:g}")  # the scale's own writes mathematics
        scripts.invert_yaxis()
        scripts.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize=8, frameon=False)
        parts = {"kept": counts["splits"]["train"]["pairs"], "held out": sum(counts["held_out"].values())}
        parts |= counts["dropped"]
        colors = ["tab:green", "tab:blue", *["tab:red"] * len(counts["dropped"])]
        rules.barh(range(len(parts)), list(parts.values()), color=colors)
        rules.set_yticks(range(len(parts)), list(parts))
        rules.set_xscale("symlog")
        rules.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k: long numbers would run into each other
        rules.invert_yaxis()
        for y, count in enumerate(parts.values()):
            rules.text(max(count, 1), y, f" {count:,}", va="center", fontsize=8)
        rules.set(title="Cleaning", xlabel="pairs read for train")
        rules.margins(x=0.2)
        for axes in (ratios, scripts, lengths, rules):
            axes.spines[["top", "right"]].set_visible(False)
        return save_png(figure, path, DOTS_PER_INCH)


def _ends(bins: Sequence[float]) -> list[tuple[Any, Any]]:
    return list(pairwise(bins))
