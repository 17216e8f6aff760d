"""BLEU and chrF by sacreBLEU, counted on the raw reference lines, with the signature that makes them comparable."""

from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from pipeline.errors import UserError


@dataclass(frozen=True)
class Score:
    """A corpus score from 0 to 100, and sacreBLEU's signature of how it was counted.

    `details` is sacreBLEU's own line: for BLEU the n-gram precisions, brevity penalty and lengths.
    """

    name: str
    value: float
    signature: str
    details: str


def score(hypotheses: list[str], references: list[str]) -> dict[str, Score]:
    """BLEU (cased, 13a, one reference) and chrF2 by their names "bleu" and "chrf".

    Raises:
        UserError: there are not as many hypotheses as references.
    """
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses)} translations, but {len(references)} references: no score can be counted")
    if not references:
        raise UserError("no references: there is nothing to score")
    return {name: _score(name, metric, hypotheses, references) for name, metric in (("bleu", BLEU()), ("chrf", CHRF()))}


def _score(name: str, metric: Any, hypotheses: list[str], references: list[str]) -> Score:
    result = metric.corpus_score(hypotheses, [references])
    return Score(name, float(result.score), str(metric.get_signature()), str(result))
