"""The comparison passes where attention is right, and notices where it is not."""

import pytest
import torch
from reference_varlen import reference_varlen

import transloom.model.attention
from transloom.pipeline.gpu_check.attention import check_attention
from transloom.pipeline.gpu_check.settings import attention_size

CPU = torch.device("cpu")


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """bf16 goes the packed way, as it does on a GPU; fp32, which is what it is compared with, does not."""
    has_kernel = property(lambda grid: grid.dtype is torch.bfloat16)
    monkeypatch.setattr(transloom.model.attention.Grid, "has_packed_kernel", has_kernel)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference_varlen)
    return monkeypatch


def test_bf16_on_the_grid_is_near_enough() -> None:
    outcome = check_attention(attention_size("cpu"), CPU)
    assert not outcome.missed
    assert not outcome.figures["packed_kernel"]
    assert all(0 < one["forward"] < one["gradient"] < 0.06 for one in [outcome.figures["distances"]["model"]])


def test_the_packed_way_is_the_one_that_is_compared(packed: pytest.MonkeyPatch) -> None:
    called = []

    def counted(*args, **options):
        called.append(options["window_size"])
        return reference_varlen(*args, **options)

    packed.setattr("torch.nn.attention.varlen.varlen_attn", counted)
    outcome = check_attention(attention_size("cpu"), CPU)
    assert not outcome.missed and outcome.figures["packed_kernel"]
    # Each kind once alone; in the model the encoder's, the decoder's own, and its cross-attention
    assert sorted(called) == [(-1, -1)] * 4 + [(-1, 0)] * 2


def sees_the_future(*args, window_size):
    return reference_varlen(*args, window_size=(-1, -1))


def sees_its_neighbour(query, key, value, query_ends, key_ends, *sizes, window_size):
    shifted = key_ends.clone()
    shifted[1:-1] += 1
    return reference_varlen(query, key, value, query_ends, shifted, sizes[0], sizes[1] + 1, window_size=window_size)


def forgets_the_scale(query, *args, window_size):
    return reference_varlen(query * query.shape[-1] ** 0.5, *args, window_size=window_size)


@pytest.mark.parametrize("kernel", [sees_the_future, sees_its_neighbour, forgets_the_scale])
def test_a_wrong_kernel_is_noticed(kernel, packed: pytest.MonkeyPatch) -> None:
    packed.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    missed = {target.what for target in check_attention(attention_size("cpu"), CPU).missed}
    assert "causal self-attention: distance" in missed and "model: distance" in missed
    assert ("cross-attention: distance" in missed) == (kernel is not sees_the_future)
