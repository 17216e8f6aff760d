"""Whether one system is better than another: sacreBLEU's own intervals and paired tests.

BLEU, chrF2 and TER of a test set are made of counts that add up over its sentences. These are counted once for each
system, in parallel, which matters for TER; scores of resampled and shuffled test sets, and of parts of one, come
from them. So does a mean of scores that the sentences have, such as COMET's.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sacrebleu.metrics.base import Score, Signature
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest

from transloom.pipeline.evaluate.tokenizers import DEFAULT, load_tokenizer
from transloom.pipeline.progress import MapTasks, Progress, no_progress

METRICS = ("bleu", "chrf", "ter")
BY_CHARACTER = ("zh", "ja-mecab")  # with these tokenizers of BLEU, TER splits Chinese characters too
SENTENCES_PER_TASK = 250
RESAMPLES, TRIALS = 1000, 10_000  # sacreBLEU's own defaults

# Two scores below it are not compared. So little BLEU has next to no four-gram of the references in it: sacreBLEU's
# exponential smoothing makes up the precisions that are 0, and what differs is lengths and full stops. A test on a
# thousand sentences calls 0.02 of that certain, and that is no quality of a translation.
LEAST_BLEU = 1.0

Statistics = list[list[float]]  # of one system by one metric: a list for each sentence


@dataclass(frozen=True)
class Tested:
    """A system's score of 0 to 100 (TER: 0 is best, and it can be more; a mean: the sentences' own scale), and how it
    stands beside the baseline.

    Attributes:
        low: with `high` the 95 % confidence interval, by bootstrap (Koehn 2004), as sacreBLEU states it.
        difference: to the baseline's score; None for the baseline itself, and so are the p-values.
        p_bootstrap: of paired bootstrap resampling (Koehn 2004).
        p_randomisation: of paired approximate randomisation (Riezler and Maxwell 2005).
        p_holm: `p_randomisation`, corrected for the number of systems that are compared with the baseline.
    """

    score: float
    low: float
    high: float
    difference: float | None = None
    p_bootstrap: float | None = None
    p_randomisation: float | None = None
    p_holm: float | None = None


def are_too_low(bleu: Iterable[float]) -> bool:
    """Whether none of the BLEU scores is high enough to say which system is better."""
    return max(bleu) < LEAST_BLEU


def make_metric(name: str, tokenize: str = DEFAULT, quiet: bool = False) -> Any:
    """sacreBLEU's metric "bleu", "chrf" or "ter".

    Args:
        tokenize: BLEU's tokenizer, see `tokenizer_for`.
        quiet: no warning of text that looks tokenised.
    Raises:
        UserError: the tokenizer lacks a package.
    """
    if name == "bleu":
        load_tokenizer(tokenize)
        return BLEU(force=quiet, tokenize=tokenize)
    if name == "chrf":
        return CHRF()
    return TER(normalized=tokenize in BY_CHARACTER, asian_support=tokenize in BY_CHARACTER)


def count_statistics(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    map_tasks: MapTasks = map,
    progress: Progress = no_progress,
    tokenize: str = DEFAULT,
) -> dict[str, dict[str, Statistics]]:
    """What each metric counts in each sentence: metric → system → a list of counts for each sentence.

    Args:
        systems: translations by the system's name, as many as there are references.
        map_tasks: `map`, or one that spreads the work; results in order.
        tokenize: BLEU's tokenizer, see `tokenizer_for`.
    """
    starts = range(0, len(references), SENTENCES_PER_TASK)
    parts = [slice(start, start + SENTENCES_PER_TASK) for start in starts]
    # TER first, for it takes longest: at the end no process is left alone with it
    wanted = [(metric, name) for metric in reversed(METRICS) for name in systems]
    tasks = [
        (metric, tokenize, list(systems[name][part]), list(references[part]))
        for metric, name in wanted
        for part in parts
    ]
    found: Iterator[Statistics] = iter(map_tasks(_count, tasks))
    counted: dict[str, dict[str, Statistics]] = {metric: {} for metric in METRICS}
    done, total = 0, len(references) * len(wanted)
    for metric, name in wanted:
        statistics = counted[metric].setdefault(name, [])
        for _ in parts:
            progress("counting n-grams and edits, sentences", done, total)
            counts = next(found)
            statistics += counts
            done += len(counts)
    return counted


def _count(task: tuple[str, str, list[str], list[str]]) -> Statistics:
    metric, tokenize, hypotheses, references = task
    return make_metric(metric, tokenize, quiet=True)._extract_corpus_statistics(hypotheses, [references])


class _Mean:
    """The mean of scores that the sentences have, for sacreBLEU's tests. It counts the score and the sentence."""

    def get_signature(self) -> Signature:
        return Signature({"num_refs": 1})

    def _aggregate_and_compute(self, statistics: Sequence[Sequence[float]]) -> Score:
        return self._compute_score_from_stats([sum(column) for column in zip(*statistics, strict=True)])

    def _compute_score_from_stats(self, sums: Sequence[float]) -> Score:
        return Score("mean", float(sums[0]) / float(sums[1]))


def compare_means(systems: Mapping[str, Sequence[float]]) -> dict[str, Tested]:
    """As `compare_systems`, of the means of the sentences' scores.

    Args:
        systems: by the system's name the scores of all sentences, on any scale on which more is better.
    """
    counted = {name: [[score, 1.0] for score in scores] for name, scores in systems.items()}
    return compare_systems({"mean": counted})["mean"]


def score_of(metric: str, statistics: Statistics) -> float:
    """The score of the sentences that were counted; 0 of none."""
    return float(make_metric(metric)._aggregate_and_compute(statistics).score) if statistics else 0.0


def signature_of(metric: str, tokenize: str = DEFAULT) -> str:
    """sacreBLEU's signature of a score on one reference."""
    counter = make_metric(metric, tokenize)
    counter.num_refs = 1
    return str(counter.get_signature())


def compare_systems(
    counted: Mapping[str, Mapping[str, Statistics]], map_tasks: MapTasks = map, progress: Progress = no_progress
) -> dict[str, dict[str, Tested]]:
    """Each system against the first, the baseline: metric → system → its score, interval and p-values.

    The seed is sacreBLEU's (12345, or the environment's SACREBLEU_SEED), so its own command says the same.

    Args:
        counted: what `count_statistics` found, of two systems at least.
    """
    pairs = [(metric, *list(systems)[:1], name) for metric, systems in counted.items() for name in list(systems)[1:]]
    tasks = [(metric, counted[metric][baseline], counted[metric][name]) for metric, baseline, name in pairs]
    tested: dict[str, dict[str, Tested]] = {metric: {} for metric in counted}
    results = iter(map_tasks(_test_pair, tasks))
    samples = RESAMPLES + TRIALS
    for done, (metric, baseline, name) in enumerate(pairs):
        progress("testing differences, resamples and trials", done * samples, len(pairs) * samples)
        tested[metric][baseline], tested[metric][name] = next(results)
    for systems in tested.values():
        names = list(systems)[1:]
        corrected = holm([systems[name].p_randomisation or 0.0 for name in names])
        systems |= {name: replace(systems[name], p_holm=p) for name, p in zip(names, corrected, strict=True)}
    return tested


def half_width(metric: str, statistics: Statistics) -> float:
    """Of the 95 % confidence interval, by bootstrap."""
    return float(_run_test("bs", RESAMPLES, metric, [statistics])[0].ci)


def _test_pair(task: tuple[str, Statistics, Statistics]) -> tuple[Tested, Tested]:
    metric, *systems = task
    bootstrap = _run_test("bs", RESAMPLES, metric, systems)
    randomisation = _run_test("ar", TRIALS, metric, systems)
    first, second = [Tested(*map(float, (one.score, one.mean - one.ci, one.mean + one.ci))) for one in bootstrap]
    difference = second.score - first.score
    p_values = bootstrap[1].p_value, randomisation[1].p_value
    if difference == 0:
        p_values = 1.0, 1.0  # sacreBLEU counts samples above it: where both systems say the same, none is
    return first, replace(second, difference=difference, p_bootstrap=p_values[0], p_randomisation=p_values[1])


def _run_test(kind: str, samples: int, name: str, systems: Sequence[Statistics]) -> list[Any]:
    """What sacreBLEU's paired test says of each system."""
    metric: Any = make_metric(name, quiet=True) if name in METRICS else _Mean()
    metric.num_refs = 1
    # PairedTest wants sentences, which it hands to the metric to be counted. It gets what was counted.
    metric._extract_corpus_statistics = lambda counted, references: counted
    named: Any = [(str(place), statistics) for place, statistics in enumerate(systems)]
    _, columns = PairedTest(named, {name: metric}, None, kind, samples)()
    return next(column for title, column in columns.items() if title != "System")


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, corrected so that the chance of any false finding among them is held (Holm 1979)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
