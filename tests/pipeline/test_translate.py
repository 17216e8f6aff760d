"""A model folder: what is written is what is read; damage is refused; translations don't depend on the batch."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file

from transloom.model.build import build_model
from transloom.model.config import Norm, RecurrentConfig, TransformerConfig
from transloom.model.flops import count_parameters
from transloom.model.transformer import Transformer
from transloom.pipeline.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.translator import Translator
from transloom.pipeline.model_folder import count_saved, save_model
from transloom.pipeline.progress import MapTasks
from transloom.pipeline.tasks.translation import translate_in_tasks

CONFIG = TransformerConfig(
    d_model=16, d_ff=32, num_heads=2, encoder_layers=1, decoder_layers=1, norm=Norm.pre, max_positions=40
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    text = root / "text"
    text.write_bytes("".join(f"Der Hund Nummer {i} läuft zum Haus {i * 7}.\n" for i in range(200)).encode())
    train_tokenizer([text], TokenizerConfig(vocab_size=300), root)
    torch.manual_seed(0)
    model = Transformer(CONFIG, Tokenizer.load(root).vocab_size)
    save_model(root / "model", CONFIG, model.state_dict(), root, {"steps": [1, 2], "target_language": "de"})
    return root / "model"


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    translator = Translator.load(folder, CPU)
    assert translator.model.config == CONFIG
    assert translator.about["steps"] == [1, 2]
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, translator.model.state_dict()[name])
    assert not translator.model.training
    assert count_saved(folder) == count_parameters(CONFIG, translator.tokenizer.vocab_size)


def test_one_translation_a_line_whatever_the_batches(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    translator = Translator.load(folder, CPU)
    text = ["Der Hund Nummer 3", "", "läuft", "Haus 7 Haus 8 Haus 9", "   ", "x" * 200]
    together = translator.translate(text, BeamConfig(beam=3, extra_tokens=5))
    assert len(together) == len(text)
    assert caplog.records[0].message.startswith("line 6 has ")
    assert together[1] == together[4] == ""
    one_by_one = [
        translator.translate([line], BeamConfig(beam=3, extra_tokens=5, batch_sentences=1))[0] for line in text
    ]
    assert together == one_by_one
    assert not any("\n" in line for line in together)


@pytest.mark.parametrize(("lines", "shares"), [(1, [1]), (32, [32]), (33, [17, 16]), (1001, [334, 334, 333])])
def test_few_lines_are_one_task_and_many_are_shared_out(lines: int, shares: list[int]) -> None:
    given: list[int] = []

    def shout(_: object, tasks: list[tuple[str, list[str], BeamConfig]]) -> list[list[str]]:
        given.extend(len(task[1]) for task in tasks)
        return [[line.upper() for line in task[1]] for task in tasks]

    texts = [f"line {i}" for i in range(lines)]
    found = translate_in_tasks(Path("model"), texts, BeamConfig(), cast(MapTasks, shout), lambda done: None)
    assert found == [text.upper() for text in texts] and given == shares


def test_a_recurrent_model_is_stored_and_translates_lines_of_any_length(folder: Path, tmp_path: Path) -> None:
    shape = RecurrentConfig(d_model=16, encoder_layers=1, decoder_layers=2)
    torch.manual_seed(0)
    model = build_model(shape, Tokenizer.load(folder).vocab_size)
    save_model(tmp_path, shape, model.state_dict(), folder, {})
    translator = Translator.load(tmp_path, CPU)
    assert translator.model.config == shape
    text = ["Der Hund Nummer 3", "", "läuft", "x" * 2000]
    beam = BeamConfig(beam=3, extra_tokens=5)
    together = translator.translate(text, beam)
    assert together[1] == "" and together[3]
    assert together == [translator.translate([line], dataclasses.replace(beam, batch_sentences=1))[0] for line in text]


def test_a_folder_of_before_there_were_architectures_is_a_transformers(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    about = json.loads((folder / "config.json").read_bytes())
    assert about.pop("architecture") == "transformer"
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert Translator.load(tmp_path, CPU).model.config == CONFIG
    (tmp_path / "config.json").write_text(json.dumps({**about, "architecture": "rnn"}))
    with pytest.raises(UserError, match="'rnn' is none of transformer, lstm"):
        Translator.load(tmp_path, CPU)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model"])
def test_a_flipped_byte_is_found(folder: Path, tmp_path: Path, name: str) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        Translator.load(tmp_path, CPU)


def test_a_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it has no config"):
        Translator.load(tmp_path, CPU)
    (tmp_path / "config.json").write_text(json.dumps({"model": {"d_model": "wide"}}))
    with pytest.raises(UserError, match="does not describe a model"):
        Translator.load(tmp_path, CPU)
