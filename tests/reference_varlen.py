"""A stand-in for torch.nn.attention.varlen.varlen_attn, whose kernels run on GPUs alone."""

import torch
from torch import Tensor, nn


def reference_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    max_query: int,
    max_key: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """As its documentation has it, sentence by sentence."""
    assert query_ends.dtype is key_ends.dtype is torch.int32
    assert max_query >= query_ends.diff().max() and max_key >= key_ends.diff().max()
    parts = []
    for q0, q1, k0, k1 in zip(query_ends[:-1], query_ends[1:], key_ends[:-1], key_ends[1:], strict=True):
        q, k, v = (x.transpose(0, 1) for x in (query[q0:q1], key[k0:k1], value[k0:k1]))
        before, behind = (max(q.shape[1], k.shape[1]) if side == -1 else side for side in window_size)
        distance = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
        sees = (distance <= before) & (distance >= -behind)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=sees, enable_gqa=enable_gqa)
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)
