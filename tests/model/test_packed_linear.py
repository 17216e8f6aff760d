"""Packed weights: the same products, by another kernel."""

import copy

import pytest
import torch
from torch import nn

from transloom.model.build import Model, build_model
from transloom.model.config import RecurrentConfig, TransformerConfig
from transloom.model.packed_linear import PackedLinear, pack_linears
from transloom.model.packing import Layout

MODELS = [
    TransformerConfig(d_model=64, d_ff=128, num_heads=4, encoder_layers=2, decoder_layers=2),
    RecurrentConfig(d_model=64, encoder_layers=2, decoder_layers=2),
]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15}  # of logits around 1: bf16 has 8 bits, and sums in other orders

needs_packing = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def search_logits(model: Model) -> torch.Tensor:
    """Of three steps of the search, on sentences of unlike lengths."""
    lengths = torch.tensor([5, 2, 7])
    tokens = torch.arange(int(lengths.sum())) % 40 + 4
    with torch.inference_mode():
        decoding = model.start_decoding(tokens, Layout.of(lengths))
        return torch.stack([decoding.step(torch.full((3,), token)) for token in (2, 11, 17)]).float()


@needs_packing
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("config", MODELS)
def test_a_packed_model_gives_the_same_logits(config: TransformerConfig | RecurrentConfig, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = build_model(config, 1000).to(dtype).eval()
    packed = pack_linears(copy.deepcopy(model))
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert packed.packed_projection is None  # on processors without AVX-512 oneDNN has no product in bf16
    else:
        assert not [one for one in packed.modules() if isinstance(one, nn.Linear)]
    torch.testing.assert_close(search_logits(packed), search_logits(model), rtol=0, atol=TOLERANCE[dtype])


@needs_packing
def test_packing_twice_is_packing_once() -> None:
    model = pack_linears(build_model(MODELS[0], 1000).eval())
    before = model.packed_projection
    assert pack_linears(model).packed_projection is before


@needs_packing
@pytest.mark.parametrize("rows", [(1,), (7,), (300,), (2, 5)])
def test_any_number_of_rows(rows: tuple[int, ...]) -> None:
    linear = nn.Linear(24, 40)
    x = torch.randn(*rows, 24)
    torch.testing.assert_close(PackedLinear(linear.weight, linear.bias)(x), linear(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("why", ["no such type", "no such operator"])
def test_a_model_that_cannot_be_packed_stays_as_it_is(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(MODELS[0], 1000).eval()
    if why == "no such type":
        model = model.double()
    else:
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None)
    before = search_logits(model)
    assert pack_linears(model) is model and model.packed_projection is None
    assert torch.equal(search_logits(model), before)
