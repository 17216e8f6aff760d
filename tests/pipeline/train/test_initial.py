"""What of another model's weights a training begins with."""

import dataclasses
from pathlib import Path

import pytest
import torch

from transloom.model.build import build_model
from transloom.model.config import Activation, Attention, DecoderConfig, FeatureMap, Positions, TransformerConfig
from transloom.pipeline.errors import UserError
from transloom.pipeline.huggingface import write_huggingface
from transloom.pipeline.model_folder import StoredModel, read_model, save_model
from transloom.pipeline.train.initial import fitting

SMALL = DecoderConfig(layers=2, d_model=16, d_ff=32, num_heads=2, dropout=0.0, max_positions=8)
VOCAB = 20


def stored(config=SMALL, vocab: int = VOCAB, tokenizer: str = "same") -> StoredModel:
    torch.manual_seed(0)
    return StoredModel(Path("there"), config, build_model(config, vocab).state_dict(), tokenizer, "")


def state(config=SMALL, vocab: int = VOCAB) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build_model(config, vocab).state_dict()


def test_the_same_model_takes_every_weight() -> None:
    model = stored()
    initial = fitting(model, SMALL, state(), "same", with_embeddings=True)
    assert all(torch.equal(initial.weights[name], tensor) for name, tensor in model.weights.items())
    assert not initial.left_out and not initial.fresh


def test_fewer_layers_and_a_shorter_context_take_what_fits_and_say_the_rest() -> None:
    config = DecoderConfig(layers=3, d_model=16, d_ff=32, num_heads=2, dropout=0.3, max_positions=4)
    initial = fitting(stored(), config, state(config), "same", with_embeddings=True)
    assert initial.fresh and all("layers.2." in name for name in initial.fresh)
    positions = "learned_positions.weight"
    assert torch.equal(initial.weights[positions], stored().weights[positions][:4])
    assert initial.left_out == {f"{positions}[4:]": "model.max_positions=4"}


def test_a_context_longer_than_the_learned_positions_is_refused() -> None:
    config = dataclasses.replace(SMALL, max_positions=9)
    with pytest.raises(UserError, match=r"^model\.max_positions: 9 .*model\.max_positions=8$"):
        fitting(stored(), config, state(config), "same", with_embeddings=True)


def test_rows_that_fill_a_vocabulary_up_are_left_out() -> None:
    model = stored(vocab=24)
    initial = fitting(model, SMALL, state(), "same", with_embeddings=True)
    assert torch.equal(initial.weights["embedding.weight"], model.weights["embedding.weight"][:VOCAB])
    assert list(initial.left_out) == [f"embedding.weight[{VOCAB}:]"]


def test_another_tokenizer_is_refused_or_its_embeddings_left_out() -> None:
    with pytest.raises(UserError, match=r"^train\.initial: .*initial_embeddings=false"):
        fitting(stored(tokenizer="other"), SMALL, state(), "same", with_embeddings=True)
    initial = fitting(stored(vocab=30, tokenizer="other"), SMALL, state(), "same", with_embeddings=False)
    assert initial.fresh == ["embedding.weight"] == list(initial.left_out)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"tokenizer\.end_of_text"):
        fitting(stored(vocab=VOCAB - 1), SMALL, state(), "same", with_embeddings=True)


def test_heads_of_keys_that_are_not_given_are_those_of_queries() -> None:
    config = dataclasses.replace(SMALL, key_value_heads=2, rotary_base=5000.0)  # which learned positions do not look at
    config = dataclasses.replace(config, window=9, global_tokens=1, random_features=7, feature_map=FeatureMap.favor)
    assert not fitting(stored(config), SMALL, state(), "same", with_embeddings=True).fresh


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (DecoderConfig(layers=2, d_model=16, d_ff=32, num_heads=4, max_positions=8), r"^model\.num_heads: is 4"),
        (
            DecoderConfig(layers=2, d_model=16, d_ff=32, num_heads=2, max_positions=8, activation=Activation.relu),
            r"^model\.activation: is relu here and gelu_tanh",
        ),
        (dataclasses.replace(SMALL, attention=Attention.linear), r"^model\.attention: is linear here and full"),
        (
            TransformerConfig(d_model=16, d_ff=32, num_heads=2),
            r"^train\.initial: there is of architecture decoder_only",
        ),
    ],
)
def test_a_model_that_computes_something_else_is_refused_by_the_setting(config, key: str) -> None:
    with pytest.raises(UserError, match=key):
        fitting(stored(), config, state(config), "same", with_embeddings=True)


def test_folders_of_both_forms_are_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    weights = stored().weights
    save_model(tmp_path / "own", SMALL, weights, tmp_path / "tokenizer", {})
    write_huggingface(tmp_path / "theirs", SMALL, VOCAB, weights)
    (tmp_path / "theirs" / "tokenizer.json").write_text("{}")
    own, theirs = read_model(tmp_path / "own"), read_model(tmp_path / "theirs")
    assert own.tokenizer == theirs.tokenizer
    for model in (own, theirs):
        initial = fitting(model, SMALL, state(), own.tokenizer, with_embeddings=True)
        assert all(torch.equal(initial.weights[name], tensor) for name, tensor in weights.items())
    assert theirs.config.positions is Positions.learned
    (tmp_path / "own" / "characters.json").write_text("{}")
    (tmp_path / "own" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"characters\.json is missing or damaged"):
        read_model(tmp_path / "own")
    (tmp_path / "own" / "tokenizer.json").write_text("{}")
    (tmp_path / "own" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="missing or damaged"):
        read_model(tmp_path / "own")
