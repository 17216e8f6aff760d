"""What a parallel corpus is like, before anything is trained on it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from transloom.pipeline.data.duplicates import find_duplicates, write_digests
from transloom.pipeline.data.overlap import bare_words
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.scripts import count_scripts
from transloom.pipeline.data.shards import SIDES
from transloom.pipeline.data.words import collapse_whitespace, count_collapsed_words
from transloom.pipeline.progress import MapTasks, Progress, no_progress

# Words of a sentence: the bins of the histograms, each from its number to before the next.
BINS = (0, 1, 2, 3, 5, 8, 12, 17, 23, 30, 40, 60, 100, 250)
RATIOS = (0.0, 0.25, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 4.0)  # target words over source words
MEASURED_PAIRS = 50_000  # in a task
SAMPLE_PAIRS = 5


@dataclass
class Measures:
    """Counts of some pairs.

    Attributes:
        words: by side and bin, sentences. ratios: by bin, pairs.
        scripts: by side and script, letters. longest: by side, words.
    """

    pairs: int = 0
    words: dict[str, list[int]] = field(default_factory=lambda: {side: [0] * len(BINS) for side in SIDES})
    ratios: list[int] = field(default_factory=lambda: [0] * len(RATIOS))
    scripts: dict[str, Counter[str]] = field(default_factory=lambda: {side: Counter() for side in SIDES})
    num_words: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))
    longest: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))

    def add(self, other: "Measures") -> None:
        self.pairs += other.pairs
        self.ratios = [one + more for one, more in zip(self.ratios, other.ratios, strict=True)]
        for side in SIDES:
            self.words[side] = [one + more for one, more in zip(self.words[side], other.words[side], strict=True)]
            self.scripts[side].update(other.scripts[side])
            self.num_words[side] += other.num_words[side]
            self.longest[side] = max(self.longest[side], other.longest[side])


def _bin(bins: Sequence[float], value: float) -> int:
    return next(i for i in reversed(range(len(bins))) if value >= bins[i])


@dataclass(frozen=True)
class MeasureTask:
    """Lines of a split of a prepared corpus.

    Attributes:
        offsets: bytes, where the first line of either side begins.
        digests: the beginning of the names of files to write for duplicates.
    """

    folder: Path
    split: str
    offsets: tuple[int, int]
    digests: Path


def measure(task: MeasureTask) -> Measures:
    """Counts MEASURED_PAIRS pairs, and writes the digests of the pairs and of their bare words."""
    measures = Measures()
    texts: list[bytes] = []
    bare: list[bytes] = []
    for pair in _pairs_at(task.folder, task.split, task.offsets, MEASURED_PAIRS):
        pair = SentencePair(*map(collapse_whitespace, pair))
        counts = [count_collapsed_words(text) for text in pair]
        measures.pairs += 1
        for side, text, count in zip(SIDES, pair, counts, strict=True):
            measures.words[side][_bin(BINS, count)] += 1
            measures.scripts[side].update(count_scripts(text))
            measures.num_words[side] += count
            measures.longest[side] = max(measures.longest[side], count)
        measures.ratios[_bin(RATIOS, counts[1] / max(1, counts[0]))] += 1
        texts.append("\n".join(pair).encode())
        bare.append("\n".join(map(bare_words, pair)).encode())
    for name, some in (("exact", texts), ("near", bare)):
        write_digests(task.digests.with_name(f"{task.digests.name}.{name}.npy"), some, range(len(some)))
    return measures


def _pairs_at(folder: Path, split: str, offsets: Sequence[int], count: int | None) -> Iterator[SentencePair]:
    with open(folder / f"{split}.source", "rb") as source, open(folder / f"{split}.target", "rb") as target:
        source.seek(offsets[0])
        target.seek(offsets[1])
        for lines in islice(zip(source, target, strict=True), count):
            yield SentencePair(*(line.removesuffix(b"\n").decode() for line in lines))


def report_corpus(
    folder: Path, counts: dict[str, Any], work: Path, map_tasks: MapTasks = map, progress: Progress = no_progress
) -> dict[str, Any]:
    """Measures the splits of a prepared corpus.

    Args:
        folder, counts: of the corpus, and from its manifest.
        work: an empty folder for the tasks' files.
    Returns:
        by split: pairs, words, longest, histograms, scripts, duplicates, near_duplicates, sample.
    """
    report: dict[str, Any] = {}
    for split, of_split in counts["splits"].items():
        tasks = list(_tasks(folder, split, work))
        sizes, whole = [], Measures()
        for measures in (map_tasks if len(tasks) > 1 else map)(measure, tasks):
            whole.add(measures)
            sizes.append(measures.pairs)
            progress(f"measure {split}", whole.pairs, of_split["pairs"])
        duplicates = {}
        for name in ("exact", "near"):
            files = [task.digests.with_name(f"{task.digests.name}.{name}.npy") for task in tasks]
            found = find_duplicates(files, sizes, map_tasks, no_progress) if files else []
            duplicates[name] = sum(int(part.sum()) for part in found)
        report[split] = {
            "pairs": whole.pairs,
            "words": whole.num_words,
            "longest": whole.longest,
            "lengths": whole.words,
            "ratios": whole.ratios,
            "scripts": {side: {name: n for name, n in whole.scripts[side].most_common() if n} for side in SIDES},
            "duplicates": duplicates["exact"],
            "near_duplicates": duplicates["near"],
            "sample": _sample(folder, split, whole.pairs),
        }
    return report


def _tasks(folder: Path, split: str, work: Path) -> Iterator[MeasureTask]:
    from transloom.pipeline.data.lines import line_cuts

    sides = [folder / f"{split}.{side}" for side in SIDES]
    if not all(side.stat().st_size for side in sides):
        return
    cuts = [(0, 0), *zip(*(line_cuts(side, MEASURED_PAIRS) for side in sides), strict=True)]
    for number, offsets in enumerate(cuts):
        yield MeasureTask(folder, split, offsets, work / f"{split}-{number:06d}")


def _sample(folder: Path, split: str, pairs: int) -> list[list[str]]:
    """Pairs evenly spread over the split."""
    places = {(2 * i + 1) * pairs // (2 * SAMPLE_PAIRS) for i in range(SAMPLE_PAIRS)}
    return [list(pair) for i, pair in enumerate(_pairs_at(folder, split, (0, 0), None)) if i in places]
