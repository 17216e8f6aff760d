"""Laws of the language model, its published sizes and its first weights."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from packed import VOCAB, pack, sentences
from reference_varlen import reference_varlen
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import transloom.model.attention
from transloom.jobs.config.compose import load_config
from transloom.model.config import Activation, Attention, DecoderConfig, FeatureMap, Norm, Normalization, Positions
from transloom.model.decoder_only import DecoderOnly
from transloom.model.flops import count_parameters, multiply_adds
from transloom.model.grid import grid_of
from transloom.model.packed_linear import pack_linears
from transloom.model.packing import Layout

GPT = DecoderConfig(layers=2, d_model=16, d_ff=32, num_heads=4, dropout=0.0, max_positions=200)
LLAMA = replace(
    GPT,
    normalization=Normalization.rms,
    activation=Activation.swiglu,
    positions=Positions.rotary,
    key_value_heads=2,
    bias=False,
    tied=False,
)


def make(config: DecoderConfig) -> DecoderOnly:
    torch.manual_seed(0)
    decoder = DecoderOnly(config, VOCAB).double().eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return decoder


MODELS = {
    "gpt": partial(make, GPT),
    "post-norm": partial(make, replace(GPT, norm=Norm.post)),
    "sinusoids, untied": partial(make, replace(GPT, positions=Positions.sinusoidal, tied=False)),
    "llama": partial(make, LLAMA),
    "rotary, one head of keys": partial(make, replace(LLAMA, key_value_heads=1, rotary_base=500.0)),
    "window": partial(make, replace(GPT, attention=Attention.window, window=5)),
    "window, global tokens": partial(make, replace(LLAMA, attention=Attention.window, window=6, global_tokens=3)),
    "alibi": partial(make, replace(LLAMA, positions=Positions.alibi)),
    "window, alibi": partial(
        make, replace(GPT, positions=Positions.alibi, attention=Attention.window, window=7, global_tokens=2)
    ),
    "linear": partial(make, replace(GPT, attention=Attention.linear)),
    "random features": partial(
        make, replace(LLAMA, attention=Attention.linear, feature_map=FeatureMap.favor, random_features=11)
    ),
}
each_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
each_length = pytest.mark.parametrize("lengths", [(5, 9, 1, 7), (5, 90, 1, 70)], ids=["short", "long"])
Build = Callable[[], DecoderOnly]


def run(decoder: DecoderOnly, texts: list[Tensor]) -> list[Tensor]:
    """The logits by text."""
    hidden = decoder(*pack(texts))
    return list((hidden @ decoder.output_weight.T).split([len(text) for text in texts]))


@each_model
@each_length
def test_a_packed_text_never_sees_its_neighbour(build: Build, lengths: tuple[int, ...]) -> None:
    decoder, texts = build(), sentences(*lengths)
    for text, among_others in zip(texts, run(decoder, texts), strict=True):
        torch.testing.assert_close(among_others, run(decoder, [text])[0], rtol=0, atol=1e-12)


@each_model
@each_length
def test_gradients_do_not_depend_on_the_packing(build: Build, lengths: tuple[int, ...]) -> None:
    decoder, texts = build(), sentences(*lengths)
    parameters = list(decoder.parameters())
    together = torch.autograd.grad(sum(logits.pow(2).sum() for logits in run(decoder, texts)), parameters)
    alone = torch.autograd.grad(sum(run(decoder, [text])[0].pow(2).sum() for text in texts), parameters)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@each_model
@pytest.mark.parametrize("length", [8, 80])
def test_a_future_token_never_changes_the_past(build: Build, length: int) -> None:
    decoder, (text,) = build(), sentences(length)
    before = run(decoder, [text])[0]
    for position in range(1, length, length // 8):
        changed = text.clone()
        changed[position] = 4 + (text[position] - 3) % (VOCAB - 4)
        after = run(decoder, [changed])[0]
        assert torch.equal(before[:position], after[:position])
        assert not torch.allclose(before[position], after[position])


@each_model
def test_long_texts_are_attended_to_as_short_ones(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, texts = build(), sentences(70, 90)
    long = run(decoder, texts)
    monkeypatch.setattr(transloom.model.attention, "LONG", 1000)
    for one, other in zip(long, run(decoder, texts), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@each_model
def test_the_way_without_a_grid_gives_the_same(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself runs on GPUs alone; what goes into it and comes out of it is tested with a stand-in."""
    decoder, texts = build(), sentences(5, 9, 1, 7)
    expected, cached = run(decoder, texts), decode(decoder, texts, steps=3)
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", reference_varlen)
    monkeypatch.setattr(transloom.model.attention.Grid, "has_packed_kernel", True)
    for one, other in zip(run(decoder, texts), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(decode(decoder, texts, steps=3), cached, rtol=0, atol=1e-12)


def decode(decoder: DecoderOnly, prompts: list[Tensor], steps: int) -> Tensor:
    """Logits after the prompts and after each of some tokens: (steps + 1, R, V)."""
    decoding = decoder.start_decoding(*pack(prompts))
    tokens = torch.stack(sentences(*[len(prompts)] * steps, seed=2))
    return torch.stack([decoding.logits, *(decoding.step(row) for row in tokens)])


@each_model
@pytest.mark.parametrize("lengths", [(6, 6), (3, 9, 1), (70, 90, 2)], ids=["equal", "unequal", "long"])
def test_cached_decoding_equals_uncached(build: Build, lengths: tuple[int, ...]) -> None:
    decoder, prompts = build(), sentences(*lengths)
    steps = 40  # long enough for the cache to grow
    stepped = decode(decoder, prompts, steps)
    tokens = torch.stack(sentences(*[len(prompts)] * steps, seed=2))
    whole = run(decoder, [torch.cat((prompt, tokens[:, row])) for row, prompt in enumerate(prompts)])
    for row, logits in enumerate(whole):
        torch.testing.assert_close(stepped[:, row], logits[-steps - 1 :], rtol=0, atol=1e-12)


@each_model
def test_reordered_rows_go_on_from_their_parents(build: Build) -> None:
    decoder, texts = build(), sentences(3, 9, 5)
    decoding = decoder.start_decoding(*pack(texts))
    orders = [[1, 1, 0, 2, 2], [4, 2, 0], [1], [0, 0]]  # more rows and fewer, of unequal lengths and of one
    for i, order in enumerate(orders):
        decoding.reorder(torch.tensor(order))
        texts = [texts[row] for row in order]
        expected = torch.stack([logits[-1] for logits in run(decoder, texts)])
        torch.testing.assert_close(decoding.logits, expected, rtol=0, atol=1e-12)
        tokens = sentences(len(order), seed=i)[0]
        texts = [torch.cat((text, token[None])) for text, token in zip(texts, tokens, strict=True)]
        stepped = decoding.step(tokens)
        assert decoding.lengths.tolist() == [len(text) for text in texts]
        expected = torch.stack([logits[-1] for logits in run(decoder, texts)])
        torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-12)


def test_a_text_beyond_the_context_is_refused() -> None:
    decoder = make(replace(GPT, max_positions=9))
    assert len(run(decoder, sentences(9))[0]) == 9
    with pytest.raises(ValueError, match="max_positions is 9"):
        run(decoder, sentences(10))
    decoding = decoder.start_decoding(*pack(sentences(8, 3)))
    decoding.step(torch.tensor([4, 4]))
    with pytest.raises(ValueError, match="max_positions is 9"):
        decoding.step(torch.tensor([4, 4]))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("config", [GPT, LLAMA], ids=["tied", "untied"])
def test_packed_weights_give_the_same_logits(config: DecoderConfig) -> None:
    decoder, prompts = make(config).float(), sentences(3, 9)
    with torch.inference_mode():
        expected = decode(decoder, prompts, steps=3)
        packed = pack_linears(decoder)
        assert packed.packed_projection is not None
        torch.testing.assert_close(decode(packed, prompts, steps=3), expected, rtol=0, atol=1e-4)


PUBLISHED = {
    "gpt1": (40_478, 116_534_784),
    "gpt2_124m": (50_257, 124_439_808),
    "gpt2_355m": (50_257, 354_823_168),
    "gpt2_774m": (50_257, 774_030_080),
    "gpt2_1558m": (50_257, 1_557_611_200),
    "gpt3_175b": (50_257, 174_604_259_328),
    "lm_small": (4_096, 3_148_224),
    "lm_shakespeare_char": (65, 804_096),  # nanoGPT's 0.80 M, and 64 positions of 128 numbers
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_numbers_of_parameters(name: str) -> None:
    vocab_size, parameters = PUBLISHED[name]
    words = ["experiment=language_model/demo", f"model={name}", "batch.tokens=4096", "batch.micro_tokens=2048"]
    config: Any = load_config(words).model
    assert count_parameters(config, vocab_size) == parameters


def test_first_weights_are_gpt2s() -> None:
    torch.manual_seed(0)
    decoder = DecoderOnly(replace(GPT, layers=8, d_model=128, d_ff=512), 500)
    scaled = 0.02 / math.sqrt(16)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() == 2:
            is_residual = name.endswith(("self_attention.output.weight", "feed_forward.outer.weight"))
            expected = scaled if is_residual else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm.weight" in name))), name


@pytest.mark.parametrize("length", [10, 40])  # the kernel for long texts on a CPU is not counted
@pytest.mark.parametrize("config", [GPT, LLAMA])
def test_multiply_adds_are_those_that_torch_counts(config: DecoderConfig, length: int) -> None:
    decoder = DecoderOnly(config, VOCAB)
    layout = Layout.of(torch.tensor([length, length]))
    with FlopCounterMode(display=False) as counter:
        decoder.logits(decoder(torch.zeros(2 * length, dtype=torch.int64), layout))
    assert counter.get_total_flops() == 2 * 2 * length * config.multiply_adds(VOCAB, length)[1]
    assert multiply_adds(config, VOCAB) == config.multiply_adds(VOCAB, 0)


@torch.no_grad()
def test_dropout_stands_where_gpt2_has_it() -> None:
    """Of the embedding, of attention's weights and of each sublayer's output, and in training alone."""
    decoder = make(replace(GPT, dropout=0.5))
    tokens, layout = pack(sentences(9))
    assert torch.equal(decoder(tokens, layout), decoder(tokens, layout))
    decoder.train()
    assert (decoder.embed(tokens, layout.positions) == 0).double().mean() == pytest.approx(0.5, abs=0.2)
    attention: Any = decoder.layers[0].get_submodule("self_attention")
    x, grid = torch.randn(9, 16, dtype=torch.float64), grid_of(decoder, layout)
    assert not torch.allclose(attention(x, grid, causal=True), attention(x, grid, causal=True))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"layers": 0}, "layers"),
        ({"max_positions": 0}, "max_positions"),
        ({"num_heads": 3}, "d_model"),
        ({"key_value_heads": 3}, "key_value_heads"),
        ({"dropout": 1.0}, "dropout"),
        ({"num_heads": 16, "positions": Positions.rotary}, "d_model"),
        ({"d_model": 15, "num_heads": 5, "positions": Positions.sinusoidal}, "d_model"),
        ({"norm_epsilon": 0.0}, "norm_epsilon"),
        ({"rotary_base": math.inf}, "rotary_base"),
        ({"window": 0}, "window"),
        ({"global_tokens": -1}, "global_tokens"),
        ({"random_features": 0}, "random_features"),
        ({"attention": Attention.linear, "positions": Positions.alibi}, "positions"),
    ],
)
def test_impossible_settings_are_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        replace(GPT, **changes)
