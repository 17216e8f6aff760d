"""Beam search over any model's `Decoding`, batched over sentences and hypotheses.

Letters in shapes: B sentences still being decoded, K beam width, V vocabulary, T tokens so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 64  # elements: the search for the likeliest tokens goes through the vocabulary in blocks


@dataclass(frozen=True)
class BeamConfig:
    """The settings of beam search.

    Attributes:
        beam: hypotheses kept for a sentence; 1 is greedy search.
        length_penalty: alpha of ((5 + length) / 6)^alpha, which divides a hypothesis' log-probability
            (Wu et al. 2016, equation 14; the paper: 0.6).
        extra_tokens: a translation has at most the source's tokens + this (the paper: 50).
        batch_sentences: sentences decoded at a time.
    """

    beam: int = 4
    length_penalty: float = 0.6
    extra_tokens: int = 50
    batch_sentences: int = 64

    def __post_init__(self) -> None:
        for field in ("beam", "batch_sentences"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, not {getattr(self, field)}")
        for field in ("length_penalty", "extra_tokens"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}: must be at least 0, not {getattr(self, field)}")

    def label(self) -> str:
        """The search's unique short name, for folders, metrics and tags: beam4-penalty0.6."""
        more = [f"extra{self.extra_tokens}"] if self.extra_tokens != BeamConfig.extra_tokens else []
        more += [f"batch{self.batch_sentences}"] if self.batch_sentences != BeamConfig.batch_sentences else []
        return "-".join([f"beam{self.beam}", f"penalty{self.length_penalty}", *more])

    def in_words(self) -> str:
        """The search, for people: beam 4, length penalty 0.6."""
        more = [f"{self.extra_tokens} extra tokens"] if self.extra_tokens != BeamConfig.extra_tokens else []
        if self.batch_sentences != BeamConfig.batch_sentences:
            more.append(f"{self.batch_sentences} sentences at a time")
        return ", ".join([f"beam {self.beam}", f"length penalty {self.length_penalty:g}", *more])


class Decoding(Protocol):
    """Sentences that a model decodes, in R = B * hypotheses rows."""

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds one token to each row: (R,) -> logits (R, V)."""
        ...

    def reorder(self, rows: Tensor, sentences: Tensor | None) -> None:
        """Row r continues the old rows[r]; `sentences` (B',) are the ones to keep, None: all."""
        ...


@dataclass(frozen=True)
class Hypothesis:
    """A translation.

    Attributes:
        tokens: ids, without <s> and without </s>.
        score: log-probability divided by the length penalty.
        log_probability: in nats, with that of </s>.
    """

    tokens: list[int]
    score: float
    log_probability: float = 0.0


def length_penalty(length: int | Tensor, alpha: float):
    """((5 + length) / 6)^alpha; length counts </s>."""
    return ((5.0 + length) / 6.0) ** alpha


@torch.inference_mode()
def n_best_search(
    decoding: Decoding,
    max_lengths: Tensor,
    config: BeamConfig,
    bos_id: int,
    eos_id: int,
    n_best: int = 1,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> list[list[Hypothesis]]:
    """The best hypotheses of each sentence, at most n_best, the best first.

    A sentence is done when it has K ended hypotheses, or when no open hypothesis can still beat its n_best-th ended
    one. At max_lengths a hypothesis must end: </s> is the only token allowed.

    Args:
        decoding: with one row a sentence, before the first step.
        max_lengths: (B,) the limit of each translation's tokens, </s> included, each at least 1.
        n_best: at most K.
        prefixes: ids that each sentence's hypotheses begin with, fewer than its limit; they count in the scores.
    """
    beam, alpha = config.beam, config.length_penalty
    device = max_lengths.device
    count = len(max_lengths)
    ended_lists: list[list[Hypothesis]] = [[] for _ in range(count)]
    forced = _padded(prefixes, device) if prefixes is not None and any(map(len, prefixes)) else None
    # Of each open sentence: number, length limit, best ended scores and number of ended hypotheses.
    sentence = torch.arange(count, device=device)
    best_ended = torch.full((count, n_best), -torch.inf, device=device)  # from the best
    num_ended = torch.zeros(count, dtype=torch.int64, device=device)
    tokens = torch.full((count, 1, 1), bos_id, dtype=torch.int64, device=device)  # (B, K, T + 1)
    scores = torch.zeros(count, 1, device=device)  # (B, K) log-probability; K is 1 before the first step
    length = 0
    while len(sentence):
        length += 1
        width = tokens.shape[1]
        logits = decoding.step(tokens[:, :, -1].flatten())
        vocab = logits.shape[-1]
        only = None
        if forced is not None and length <= forced.shape[1]:
            only = forced[sentence, length - 1].repeat_interleave(width)
        extended, choice = _best_extensions(logits, scores, 2 * beam, only)  # (B, <= 2K) each
        at_limit = max_lengths == length
        if bool(at_limit.any()):
            ending = logits.float().log_softmax(-1).view(len(sentence), width, vocab)[:, :, eos_id] + scores
            flat = torch.arange(width, device=device) * vocab + eos_id
            last = torch.full_like(extended, -torch.inf)
            last_choice = torch.full_like(choice, eos_id)
            kept = min(width, extended.shape[1])
            order = ending.argsort(dim=1, descending=True)[:, :kept]
            last[:, :kept] = ending.gather(1, order)
            last_choice[:, :kept] = flat[order]
            extended = torch.where(at_limit[:, None], last, extended)
            choice = torch.where(at_limit[:, None], last_choice, choice)
        parent, token = choice // vocab, choice % vocab
        is_end = token == eos_id

        # Ended hypotheses count only among the first K, as in a beam of K.
        ended = torch.where(is_end, extended / length_penalty(length, alpha), -torch.inf)[:, :beam]
        improves = ended > best_ended[:, -1:]
        best_ended = torch.cat((best_ended, ended), dim=1).topk(n_best, dim=1).values
        num_ended = num_ended + (ended > -torch.inf).sum(1)
        for row, place in improves.nonzero().tolist():
            ids = tokens[row, int(parent[row, place]), 1:].tolist()
            score, log_probability = float(ended[row, place]), float(extended[row, place])
            ended_lists[int(sentence[row])].append(Hypothesis(ids, score, log_probability))

        # Open hypotheses: the first K that did not end, sorted from the best.
        open_scores = extended.masked_fill(is_end, -torch.inf)
        scores, order = open_scores.topk(min(beam, open_scores.shape[1]), dim=1)
        parent, token = parent.gather(1, order), token.gather(1, order)
        # Log-probabilities only fall, so with alpha >= 0 `bound` limits the final score of open hypotheses.
        bound = scores[:, 0] / length_penalty(max_lengths, alpha)
        stays = ~at_limit & (num_ended < beam) & (best_ended[:, -1] < bound)
        kept_rows = stays.nonzero().squeeze(1)
        is_shrunk = len(kept_rows) < len(sentence)
        if is_shrunk:
            sentence, max_lengths = sentence[kept_rows], max_lengths[kept_rows]
            best_ended, num_ended = best_ended[kept_rows], num_ended[kept_rows]
            scores, parent, token = scores[kept_rows], parent[kept_rows], token[kept_rows]
        if not len(sentence):
            break
        rows = kept_rows[:, None] * width + parent  # (B', K) rows of the last step
        history = tokens.view(-1, length)[rows.flatten()].view(len(sentence), -1, length)
        tokens = torch.cat((history, token[:, :, None]), dim=2)
        decoding.reorder(rows.flatten(), kept_rows if is_shrunk else None)
    return [best_of(hypotheses, n_best) for hypotheses in ended_lists]


def best_of(hypotheses: Sequence[Hypothesis], count: int) -> list[Hypothesis]:
    """At most `count` hypotheses, the best score first; of equal scores the earlier."""
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)[:count]


def _padded(prefixes: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Prefixes as (B, longest), -1 behind their ends."""
    longest = max(map(len, prefixes))
    return torch.tensor([[*prefix, *[-1] * (longest - len(prefix))] for prefix in prefixes], device=device)


def _best_extensions(logits: Tensor, scores: Tensor, count: int, only: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best continuations over all of a sentence's hypotheses.

    Args:
        logits: (B * K, V). scores: (B, K).
        only: (B * K,) the token that must come next, -1 where any may.
    Returns:
        scores and choices (hypothesis * V + token), each (B, min(count, K * V)), best first.
    """
    sentences, width = scores.shape
    vocab = logits.shape[-1]
    log_probabilities = logits.float().log_softmax(-1)
    if only is not None:
        is_other = torch.arange(vocab, device=logits.device) != only[:, None]
        log_probabilities = log_probabilities.masked_fill(is_other & (only >= 0)[:, None], -torch.inf)
    top, token = _topk(log_probabilities, min(count, vocab))
    top = top + scores.view(-1, 1)
    choice = token.view(sentences, width, -1) + torch.arange(width, device=logits.device)[:, None] * vocab
    best, where = top.view(sentences, -1).topk(min(count, width * top.shape[-1]), dim=-1)
    return best, choice.view(sentences, -1).gather(1, where)


def _topk(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """x.topk(count) of long rows (R, V): the largest elements are in the `count` blocks with the largest maxima, or in
    the rest behind the blocks. Finding maxima is far quicker than sorting."""
    rows, length = x.shape
    blocks = length // BLOCK
    if blocks <= count:
        return x.topk(count)
    in_blocks = x[:, : blocks * BLOCK].view(rows, blocks, BLOCK)
    best = in_blocks.amax(-1).topk(count).indices  # (R, count)
    columns = (best[:, :, None] * BLOCK + torch.arange(BLOCK, device=x.device)).flatten(1)
    rest = torch.arange(blocks * BLOCK, length, device=x.device).expand(rows, -1)
    columns = torch.cat((columns, rest), dim=1)
    top, where = x.gather(1, columns).topk(count)
    return top, columns.gather(1, where)
