"""Beam search whose translations must have given terms in them: dynamic beam allocation (Post and Vilar 2018).

Letters in shapes: B sentences, K hypotheses of a sentence, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from transloom.pipeline.generate.beam import BeamConfig, Decoding, Hypothesis, best_of, length_penalty

Term = tuple[int, ...]  # the ids of a term's tokens, at least one


@dataclass(frozen=True)
class Progress:
    """How far the tokens of a hypothesis have come with its terms.

    Attributes:
        matched: of each term the tokens of its longest beginning that the hypothesis ends with.
        met: the terms (places) that the hypothesis has, as whole words.
        fresh: those of `met` that ended with the newest token: the next token may yet continue their last word.
    """

    matched: tuple[int, ...]
    met: frozenset[int] = frozenset()
    fresh: frozenset[int] = frozenset()

    def tokens_met(self, terms: Sequence[Term]) -> int:
        """The bank of Post and Vilar: tokens of met terms, and of those that have begun."""
        return sum(len(term) if i in self.met else self.matched[i] for i, term in enumerate(terms))

    def after(self, token: int, terms: Sequence[Term], continues_word: bool) -> "Progress":
        """With one more token.

        Args:
            continues_word: whether the token's text goes on with the word before it.
        """
        met = self.met - self.fresh if continues_word else self.met
        matched = tuple(_matched(term, length, token) for term, length in zip(terms, self.matched, strict=True))
        fresh = frozenset(i for i, term in enumerate(terms) if matched[i] == len(term) and i not in met)
        return Progress(matched, met | fresh, fresh)

    def wanted(self, terms: Sequence[Term]) -> set[int]:
        """The tokens that go on with a term which is not met."""
        missing = [i for i in range(len(terms)) if i not in self.met]
        return {terms[i][self.matched[i]] for i in missing} | {terms[i][0] for i in missing}


def _matched(term: Term, length: int, token: int) -> int:
    """The longest beginning of the term that its first `length` tokens and `token` end with."""
    ending = (*term[:length], token)
    return next(n for n in range(min(len(term), len(ending)), -1, -1) if ending[len(ending) - n :] == term[:n])


@dataclass
class _Row:
    """An open hypothesis."""

    score: float
    progress: Progress
    tokens: list[int] = field(default_factory=list)


@dataclass
class _Sentence:
    terms: Sequence[Term]
    limit: int
    rows: list[_Row]
    ended: list[Hypothesis] = field(default_factory=list)
    num_ended: int = 0


@dataclass(frozen=True)
class _Candidate:
    score: float
    parent: int
    token: int
    progress: Progress


@torch.inference_mode()
def constrained_search(
    decoding: Decoding,
    max_lengths: Sequence[int],
    terms: Sequence[Sequence[Term]],
    continues_word: Sequence[bool],
    config: BeamConfig,
    bos_id: int,
    eos_id: int,
    n_best: int = 1,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> list[list[Hypothesis]]:
    """The best hypotheses of each sentence that have all its terms as whole words, at most n_best, the best first.

    The hypotheses of a step are put into banks by the number of term tokens that they have, and the beam is shared out
    over the banks, so that hypotheses with more of the terms are kept although a term is unlikely. A hypothesis may
    end once it has all terms. The beam is as wide as the banks are many, if config.beam is less.

    Args:
        decoding: with one row a sentence, before the first step.
        max_lengths: of each translation's tokens, </s> included; more than its prefix' and terms' tokens together.
        terms: of each sentence, different ones.
        continues_word: of each id, whether its text goes on with the word before it.
        prefixes: see `n_best_search`.
    """
    beam = max(config.beam, n_best, *(sum(map(len, own)) + 1 for own in terms))
    sentences = [
        _Sentence(own, limit, [_Row(0.0, Progress((0,) * len(own)))])
        for own, limit in zip(terms, max_lengths, strict=True)
    ]
    forced = prefixes or [()] * len(sentences)
    is_open = [True] * len(sentences)
    last = torch.full((len(sentences),), bos_id, dtype=torch.int64)
    device, width, length = None, 1, 0
    while any(is_open):
        length += 1
        logits = decoding.step(last if device is None else last.to(device))
        device = logits.device
        log_probabilities = logits.float().log_softmax(-1)
        best_scores, best_tokens = (part.tolist() for part in log_probabilities.topk(min(beam, logits.shape[-1])))
        parents: list[int] = []
        for place, sentence in enumerate(sentences):
            start = place * width
            if not is_open[place]:
                parents += [start] * beam
                continue
            prefix = forced[place]
            only = prefix[length - 1] if length <= len(prefix) else None
            candidates = []
            for i, row in enumerate(sentence.rows):
                tokens = _tokens_of(row, sentence, best_tokens[start + i], only, length, eos_id)
                known = dict(zip(best_tokens[start + i], best_scores[start + i], strict=True))
                own = log_probabilities[start + i]
                for token in tokens:
                    score = row.score + (known[token] if token in known else float(own[token]))
                    progress = row.progress.after(token, sentence.terms, continues_word[token])
                    candidates.append(_Candidate(score, i, token, progress))
            for candidate in candidates:
                if candidate.token == eos_id:
                    row = sentence.rows[candidate.parent]
                    penalty = length_penalty(length, config.length_penalty)
                    sentence.ended.append(Hypothesis(row.tokens, candidate.score / penalty, candidate.score))
            chosen = _allocate(candidates, beam, sentence.terms)
            sentence.num_ended += sum(candidate.token == eos_id for candidate in chosen)
            rows = [candidate for candidate in chosen if candidate.token != eos_id]
            sentence.ended = best_of(sentence.ended, n_best)
            best_open = max((candidate.score for candidate in rows), default=-torch.inf)
            bound = best_open / length_penalty(sentence.limit, config.length_penalty)
            worst_ended = sentence.ended[-1].score if len(sentence.ended) == n_best else -torch.inf
            is_done = sentence.num_ended >= beam and len(sentence.ended) == n_best
            if not rows or is_done or worst_ended >= bound or length == sentence.limit:
                is_open[place] = False
                parents += [start] * beam
                continue
            sentence.rows = [
                _Row(candidate.score, candidate.progress, [*sentence.rows[candidate.parent].tokens, candidate.token])
                for candidate in rows
            ]
            own_parents = [start + candidate.parent for candidate in rows]
            parents += own_parents + own_parents[-1:] * (beam - len(rows))
        width = beam
        decoding.reorder(torch.tensor(parents, device=device), None)
        last = torch.full((len(sentences), beam), eos_id, dtype=torch.int64)
        for place, sentence in enumerate(sentences):
            if is_open[place]:
                last[place, : len(sentence.rows)] = torch.tensor([row.tokens[-1] for row in sentence.rows])
        last = last.flatten()
    return [sentence.ended for sentence in sentences]


def _tokens_of(
    row: _Row, sentence: _Sentence, likeliest: Sequence[int], only: int | None, length: int, eos_id: int
) -> set[int]:
    """The next tokens of a hypothesis that are looked at: the likeliest, those that go on with a term, and </s> of a
    hypothesis that may end."""
    may_end = len(row.progress.met) == len(sentence.terms)
    if only is not None:
        return {only}
    if length == sentence.limit:
        return {eos_id} if may_end else set()
    tokens = (set(likeliest) | row.progress.wanted(sentence.terms)) - {eos_id}
    return tokens | {eos_id} if may_end else tokens


def _allocate(candidates: Sequence[_Candidate], beam: int, terms: Sequence[Term]) -> list[_Candidate]:
    """At most `beam` candidates: every bank gets an equal share, and what a bank does not need goes to the best of the
    others."""
    banks: dict[int, list[_Candidate]] = {}
    for candidate in sorted(candidates, key=lambda candidate: -candidate.score):
        banks.setdefault(candidate.progress.tokens_met(terms), []).append(candidate)
    share = max(1, beam // max(1, len(banks)))
    chosen = [candidate for bank in banks.values() for candidate in bank[:share]]
    rest = sorted((one for bank in banks.values() for one in bank[share:]), key=lambda candidate: -candidate.score)
    chosen += rest[: max(0, beam - len(chosen))]
    return sorted(chosen, key=lambda candidate: -candidate.score)[:beam]
