"""Linear attention: softmax's exp(query key) becomes map(query) map(key), so that keys and values can be summed up once
for all queries (Katharopoulos et al. 2020, equations 4 to 12). Time and memory grow with the length of a text alone.

Sums are at least fp32, on every device. Plain torch on a GPU too: the fused kernels of others, which keep a chunk in
shared memory, are not here.

Letters in shapes: B texts, L a grid's length, H heads, G heads of keys, K width of a head, V of its values, F features,
R hypotheses. A text is cut into chunks of C tokens.
"""

import torch
from torch import Tensor, nn

CHUNK = 128  # tokens
LEAST = 1e-12  # of the weights' sum
LEAST_FEATURE = 1e-6  # added to random features, which can all be too small for the type (Performer's code does too)
FEATURE_SEED = 71


def exact(x: Tensor) -> Tensor:
    """x in fp32, or in fp64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _EluPlusOne(torch.autograd.Function):
    """elu(x) + 1, keeping the result alone, which the sums keep too."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        features = nn.functional.elu(x).add_(1)
        ctx.save_for_backward(features)
        return features

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (features,) = ctx.saved_tensors
        return grad * features.clamp(max=1)


class _ExpPlusLeast(torch.autograd.Function):
    """exp(x) + LEAST_FEATURE, keeping the result alone."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        features = x.exp().add_(LEAST_FEATURE)
        ctx.save_for_backward(features)
        return features

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (features,) = ctx.saved_tensors
        return grad * (features - LEAST_FEATURE)


class EluFeatures(nn.Module):
    """elu(x) + 1 of queries and keys (Katharopoulos et al. 2020, equation 7): (..., K) -> (..., K)"""

    def of_queries(self, query: Tensor) -> Tensor:
        return _EluPlusOne.apply(exact(query))

    of_keys = of_queries


class RandomFeatures(nn.Module):
    """exp(w x - |x|^2 / 2) for random w, K of which at a time are orthogonal: the product of a query's and a key's is
    exp(query key / sqrt(K)) on average (FAVOR+, Choromanski et al. 2021, lemma 1 and section 2.4).

    The w are no weights: `layer` decides on them, so that all ranks, and all who load the model, have the same.
    A query's features are divided by the largest, which changes no result. A key's are not: the largest of all keys
    would tie a text to its neighbours and the past to the future.
    """

    vectors: Tensor

    def __init__(self, width: int, num_features: int, layer: int) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(FEATURE_SEED + layer)
        blocks = []
        for first in range(0, num_features, width):
            normal = torch.randn(2, width, width, generator=generator, dtype=torch.float64, device="cpu")
            directions, triangle = torch.linalg.qr(normal[0])
            directions = directions * triangle.diagonal().sign()  # of every orthogonal matrix alike
            rows = directions * normal[1].norm(dim=1, keepdim=True)  # as long as rows of normal numbers
            blocks.append(rows[: num_features - first])
        self.register_buffer("vectors", torch.cat(blocks).float(), persistent=False)  # (F, K)

    def _exponents(self, x: Tensor) -> Tensor:
        x = exact(x) / x.shape[-1] ** 0.25
        return x @ self.vectors.to(x.dtype).t() - x.square().sum(-1, keepdim=True) / 2

    def of_queries(self, query: Tensor) -> Tensor:
        """(..., K) -> (..., F)"""
        exponents = self._exponents(query)
        return _ExpPlusLeast.apply(exponents - exponents.detach().amax(-1, keepdim=True))

    def of_keys(self, key: Tensor) -> Tensor:
        """(..., K) -> (..., F)"""
        return _ExpPlusLeast.apply(self._exponents(key))


class _CausalSums(torch.autograd.Function):
    """(query key^T with zeros above the diagonal) value, within a chunk as it stands here, over the chunks before it by
    the sum of key^T value. The backward pass computes both again: kept are the three arguments alone.

    Shapes: query and key (B, H, chunks, C, F), value (B, H, chunks, C, V) -> (B, H, chunks, C, V)
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        weights = (query @ key.mT).tril_()
        return (weights @ value).add_(query @ _sum_before(key.mT @ value))

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        query, key, value = ctx.saved_tensors
        before = _sum_before(key.mT @ value)
        to_weights = (grad @ value.mT).tril_()
        to_query = (to_weights @ key).add_(grad @ before.mT)
        after = _sum_before((query.mT @ grad).flip(2)).flip(2)  # (B, H, chunks, F, V) of the chunks behind
        to_key = (to_weights.mT @ query).add_(value @ after.mT)
        del to_weights
        to_value = ((query @ key.mT).tril_().mT @ grad).add_(key @ after)
        return to_query, to_key, to_value


def _sum_before(parts: Tensor) -> Tensor:
    """(B, H, chunks, F, V): of each chunk the sum over those before it."""
    return nn.functional.pad(parts[:, :, :-1].cumsum(2), (0, 0, 0, 0, 1, 0))


def attend_linear(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """sum_j (query key_j) value_j / sum_j (query key_j), over all tokens j of a text or, if causal, up to the query's.

    Args:
        query: (B, H, L, F) features. key: (B, G, L, F) features, zero in padding. value: (B, G, L, V).
    Returns:
        (B, H, L, V) of the features' type.
    """
    repeats, length = query.shape[1] // key.shape[1], query.shape[2]
    value = with_ones(value)
    if causal:
        # A text of many chunks is filled up to a whole number of them
        chunk = min(CHUNK, length)
        parts = [query, *(_repeat(part, repeats) for part in (key, value))]
        if behind := -length % chunk:
            parts = [nn.functional.pad(part, (0, 0, 0, behind)) for part in parts]
        sums = _CausalSums.apply(*(part.unflatten(2, (-1, chunk)) for part in parts)).flatten(2, 3)[:, :, :length]
    else:
        sums = query @ _repeat(key.mT @ value, repeats)
    return divided(sums)


def _repeat(x: Tensor, times: int) -> Tensor:
    """(B, G, ...) -> (B, G * times, ...), a head's copies side by side."""
    return x if times == 1 else x[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2)


def with_ones(value: Tensor) -> Tensor:
    """(..., V) -> (..., V + 1): the ones sum up the weights."""
    value = exact(value)
    return torch.cat((value, torch.ones_like(value[..., :1])), dim=-1)


def divided(sums: Tensor) -> Tensor:
    """The weighted sums (..., V + 1) divided by the weights' sum: (..., V)"""
    return sums[..., :-1] / sums[..., -1:].clamp_min(LEAST)


def linear_weights(query: Tensor, key: Tensor, causal: bool) -> Tensor:
    """The weights of values in `attend_linear`: query (..., Lq, F) and key (..., Lk, F) -> (..., Lq, Lk). Quadratic."""
    weights = query @ key.mT
    if causal:
        weights = weights.tril()
    return weights / weights.sum(-1, keepdim=True).clamp_min(LEAST)


class RunningSums:
    """The state of decoding: of each row and head the sum of key^T value over the tokens so far, (R, G, F, V + 1), the
    last column that of the keys alone. Of the same size after any number of tokens."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Adds up the first tokens of all rows: features (R, G, L, F), zero in padding, and values (R, G, L, V)."""
        self._sums = keys.mT @ with_ones(values)

    def step(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Adds one token to each row: features (R, G, F) and value (R, G, V).

        Args:
            query: (R, G, H / G, F) features.
        Returns:
            (R, G, H / G, V)
        """
        added = key[..., :, None] * with_ones(value)[..., None, :]
        self._sums = added if self._sums is None else self._sums + added
        return divided(query @ self._sums)

    def reorder(self, rows: Tensor, length: int | None = None) -> None:
        """Row r becomes the old row rows[r]; rows (R',). `length` is unused: rows of any length are alike."""
        if self._sums is not None:
            self._sums = self._sums.index_select(0, rows)
