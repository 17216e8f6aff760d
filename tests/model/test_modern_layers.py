"""The layers that came after the paper, against their formulas and against Hugging Face's Llama."""

import math

import pytest
import torch
from packed import SIZES, VOCAB, make_transformer, pack, run, sentences
from torch import nn

from transloom.model.attention import SelfAttention
from transloom.model.config import Activation, Norm, Normalization, Positions, TransformerConfig
from transloom.model.grid import Grid
from transloom.model.layers import FeedForward, make_normalization
from transloom.model.packing import Layout
from transloom.model.positions import rotate, rotations
from transloom.model.transformer import Transformer

LENGTH, WIDTH = 9, 6


def test_a_rotation_turns_pairs_by_the_angle_of_the_position() -> None:
    """RoPE, equation 13, for each pair as a complex number."""
    torch.manual_seed(0)
    x = torch.randn(LENGTH, 2, WIDTH, dtype=torch.float64)
    turned = rotate(x, rotations(LENGTH, WIDTH).double())
    for position in range(LENGTH):
        for i in range(WIDTH // 2):
            angle = position / 10000 ** (2 * i / WIDTH)
            pair = torch.complex(x[position, :, i], x[position, :, i + WIDTH // 2])
            expected = pair * complex(math.cos(angle), math.sin(angle))
            found = torch.complex(turned[position, :, i], turned[position, :, i + WIDTH // 2])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_only_the_distance_of_two_tokens_matters() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, WIDTH, dtype=torch.float64)
    turn = rotations(64, WIDTH).double()

    def score(q: int, k: int) -> float:
        return float((rotate(query, turn[q : q + 1]) * rotate(key, turn[k : k + 1])).sum())

    assert score(7, 3) == pytest.approx(score(40, 36), rel=1e-5)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_shared_keys_are_keys_that_are_there_twice() -> None:
    """Two heads of queries that share keys and values do what four heads do whose keys are the same in pairs."""
    shared = make_transformer(key_value_heads=2)
    full = make_transformer()
    weights = {}
    for name, weight in shared.state_dict().items():
        if "query_key_value" in name or "key_value" in name:
            width = shared.config.key_width
            groups = weight.shape[0] // width
            is_self = "query_key_value" in name
            heads = list(weight.view(groups, width, *weight.shape[1:]))
            queries, others = (heads[:4], heads[4:]) if is_self else ([], heads)
            weight = torch.cat(queries + [head for head in others for _ in range(2)])
        weights[name] = weight
    full.load_state_dict(weights)
    sources, targets = sentences(5, 9, 3), sentences(8, 2, 6, seed=1)
    for one, other in zip(run(shared, sources, targets), run(full, sources, targets), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_self_attention_is_llamas(heads: int) -> None:
    """With the same weights, causal, without padding."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    configuration = pytest.importorskip("transformers").LlamaConfig(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=heads,
        intermediate_size=24,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    theirs = llama.LlamaAttention(configuration, layer_idx=0).double()
    ours = SelfAttention(16, 4, 4, 4, heads, bias=False).double()
    projections = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    ours.query_key_value.weight.data = torch.cat([one.weight.data for one in projections])
    ours.output.weight.data = theirs.o_proj.weight.data
    x = torch.randn(2, LENGTH, 16, dtype=torch.float64)
    layout = Layout.of(torch.tensor([LENGTH, LENGTH]))
    turn = rotations(64, 4).double()
    grid = Grid(layout, 4, torch.float64, turn.index_select(0, layout.positions))
    found = ours(x.flatten(0, 1), grid, causal=True).view_as(x)
    cos, sin = (part.repeat(1, 2)[None, :LENGTH] for part in turn.chunk(2, dim=1))
    mask = torch.full((LENGTH, LENGTH), -math.inf, dtype=torch.float64).triu(1)[None, None]
    expected, _ = theirs(x, position_embeddings=(cos, sin), attention_mask=mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # Llama's softmax is in fp32


def test_swiglu_and_the_root_mean_square_are_llamas() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    configuration = pytest.importorskip("transformers").LlamaConfig(
        hidden_size=16, intermediate_size=24, num_attention_heads=4
    )
    torch.manual_seed(0)
    theirs = llama.LlamaMLP(configuration).double()
    ours = FeedForward(16, 24, Activation.swiglu, bias=False).double()
    ours.inner.weight.data = torch.cat((theirs.gate_proj.weight.data, theirs.up_proj.weight.data))
    ours.outer.weight.data = theirs.down_proj.weight.data
    x = torch.randn(LENGTH, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)

    config = TransformerConfig(**SIZES, normalization=Normalization.rms)
    norm = make_normalization(config).double()
    norm.weight.data.uniform_(0.5, 2)
    expected = x / (x.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    assert torch.autograd.gradcheck(norm, x.requires_grad_())


def test_gelu_is_that_of_its_paper() -> None:
    layer = FeedForward(16, 24, Activation.gelu).double()
    x = torch.randn(LENGTH, 16, dtype=torch.float64)
    inner = layer.inner(x)
    expected = layer.outer(inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))))
    torch.testing.assert_close(layer(x), expected)


def test_without_biases_there_is_none() -> None:
    config = TransformerConfig(**SIZES, bias=False, norm=Norm.pre)
    assert not [name for name, _ in Transformer(config, VOCAB).named_parameters() if name.endswith("bias")]


def test_rotary_positions_add_nothing_to_the_embedding() -> None:
    model = make_transformer(positions=Positions.rotary)
    tokens, layout = pack(sentences(5))
    embedded = model.embed(tokens, layout.positions)
    assert torch.equal(embedded, model.embedding(tokens) * math.sqrt(16))
    assert isinstance(model.encoder, nn.ModuleList) and not hasattr(model, "sinusoids")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"key_value_heads": 3}, "key_value_heads"),
        ({"key_value_heads": 0}, "key_value_heads"),
        ({"positions": Positions.rotary, "d_k": 3}, "d_k"),
    ],
)
def test_impossible_settings_are_refused_by_field(settings: dict, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        TransformerConfig(**SIZES, **settings)
