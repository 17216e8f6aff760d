"""A language model small enough to enumerate, for the laws of searches."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from transloom.pipeline.generate.beam import length_penalty

VOCAB, BOS, EOS = 4, 2, 3


class TableDecoding:
    """Next-token logits looked up by (sentence, whole prefix): any model that a search could meet."""

    def __init__(self, seed: int, sentences: int) -> None:
        self.seed = seed
        self.prefixes: list[tuple[int, tuple[int, ...]]] = [(i, ()) for i in range(sentences)]

    def logits(self, sentence: int, prefix: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, sentence, prefix)) % 2**31)
        return torch.randn(VOCAB, generator=generator) * 2

    def step(self, tokens: Tensor) -> Tensor:
        pairs = zip(self.prefixes, tokens.tolist(), strict=True)
        self.prefixes = [(sentence, (*prefix, token)) for (sentence, prefix), token in pairs]
        return torch.stack([self.logits(*one) for one in self.prefixes])

    def reorder(self, rows: Tensor, sentences: Tensor | None) -> None:
        self.prefixes = [self.prefixes[row] for row in rows.tolist()]


def all_translations(
    seed: int, sentence: int, max_length: int, alpha: float, prefix: Sequence[int] = ()
) -> list[tuple[float, list[int], float]]:
    """(score, tokens, log-probability) of every sequence with the prefix that ends in </s> within max_length tokens,
    the best first."""
    model = TableDecoding(seed, 1)
    results = []
    words = [token for token in range(VOCAB) if token != EOS]
    for length in range(len(prefix) + 1, max_length + 1):
        for rest in itertools.product(words, repeat=length - 1 - len(prefix)):
            tokens = [*prefix, *rest]
            total = sum(
                model.logits(sentence, (BOS, *tokens[:i])).log_softmax(-1)[token].item()
                for i, token in enumerate((*tokens, EOS))
            )
            results.append((total / length_penalty(length, alpha), tokens, total))
    return sorted(results, reverse=True)
