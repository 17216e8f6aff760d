"""BLEU, chrF, TER by sacreBLEU, counted on the raw reference lines, with the signature that makes them comparable."""

from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from pipeline.errors import UserError

RESAMPLES = 1000  # sacreBLEU's own default


@dataclass(frozen=True)
class Score:
    """A corpus score from 0 to 100 (TER can be more), and sacreBLEU's signature of how it was counted.

    `details` is sacreBLEU's own line: for BLEU the n-gram precisions, brevity penalty and lengths. `half_width` is that
    of the 95 % confidence interval, where it was asked for; `length_ratio`, of BLEU, the translations' words over the
    references'.
    """

    name: str
    value: float
    signature: str
    details: str
    half_width: float | None = None
    length_ratio: float | None = None


def score(hypotheses: list[str], references: list[str], in_full: bool = False) -> dict[str, Score]:
    """BLEU (cased, 13a, one reference) and chrF2 by their names "bleu" and "chrf".

    Args:
        in_full: also "ter", and for each the confidence interval, by sacreBLEU's bootstrap. This takes seconds.

    Raises:
        UserError: there are not as many hypotheses as references.
    """
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses)} translations, but {len(references)} references: no score can be counted")
    if not references:
        raise UserError("no references: there is nothing to score")
    metrics = {"bleu": BLEU, "chrf": CHRF} | ({"ter": TER} if in_full else {})
    return {
        name: _score(name, metric(references=[references]), hypotheses, RESAMPLES if in_full else 1)
        for name, metric in metrics.items()
    }


def _score(name: str, metric: Any, hypotheses: list[str], resamples: int) -> Score:
    signature = str(metric.get_signature())  # of the score: with the interval, it would have the interval's seed, too
    result = metric.corpus_score(hypotheses, None, n_bootstrap=resamples)
    half_width = float(result._ci) if resamples > 1 else None
    result._mean = result._ci = -1.0  # sacreBLEU's line is to be that of the score
    return Score(name, float(result.score), signature, str(result), half_width, getattr(result, "ratio", None))
