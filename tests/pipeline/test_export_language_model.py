"""A language model in a folder that transformers loads: the same logits, and a tokenizer with the same ids."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from language_folder import SHAPE, TEXT, write_language_model, write_tokenizer

from transloom.jobs.__main__ import main
from transloom.model.config import Activation, DecoderConfig, Normalization, Positions, RecurrentDecoderConfig
from transloom.model.packing import Layout
from transloom.model.recurrent_decoder import RecurrentDecoder
from transloom.pipeline.data.text_tokenizer import TextTokenizer, load_text_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.export import Format, export
from transloom.pipeline.huggingface_tokenizer import write_huggingface_tokenizer
from transloom.pipeline.model_folder import load_language_model, save_model

transformers = pytest.importorskip("transformers")
LLAMA = replace(
    SHAPE,
    normalization=Normalization.rms,
    activation=Activation.swiglu,
    positions=Positions.rotary,
    bias=False,
)
TEXTS = [TEXT, "", " ", "  two  spaces\n\n\ttabs ", "<|endoftext|>", "a<|endoftext|>b", "ẞ 👍🏽 \u2028", "\ufffd"]


def check_tokenizer(folder: Path, ours: TextTokenizer, texts: list[str], context: int) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text, ids in zip(texts, ours.encode(texts), strict=True):
        assert theirs(text)["input_ids"] == ids.tolist(), text
        assert theirs.decode(ids.tolist()) == ours.decode(ids), text
    assert theirs.eos_token_id == theirs.bos_token_id == ours.end_of_text
    assert theirs.model_max_length == context


@pytest.mark.parametrize(("config", "padding"), [(SHAPE, 7), (LLAMA, 0)], ids=["gpt2", "llama"])
def test_logits_and_ids_are_those_of_the_model(config: DecoderConfig, padding: int, tmp_path: Path, capsys) -> None:
    ours = write_language_model(tmp_path / "mine", config, padding)
    assert main(["export", str(tmp_path / "mine"), str(tmp_path / "theirs"), "format=huggingface"]) == 0
    tokenizer = load_text_tokenizer(tmp_path / "mine")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    ids = torch.from_numpy(tokenizer.encode([TEXT])[0]).long()
    with torch.inference_mode():
        logits = ours.logits(ours(ids, Layout.of(torch.tensor([len(ids)]))))
        torch.testing.assert_close(theirs(ids[None]).logits[0], logits, rtol=0, atol=1e-4)
    assert theirs.config.eos_token_id == tokenizer.end_of_text
    check_tokenizer(tmp_path / "theirs", tokenizer, TEXTS, 64)
    assert load_text_tokenizer(tmp_path / "theirs").encode(TEXTS)[0].tolist() == ids.tolist()


def write_characters(folder: Path, characters: str) -> TextTokenizer:
    (folder / "characters.json").write_text(json.dumps({"characters": "".join(sorted(set(characters)))}))
    return load_text_tokenizer(folder)


@pytest.mark.parametrize("characters", [TEXT + "\n\t<|endoftx>", TEXT + "\ufffd"])
def test_characters_become_a_tokenizer_with_the_same_ids(characters: str, tmp_path: Path) -> None:
    ours = write_characters(tmp_path, characters)
    (tmp_path / "new").mkdir()
    write_huggingface_tokenizer(tmp_path, ours, 32, tmp_path / "new")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    for text in TEXTS:
        ids = ours.encode([text])[0].tolist()
        assert theirs(text)["input_ids"] == ids, text
        if ours.unknown not in ids:
            assert theirs.decode(ids) == text
    assert theirs.eos_token_id == ours.end_of_text and theirs.model_max_length == 32
    again = load_text_tokenizer(tmp_path / "new")
    assert (again.end_of_text, again.vocab_size, again.unknown) == (ours.end_of_text, ours.vocab_size, ours.unknown)


def test_an_end_of_text_without_a_token_gets_one_and_what_surrounds_a_text_is_left_out(tmp_path: Path) -> None:
    write_language_model(tmp_path / "mine")
    file = tmp_path / "mine" / "tokenizer.json"
    settings = json.loads(file.read_text())
    settings["added_tokens"] = []
    settings["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    settings["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "T", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"T": {"id": "T", "ids": [5], "tokens": ["T"]}},
    }
    file.write_text(json.dumps(settings))
    ours = load_text_tokenizer(tmp_path / "mine")
    assert ours.end_of_text == 280
    export(tmp_path / "mine", tmp_path / "theirs", Format.huggingface)
    check_tokenizer(tmp_path / "theirs", ours, [TEXT, "a b"], 64)


def test_what_has_no_such_form_is_refused(tmp_path: Path) -> None:
    write_language_model(tmp_path / "mine")
    with pytest.raises(UserError, match=r"^format=ctranslate2: .* language model"):
        export(tmp_path / "mine", tmp_path / "theirs", Format.ctranslate2)
    write_language_model(tmp_path / "small", padding=-1)
    with pytest.raises(UserError, match="small: the tokenizer's largest id is "):
        export(tmp_path / "small", tmp_path / "theirs", Format.huggingface)
    assert not (tmp_path / "theirs").exists()


def test_an_lstm_is_loaded_and_has_no_such_form(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    config = RecurrentDecoderConfig(8, 1)
    model = RecurrentDecoder(config, load_text_tokenizer(tmp_path / "tokenizer").vocab_size)
    save_model(tmp_path / "mine", config, model.state_dict(), tmp_path / "tokenizer", {"task": "language_model"})
    loaded = load_language_model(tmp_path / "mine", torch.device("cpu")).model
    assert loaded.config == config and torch.equal(loaded.embedding.weight, model.embedding.weight)
    with pytest.raises(UserError, match="LSTM"):
        export(tmp_path / "mine", tmp_path / "theirs", Format.huggingface)
