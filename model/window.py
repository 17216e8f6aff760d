"""Attention to a window of tokens, and to the first tokens of a text (Longformer, Beltagy et al. 2020, section 3.1), in
time and memory that grow with the length of a text alone.

Letters in shapes: B texts, L a grid's length, H heads, G heads of keys, K width of a head, R hypotheses. A text is cut
into chunks of C tokens, M chunks in all; the queries of a chunk have S keys.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LEAST_CHUNK = 64  # tokens: products with smaller matrices take as long


@dataclass(frozen=True)
class Window:
    """Who sees whom: `size` - 1 tokens before a token and, where it sees both sides, behind it. The first
    `global_tokens` of a text see all tokens, and all tokens see them; a causal token sees nothing behind itself."""

    size: int
    global_tokens: int = 0

    @property
    def chunk(self) -> int:
        """C. A window reaches into the neighbouring chunks at most."""
        return max(self.size, LEAST_CHUNK)


def visible(queries: Tensor, keys: Tensor, causal: bool, window: Window | None = None) -> Tensor:
    """Whether a token at a position sees another one: positions (..., Lq) and (..., Lk) -> (..., Lq, Lk).

    Args:
        window: None: all tokens, or with `causal` all tokens before it.
    """
    distance = queries[..., :, None] - keys[..., None, :]
    sees = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is None:
        return sees
    is_global = (keys < window.global_tokens)[..., None, :] | (queries < window.global_tokens)[..., :, None]
    return sees & ((distance.abs() < window.size) | is_global)


def block_mask(lengths: Tensor, longest: int, window: Window, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Who sees whom in the chunks of `attend_window`.

    Args:
        lengths: (B,) tokens of each text. longest: L.
    Returns:
        (B, chunks of a text, C, S) whether a query sees a key; a query of padding sees some keys. The positions of
        queries, (chunks of a text, C), and of keys, (chunks of a text, S).
    """
    chunk, num_global = window.chunk, min(window.global_tokens, longest)
    count = -(-longest // chunk)
    device = lengths.device

    def positions(first: int, end: int, step: int = 1) -> Tensor:
        return torch.arange(first, end, step, device=device, dtype=torch.int32)

    starts = positions(0, count * chunk, chunk)[:, None]
    queries = starts + positions(0, chunk)
    near = starts + positions(-chunk, chunk if causal else 2 * chunk)
    keys = torch.cat((positions(0, num_global).expand(count, -1), near), dim=1)
    sees = visible(queries, keys, causal, window)
    sees[:, :, num_global:] &= (near >= num_global)[:, None]  # global tokens are there already
    if causal:  # padding stands behind the text
        sees = sees.expand(len(lengths), -1, -1, -1)
    else:
        is_real = keys < lengths[:, None, None]
        is_padding = queries >= lengths[:, None, None]
        sees = (sees & is_real[:, :, None]) | is_padding[..., None]
    return sees, queries, keys


def attend_window(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, window: Window, causal: bool, dropout: float = 0.0
) -> Tensor:
    """Attention within the window, chunk by chunk: the queries of a chunk to its own keys, those of the chunk before
    it, those of the chunk behind it unless causal, and the text's global tokens. No tensor has L * L elements. What
    global tokens themselves see behind their window is not here (`with_global_queries`).

    Args:
        query: (B, H, L, K). key, value: (B, G, L, K), each head for H / G heads of queries.
        mask: (M, 1 or H, C, S) to add to scores.
        dropout: the share of weights that are dropped.
    Returns:
        (B, H, L, K)
    """
    length, chunk = query.shape[2], window.chunk
    behind = -length % chunk
    count = (length + behind) // chunk

    def chunks(x: Tensor, first: int, last: int) -> Tensor:
        """(B, heads, L, K) -> (B, chunks, heads, C, K), with empty chunks at the beginning and end."""
        padded = nn.functional.pad(x, (0, 0, first * chunk, behind + last * chunk))
        return padded.unflatten(2, (-1, chunk)).transpose(1, 2)

    def around(x: Tensor) -> Tensor:
        """(B, G, L, K) -> (M, G, S, K)"""
        after = 0 if causal else 1
        parts = chunks(x, 1, after)
        near = [parts[:, i : i + count] for i in range(2 + after)]
        if num_global := min(window.global_tokens, length):
            near.insert(0, x[:, None, :, :num_global].expand(-1, count, -1, -1, -1))
        return torch.cat(near, dim=3).flatten(0, 1)

    context = nn.functional.scaled_dot_product_attention(
        chunks(query, 0, 0).flatten(0, 1),
        around(key),
        around(value),
        attn_mask=mask,
        dropout_p=dropout,
        enable_gqa=key.shape[1] < query.shape[1],
    )
    return context.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3)[:, :, :length]


def with_global_queries(
    context: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """`attend_window`'s context, where the global tokens, which see both sides, see the whole text.

    Args:
        query: (B, H, g, K) of the global tokens. key, value: (B, G, L, K). mask: broadcastable to (B, H, g, L).
    Returns:
        (B, H, L, K)
    """
    is_grouped = key.shape[1] < query.shape[1]
    seen = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, enable_gqa=is_grouped
    )
    return torch.cat((seen, context[:, :, query.shape[2] :]), dim=2)


class RingCache:
    """Keys (R, G, slots, K) and values (R, G, slots, V) of the tokens that the next one sees: a slot for each global
    token, then a ring of `size` slots, of which the newest token takes the oldest one's.

    Attributes:
        length: tokens of the longest row so far.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self.length = 0
        self._parts: list[Tensor] = []

    @property
    def slots(self) -> int:
        """Slots that hold a token, in the longest row."""
        return min(self.length, self.window.global_tokens + self.window.size)

    def positions(self, last: Tensor) -> Tensor:
        """The position of each slot's token in rows whose last token stands at `last`, (R,): (R, slots). Negative where
        a slot is empty."""
        first = self.window.global_tokens
        slot, last = torch.arange(self.slots, device=last.device), last[:, None]
        in_ring = last - (last - slot) % self.window.size
        return torch.where(slot < first, torch.where(slot <= last, slot, -1), torch.where(in_ring < first, -1, in_ring))

    def fill(self, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
        """Stores the first tokens of all rows, lengths[r] of row r: keys (R, G, L, K), values (R, G, L, V)."""
        self.length = int(lengths.max())
        slots = self.positions(lengths - 1).clamp(min=0)[:, None, :, None]
        self._parts = [part.gather(2, slots.expand(-1, part.shape[1], -1, part.shape[3])) for part in (keys, values)]

    def append(self, key: Tensor, value: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Adds one token to each row, key (R, G, K) and value (R, G, V).

        Args:
            positions: (R,) of the tokens; None: behind `length` for all.
        Returns:
            all keys (R, G, slots, K) and values (R, G, slots, V).
        """
        first, size = self.window.global_tokens, self.window.size
        self.length += 1
        held = self._parts[0].shape[2] if self._parts else 0
        if held < self.slots:
            larger = min(max(16, 2 * held), first + size)
            parts = self._parts or [part[:, :, None][:, :, :0] for part in (key, value)]
            self._parts = [nn.functional.pad(part, (0, 0, 0, larger - held)) for part in parts]
        if positions is None:
            last = self.length - 1
            slot = last if last < first else first + (last - first) % size
            for part, new in zip(self._parts, (key, value), strict=True):
                part[:, :, slot] = new
        else:
            rows = torch.arange(len(key), device=key.device)
            slots = torch.where(positions < first, positions, first + (positions - first) % size)
            for part, new in zip(self._parts, (key, value), strict=True):
                part[rows, :, slots] = new
        keys, values = (part[:, :, : self.slots] for part in self._parts)
        return keys, values

    def mask(self, last: Tensor, dtype: torch.dtype) -> Tensor:
        """Hides the empty slots of rows whose last token stands at `last`, (R,): (R, 1, 1, slots)"""
        is_empty = self.positions(last) < 0
        return torch.zeros(is_empty.shape, dtype=dtype, device=last.device).masked_fill_(is_empty, -math.inf)[
            :, None, None
        ]

    def reorder(self, rows: Tensor, length: int | None = None) -> None:
        """Row r becomes the old row rows[r]; rows (R',). `length`: of the longest chosen row; None: unchanged."""
        self._parts = [part.index_select(0, rows) for part in self._parts]
        self.length = self.length if length is None else length
