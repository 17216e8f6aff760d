"""BLEU, chrF, TER by sacreBLEU, counted on the raw reference lines, with the signature that makes them comparable."""

from collections.abc import Sequence
from typing import Any

from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.significance import half_width, make_metric
from transloom.pipeline.evaluate.tokenizers import DEFAULT
from transloom.pipeline.tasks.task import Score


def score(
    hypotheses: list[str],
    references: list[str],
    in_full: bool = False,
    tokenize: str = DEFAULT,
    more_references: Sequence[list[str]] = (),
) -> dict[str, Score]:
    """BLEU (cased) and chrF2 by their names "bleu" and "chrf".

    Args:
        in_full: also "ter", and for each the confidence interval, by sacreBLEU's bootstrap. This takes seconds.
        tokenize: BLEU's tokenizer, see `tokenizer_for`.
        more_references: of further translators; an empty line of one of them is no reference.

    Raises:
        UserError: there are not as many hypotheses as references, or the tokenizer lacks a package.
    """
    for of_translator in (references, *more_references):
        if len(hypotheses) != len(of_translator):
            raise UserError(
                f"{len(hypotheses)} translations, but {len(of_translator)} references: no score can be counted"
            )
    if not references:
        raise UserError("no references: there is nothing to score")
    metrics = ("bleu", "chrf", *(["ter"] if in_full else []))
    translators = [references, *more_references]
    return {name: _score(name, make_metric(name, tokenize), hypotheses, translators, in_full) for name in metrics}


def _score(name: str, metric: Any, hypotheses: list[str], references: list[list[str]], with_interval: bool) -> Score:
    # What `corpus_score` does, whose own interval fails where resamples have no match at all.
    statistics = metric._extract_corpus_statistics(hypotheses, references)
    result = metric._aggregate_and_compute(statistics)
    width = half_width(name, statistics) if with_interval else None
    ratio = getattr(result, "ratio", None)
    return Score(name, float(result.score), str(metric.get_signature()), str(result), width, ratio)
