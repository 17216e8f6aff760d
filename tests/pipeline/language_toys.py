"""A small language model with a cache, and a tokenizer of bytes, for the laws of generation and scoring."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from transloom.model.packing import Layout


class ByteTokenizer:
    """A token a byte, and an end of text behind them."""

    end_of_text, vocab_size = 256, 257
    unknown, unknown_bits = None, 0.0

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class ToyModel(nn.Module):
    """One layer of causal attention with learned positions. Each text is computed alone, so that neither packing nor
    batches can change a bit of the result."""

    def __init__(self, vocab: int = 257, max_positions: int | None = 64, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config = SimpleNamespace(max_positions=max_positions)
        self.vocab = vocab
        self.sizes: list[int] = []  # rows of every step and of every prompt that was read
        self.embedding = nn.Parameter(torch.randn(vocab, width, generator=generator))
        self.positions = nn.Parameter(torch.randn(max_positions or 1000, width, generator=generator))
        self.projections = nn.Parameter(torch.randn(3, width, width, generator=generator) / 4)
        self.output = nn.Parameter(torch.randn(vocab, width, generator=generator) / 2)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        texts = tokens.split(layout.lengths.tolist())
        return torch.cat([self.read(text)[0] for text in texts])

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.stack([self.output @ row for row in hidden])

    def read(self, tokens: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens (N,), cache (2, T, width) -> hidden (N, width), cache (2, T + N, width), one token at a time."""
        cache = torch.zeros(2, 0, self.embedding.shape[1]) if cache is None else cache
        hidden = []
        for token in tokens:
            x = self.embedding[token] + self.positions[cache.shape[1]]  # IndexError beyond the context
            query, key, value = self.projections @ x
            cache = torch.cat((cache, torch.stack((key, value))[:, None]), dim=1)
            hidden.append(x + (cache[0] @ query).softmax(0) @ cache[1])
        return torch.stack(hidden), cache

    def start_decoding(self, tokens: Tensor, layout: Layout) -> "ToyContinuation":
        return ToyContinuation(self, tokens.split(layout.lengths.tolist()))

    def next_logits(self, ids: Sequence[int]) -> Tensor:
        """(vocab,) after these ids, without a cache."""
        with torch.inference_mode():
            return self.logits(self.read(torch.tensor(list(ids)))[0][-1:])[0]


class ToyContinuation:
    def __init__(self, model: ToyModel, texts: Sequence[Tensor]) -> None:
        self.model = model
        results = [model.read(text) for text in texts]
        model.sizes.append(len(texts))
        self.caches = [cache for _, cache in results]
        self.logits = model.logits(torch.stack([hidden[-1] for hidden, _ in results]))

    def step(self, tokens: Tensor) -> Tensor:
        assert len(tokens) == len(self.caches)
        self.model.sizes.append(len(tokens))
        results = [self.model.read(token[None], cache) for token, cache in zip(tokens, self.caches, strict=True)]
        self.caches = [cache for _, cache in results]
        return self.model.logits(torch.cat([hidden for hidden, _ in results]))

    def reorder(self, rows: Tensor, sentences: Tensor | None = None) -> None:
        self.caches = [self.caches[row] for row in rows.tolist()]
