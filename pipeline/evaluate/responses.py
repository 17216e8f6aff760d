"""Scores of generated responses: ROUGE, exact match, SQuAD's exact match and F1, and symbols in their places."""

import ast
import re
import string
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from transloom.pipeline.data.prompts import ResponseMetric
from transloom.pipeline.tasks.task import Metric, Score

ROUGE_L = Metric("rouge_l", "ROUGE-L", limits=(0.0, 100.0), trivial=1.0)
EXACT_MATCH = Metric("exact_match", "exact match", limits=(0.0, 100.0), trivial=0.0)
F1 = Metric("f1", "F1", limits=(0.0, 100.0), trivial=0.0)
SYMBOLS = Metric("symbols", "symbols in their places, %", limits=(0.0, 100.0), trivial=0.0)

SELECTS = {
    ResponseMetric.rouge: ROUGE_L,
    ResponseMetric.exact_match: EXACT_MATCH,
    ResponseMetric.squad: F1,
    ResponseMetric.symbols: SYMBOLS,
}


def response_scores(
    metric: ResponseMetric, responses: Sequence[str], answers: Sequence[Sequence[str]]
) -> dict[str, list[float]]:
    """The scores of each response, by name, from 0 to 100. Where an example has several answers, the best one counts.

    rouge: rouge_l, rouge_1 and rouge_2, the F-measures of the library rouge-score on lower-cased words of ASCII letters
    and digits, without stemming (Lin 2004). exact_match: exact_match, and parses: whether Python's parser takes the
    response. squad: f1 and exact_match. symbols: symbols, the share of an answer's characters that the response has in
    their places; of a longer response, of the response's characters.

    Args:
        answers: the allowed responses of each example, at least one.
    """
    pairs = list(zip(responses, answers, strict=True))
    match metric:
        case ResponseMetric.rouge:
            return _rouge(pairs)
        case ResponseMetric.exact_match:
            return {
                "exact_match": [
                    100.0 * any(is_equal(response, answer) for answer in allowed) for response, allowed in pairs
                ],
                "parses": [100.0 * parses(response) for response in responses],
            }
        case ResponseMetric.squad:
            return {
                "f1": [100.0 * max(squad_f1(response, answer) for answer in allowed) for response, allowed in pairs],
                "exact_match": [
                    100.0 * any(normalized(response) == normalized(answer) for answer in allowed)
                    for response, allowed in pairs
                ],
            }
        case ResponseMetric.symbols:
            return {
                "symbols": [
                    max(100.0 * symbols_in_place(response, answer) for answer in allowed) for response, allowed in pairs
                ]
            }


def symbols_in_place(response: str, answer: str) -> float:
    """The share of the longer text's characters that the other text has in their places; 1 of two empty texts."""
    equal = sum(a == b for a, b in zip(response, answer, strict=False))
    return equal / max(len(response), len(answer), 1) if response or answer else 1.0


def summarized(metric: ResponseMetric, scores: Mapping[str, Sequence[float]], note: str = "") -> dict[str, Score]:
    """The mean of each score of `response_scores`, with its signature.

    Args:
        note: the end of each signature.
    """
    signature = {
        ResponseMetric.rouge: "F|rouge-score|stemmer:no|words:ascii,lower",
        ResponseMetric.exact_match: "spaces:one",
        ResponseMetric.squad: "SQuAD 1.1|case:lower|articles,punctuation:no",
        ResponseMetric.symbols: "characters",
    }[metric]
    return {name: Score(name, fmean(values), signature + note) for name, values in scores.items()}


def _rouge(pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[str, list[float]]:
    from rouge_score.rouge_scorer import RougeScorer  # the import takes seconds

    kinds = {"rouge_l": "rougeL", "rouge_1": "rouge1", "rouge_2": "rouge2"}
    scorer = RougeScorer(list(kinds.values()), use_stemmer=False)
    scores: dict[str, list[float]] = {name: [] for name in kinds}
    for response, allowed in pairs:
        best = [scorer.score(answer, response) for answer in allowed]
        for name, kind in kinds.items():
            scores[name].append(100.0 * max(score[kind].fmeasure for score in best))
    return scores


def is_equal(response: str, answer: str) -> bool:
    """Whether two texts are equal but for the amount of white space between words."""
    return response.split() == answer.split()


def parses(code: str) -> bool:
    """Whether a text is Python. A line that opens a block counts with an empty block, and one that continues a
    statement, such as else: or except:, behind its beginning."""
    code = code.strip()
    header = code.endswith(":")
    body = f"{code} pass" if header else code
    candidates = [body]
    if header:
        candidates += [f"if x: pass\n{body}", f"try: pass\n{body}", f"try: pass\nexcept: pass\n{body}"]
    if code.startswith("@"):
        candidates.append(f"{code}\ndef f(): pass")
    return any(_is_python(candidate) for candidate in candidates)


def _is_python(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as an invalid escape in a string
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


# As in the evaluation script of SQuAD 1.1 (Rajpurkar et al. 2016), which takes the best of the answers.


def normalized(text: str) -> str:
    """The text in lower case, without punctuation, the articles a, an, the, and repeated white space."""
    plain = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def squad_f1(response: str, answer: str) -> float:
    """The F1 of the words that two normalised texts share, from 0 to 1."""
    words, expected = normalized(response).split(), normalized(answer).split()
    shared = sum((Counter(words) & Counter(expected)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(expected)
    return 2 * precision * recall / (precision + recall)
