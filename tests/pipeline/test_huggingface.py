"""Folders of GPT-2 and Llama: the same logits as transformers in both directions, and refusals by key."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from transloom.model.config import Activation, DecoderConfig, Norm, Normalization, Positions
from transloom.model.decoder_only import DecoderOnly
from transloom.model.packing import Layout
from transloom.pipeline.errors import UserError
from transloom.pipeline.huggingface import read_huggingface, write_huggingface

transformers = pytest.importorskip("transformers")
VOCAB, TOKENS = 101, 30
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64, "vocab_size": VOCAB}
LLAMA = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "vocab_size": VOCAB,
}
LLAMA_SHAPE = DecoderConfig(
    layers=2,
    d_model=32,
    d_ff=56,
    num_heads=4,
    key_value_heads=2,
    dropout=0.0,
    normalization=Normalization.rms,
    activation=Activation.swiglu,
    positions=Positions.rotary,
    max_positions=64,
    bias=False,
    tied=False,
)
GPT2_SHAPE = DecoderConfig(layers=2, d_model=32, d_ff=48, num_heads=4, max_positions=64)


def gpt2(**changes: Any):
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT2, **changes}))


def llama(**changes: Any):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **changes}))


THEIRS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "gpt2, another width and epsilon": lambda: gpt2(n_inner=48, layer_norm_epsilon=1e-3, activation_function="gelu"),
    "gpt2, untied": lambda: gpt2(tie_word_embeddings=False),
    "llama": llama,
    "llama, grouped, tied": lambda: llama(num_key_value_heads=2, tie_word_embeddings=True),
    "llama, one head of keys": lambda: llama(
        num_key_value_heads=1, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}
    ),
}
OURS = {
    "gpt2": GPT2_SHAPE,
    "gpt2, untied, relu": replace(GPT2_SHAPE, tied=False, activation=Activation.relu),
    "gpt2 without biases": replace(GPT2_SHAPE, bias=False, activation=Activation.gelu),
    "llama, grouped": LLAMA_SHAPE,
    "llama, tied": replace(LLAMA_SHAPE, tied=True, key_value_heads=None, rotary_base=1e5, norm_epsilon=1e-3),
}


def randomise(model: torch.nn.Module) -> None:
    """Weights far from zero and norms far from one, of either sign: so no model says its last token again and again."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * (1.0 if is_norm else 0.3))


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check_equal(ours: DecoderOnly, theirs: Any) -> None:
    """Logits of whole texts, and a greedy continuation."""
    ours, theirs = ours.float().eval(), theirs.float().eval()
    ids = random_ids(3, TOKENS)
    logits = ours.logits(ours(ids.flatten(), Layout.of(torch.full((3,), TOKENS))))
    expected = theirs(ids).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(logits.view_as(expected), expected, rtol=0, atol=1e-4)
    prompt = ids[:1, :7]
    decoding = ours.start_decoding(prompt[0], Layout.of(torch.tensor([7])))
    tokens = [int(decoding.logits.argmax())]
    while len(tokens) < 30:
        tokens.append(int(decoding.step(torch.tensor(tokens[-1:])).argmax()))
    theirs.generation_config.eos_token_id = None  # nothing ends the continuation
    settings = transformers.GenerationConfig(max_new_tokens=30, do_sample=False, pad_token_id=0)
    assert tokens == theirs.generate(prompt, generation_config=settings)[0, 7:].tolist()
    assert len(set(tokens)) > 3


def load(folder: Path, **options: Any) -> DecoderOnly:
    config, vocab_size, weights = read_huggingface(folder, **options)
    model = DecoderOnly(config, vocab_size)
    model.load_state_dict(weights)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = llama(num_key_value_heads=2)
    randomise(model)
    model.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", THEIRS)
def test_a_model_that_was_read_has_their_logits(name: str, tmp_path: Path) -> None:
    theirs = THEIRS[name]()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    check_equal(load(tmp_path), theirs)


@pytest.mark.parametrize("name", OURS)
def test_a_model_that_was_written_has_our_logits(name: str, tmp_path: Path) -> None:
    ours = DecoderOnly(OURS[name], VOCAB)
    randomise(ours)
    write_huggingface(tmp_path, ours.config, VOCAB, ours.state_dict(), {"eos_token_id": 3})
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert theirs.config.eos_token_id == 3
    check_equal(ours, theirs)


@pytest.mark.parametrize("name", [name for name, config in OURS.items() if name != "gpt2 without biases"])
def test_what_was_written_is_read_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    ours = DecoderOnly(OURS[name], VOCAB)
    write_huggingface(tmp_path, ours.config, VOCAB, ours.state_dict())
    config, vocab_size, weights = read_huggingface(tmp_path)
    assert config == replace(ours.config, key_value_heads=config.key_value_heads) and vocab_size == VOCAB
    assert config.shared_heads == ours.config.shared_heads
    assert weights.keys() == ours.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in ours.state_dict().items())


def test_a_model_in_several_files_and_in_bfloat16(tmp_path: Path) -> None:
    theirs = llama(num_key_value_heads=2).bfloat16()
    randomise(theirs)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert {tensor.dtype for tensor in read_huggingface(tmp_path)[2].values()} == {torch.bfloat16}
    # Theirs is read anew: in bfloat16 its rotations were rounded too.
    check_equal(load(tmp_path), transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))


def test_the_old_form_without_the_head_and_with_derived_tensors(tmp_path: Path) -> None:
    """As the hub has GPT-2: no prefix, and causal masks beside the weights."""
    theirs = gpt2()
    randomise(theirs)
    theirs.transformer.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    assert "wte.weight" in tensors
    masks = {"h.0.attn.bias": torch.ones(1, 1, 64, 64).tril().bool(), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(tensors | masks, file)
    check_equal(load(tmp_path), theirs)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "mistral"),
        ("model_type", None),
        ("model_type", ["llama"]),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4, "factor": 8.0}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": "10000"}),
        ("sliding_window", 4096),
        ("use_sliding_window", True),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("head_dim", 16),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("partial_rotary_factor", 0.5),
        ("quantization_config", {"bits": 4}),
        ("auto_map", {"AutoModelForCausalLM": "modeling.Mine"}),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", "2"),
        ("num_hidden_layers", True),
        ("hidden_size", 10**12),
        ("hidden_size", 33),
        ("num_key_value_heads", 3),
        ("rms_norm_eps", -1.0),
        ("tie_word_embeddings", "yes"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_key(folder: Path, key: str, value: Any) -> None:
    edit(folder, **({"head_dim": None} if key == "hidden_size" else {}), **{key: value})
    with pytest.raises(UserError, match=rf"config\.json: {key}:"):
        read_huggingface(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("activation_function", "silu"),
        ("activation_function", ["gelu"]),
        ("n_head", 5),
        ("resid_pdrop", 1.5),
    ],
)
def test_what_gpt2_can_have_and_we_have_not_is_refused_by_key(tmp_path: Path, key: str, value: Any) -> None:
    gpt2().save_pretrained(tmp_path)
    edit(tmp_path, **{key: value})
    field = "n_embd" if key == "n_head" else key  # whose 32 is not divisible by 5
    with pytest.raises(UserError, match=rf"config\.json: {field}:"):
        read_huggingface(tmp_path)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(dict(change(load_file(file))), file)


NORM = "model.norm.weight"
DAMAGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "missing": (lambda t: {name: x for name, x in t.items() if name != NORM}, NORM),
    "one too many": (lambda t: t | {"score.weight": torch.ones(2, 32)}, "score.weight"),
    "another shape": (lambda t: t | {NORM: torch.ones(31)}, NORM),
    "integers": (lambda t: t | {NORM: torch.ones(32, dtype=torch.int32)}, NORM),
    "not finite": (lambda t: t | {NORM: torch.full((32,), torch.nan)}, NORM),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_tensors_that_do_not_fit_are_refused_by_name(folder: Path, name: str) -> None:
    change, tensor = DAMAGES[name]
    change_tensors(folder, change)
    with pytest.raises(UserError, match=tensor):
        read_huggingface(folder)


def test_layers_that_are_not_there_cost_no_memory(folder: Path) -> None:
    edit(folder, num_hidden_layers=10**9)
    with pytest.raises(UserError, match=r"1,000,000,000 layers"):
        read_huggingface(folder)


def test_a_tied_model_whose_head_is_another_is_refused(folder: Path) -> None:
    edit(folder, tie_word_embeddings=True)
    with pytest.raises(UserError, match="tie_word_embeddings:"):
        read_huggingface(folder)


def test_a_pickle_is_not_read(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        read_huggingface(folder)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle.*save_pretrained"):
        read_huggingface(folder)
    with pytest.raises(UserError, match=r"no config\.json"):
        read_huggingface(tmp_path)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "absent.safetensors", 3])
def test_an_index_leads_nowhere_else(folder: Path, name: Any) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "elsewhere.safetensors")
    tensors = load_file(folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError):
        read_huggingface(folder)


def test_an_index_and_its_files_agree(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    listed = dict.fromkeys(tensors, "model.safetensors")
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": listed | {"more": "model.safetensors"}}))
    with pytest.raises(UserError, match="weight_map: 'more'"):
        read_huggingface(folder)
    del listed[NORM]
    file.write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(UserError, match=f"weight_map: '{NORM}'"):
        read_huggingface(folder)


def test_links_are_followed_within_the_cache_alone_and_where_asked_for(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0123", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, blobs / f"hash-of-{name}")
        os.symlink(f"../../blobs/hash-of-{name}", snapshot / name)
    with pytest.raises(UserError, match=r"config\.json (is a|lies elsewhere, behind a) link"):
        read_huggingface(snapshot)
    expected = read_huggingface(folder)
    config, _, weights = read_huggingface(snapshot, cache_links=True)
    assert config == expected[0] and all(torch.equal(weights[name], x) for name, x in expected[2].items())
    (snapshot / "model.safetensors").unlink()
    os.symlink(folder / "model.safetensors", snapshot / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors (is a|lies elsewhere, behind a) link"):
        read_huggingface(snapshot, cache_links=True)
    (folder / "config.json").rename(tmp_path / "config.json")
    os.symlink(tmp_path / "config.json", folder / "config.json")
    with pytest.raises(UserError, match=r"config\.json (is a|lies elsewhere, behind a) link"):
        read_huggingface(folder, cache_links=True)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (replace(GPT2_SHAPE, norm=Norm.post), "norm"),
        (replace(GPT2_SHAPE, normalization=Normalization.rms), "normalization"),
        (replace(GPT2_SHAPE, positions=Positions.sinusoidal), "positions"),
        (replace(GPT2_SHAPE, key_value_heads=2), "key_value_heads"),
        (replace(GPT2_SHAPE, activation=Activation.swiglu), "activation"),
        (replace(LLAMA_SHAPE, activation=Activation.gelu), "activation"),
        (replace(LLAMA_SHAPE, normalization=Normalization.layer), "normalization"),
        (replace(LLAMA_SHAPE, norm=Norm.post), "norm"),
        (replace(LLAMA_SHAPE, bias=True), "bias"),
    ],
)
def test_what_neither_form_has_is_not_written(tmp_path: Path, config: DecoderConfig, key: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.{key}:"):
        write_huggingface(tmp_path, config, VOCAB, {})
    assert not list(tmp_path.iterdir())
