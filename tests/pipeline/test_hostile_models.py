"""A model folder from elsewhere, whatever is in it: refused by name, at once, without its size's memory, running
nothing."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import transloom.pipeline.untrusted
from transloom.model.config import Activation, TransformerConfig
from transloom.model.transformer import Transformer
from transloom.pipeline.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import sha256_file
from transloom.pipeline.generate.translator import Translator
from transloom.pipeline.model_folder import count_saved, save_model

CONFIG = TransformerConfig(d_model=16, d_ff=32, num_heads=2, encoder_layers=1, decoder_layers=1, max_positions=40)
CPU = torch.device("cpu")
W, C, T, E = "model.safetensors", "config.json", "tokenizer.model", "embedding.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    text = root / "text"
    text.write_bytes("".join(f"Der Hund Nummer {i} läuft zum Haus {i * 7}.\n" for i in range(200)).encode())
    train_tokenizer([text], TokenizerConfig(vocab_size=300), root)
    model = Transformer(CONFIG, Tokenizer.load(root).vocab_size)
    save_model(root / "model", CONFIG, model.state_dict(), root, {"steps": [1]})
    return root / "model"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def seal(folder: Path, **changes: Any) -> None:
    """Writes a config.json that fits the files as they are now."""
    about = json.loads((folder / C).read_bytes()) | changes
    about["sha256"] = {name: sha256_file(folder / name) for name in (W, T) if (folder / name).is_file()}
    (folder / C).write_text(json.dumps(about))


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        tensors = load_file(folder / W)
        change(tensors)
        save_file(tensors, folder / W)

    return do


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return do


def headed(header: Any, length: int | None = None) -> Callable[[Path], None]:
    """A safetensors file of that head, which says that it has `length` bytes."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return replaced(W, struct.pack("<Q", len(data) if length is None else length) + data + bytes(64))


def shaped(**changes: Any) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        about = json.loads((folder / C).read_bytes())
        (folder / C).write_text(json.dumps(about | {"model": about["model"] | changes}))

    return do


def described(**changes: Any) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / C).write_text(json.dumps(json.loads((folder / C).read_bytes()) | changes))

    return do


def instead(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return do


def linked(name: str) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return do


def gigantic(folder: Path) -> None:
    """A file of 4 TiB, nearly all of it a hole, and a configuration to fit."""
    shape = [2**25, 2**15]
    head = json.dumps({"embedding.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 2**42]}}).encode()
    with open(folder / W, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + 2**42)


class Payload:
    def __reduce__(self) -> Any:
        return (os.mkdir, (os.environ["CANARY_FOLDER"],))


def pickled(folder: Path) -> None:
    (folder / W).write_bytes(pickle.dumps(Payload()))


ONE = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
VARIANTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no weights": (W, lambda folder: (folder / W).unlink()),
    "no tokenizer": (T, lambda folder: (folder / T).unlink()),
    "empty weights": (W, replaced(W, b"")),
    "three bytes of weights": (W, replaced(W, b"abc")),
    "truncated weights": (W, lambda folder: os.truncate(folder / W, 5000)),
    "a header of 2**63 bytes": (W, headed({}, 2**63)),
    "a header longer than the file": (W, headed({}, 2**40)),
    "a header that is no JSON": (W, headed(b"[[[")),
    "a deeply nested header": (W, headed(b"[" * 100_000)),
    "overlapping tensors": (W, headed({"a": ONE, "b": ONE})),
    "a tensor beyond the end": (W, headed({"a": {**ONE, "data_offsets": [0, 2**50]}})),
    "negative offsets": (W, headed({"a": {**ONE, "data_offsets": [-16, 0]}})),
    "a shape that overflows": (W, headed({"a": {**ONE, "shape": [2**40, 2**40]}})),
    "a dtype that there is not": (W, headed({"a": {**ONE, "dtype": "pickle"}})),
    "4 TiB": (W, gigantic),
    "whole numbers": (W, weights(lambda all: all.update({"embedding.weight": all["embedding.weight"].long()}))),
    "a shape that is turned": (
        W,
        weights(lambda all: all.update({E: all[E].T.contiguous()})),
    ),
    "another shape": (W, weights(lambda all: all.update({"embedding.weight": torch.zeros(3, 3)}))),
    "a tensor missing": (W, weights(lambda all: all.pop("embedding.weight"))),
    "a tensor of another name": (W, weights(lambda all: all.update(other=all.pop("embedding.weight")))),
    "a tensor too many": (W, weights(lambda all: all.update({"\x1b[31mmore": torch.zeros(1)}))),
    "not a number": (W, weights(lambda all: all["embedding.weight"].fill_(float("nan")))),
    "one of many is not a number": (W, weights(lambda all: all["embedding.weight"][7].fill_(float("nan")))),
    "infinite": (W, weights(lambda all: all["embedding.weight"][7, :1].fill_(float("-inf")))),
    "a pickle for weights": (W, pickled),
    "a folder for weights": (W, instead(W, Path.mkdir)),
    "a pipe for weights": (W, instead(W, os.mkfifo)),
    "a pipe for the tokenizer": (T, instead(T, os.mkfifo)),
    "a link out of the folder": (W, linked(W)),
    "a tokenizer that is a link": (T, linked(T)),
    "a device": (T, instead(T, lambda file: file.symlink_to("/dev/zero"))),
    "a tokenizer of nothing": (T, replaced(T, b"")),
    "a tokenizer of garbage": (T, replaced(T, bytes(range(256)) * 20)),
}
UNSEALED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "empty": (C, replaced(C, b"")),
    "YAML": (C, replaced(C, b"architecture: transformer\nmodel: {}\n")),
    "not UTF-8": (C, replaced(C, b'{"model": "\xff"}')),
    "a list": (C, replaced(C, b"[]")),
    "null": (C, replaced(C, b"null")),
    "deep nesting": (C, replaced(C, b"[" * 1_000_000)),
    "too large": (C, replaced(C, b" " * (2**25))),
    "a number of a million digits": (C, replaced(C, b'{"model": ' + b"1" * 1_000_000 + b"}")),
    "a key twice": (C, replaced(C, b'{"model": {}, "model": {"d_model": 16}, "sha256": {}}')),
    "NaN": (C, shaped(dropout=float("nan"))),
    "a text for a number": (C, shaped(d_model="16")),
    "true for a number": (C, shaped(encoder_layers=True)),
    "a list for a number": (C, shaped(num_heads=[2])),
    "half a layer": (C, shaped(decoder_layers=1.5)),
    "none": (C, shaped(d_ff=None)),
    "negative": (C, shaped(d_ff=-32)),
    "layers without end": ("config.json", shaped(encoder_layers=2_000_000_000)),
    "a number too large": (C, shaped(d_ff=10**18)),
    "positions without end": (C, shaped(max_positions=2_000_000_000)),
    "features without end": (C, shaped(random_features=2_000_000_000, attention="linear", feature_map="favor")),
    "wide": (C, shaped(d_ff=2_000_000_000)),
    "a setting of tomorrow": (C, shaped(experts=8)),
    "another norm": (C, shaped(norm="batch")),
    "a norm in a list": (C, shaped(norm=["pre"])),
    "an unknown architecture": (C, described(architecture="__import__('os')")),
    "an architecture in a list": (C, described(architecture=["lstm"])),
    "another architecture": (C, described(architecture="lstm", model={"d_model": 16})),
    "an unknown precision": (C, described(precision="int4")),
    "a precision in a list": (C, described(precision=[])),
    "steps of text": (C, described(steps=["\x1b[31m"])),
    "steps in a number": (C, described(steps=5)),
    "a language in a list": (C, described(source_language=["de"])),
    "hashes in a list": (C, described(sha256=["a"])),
    "no hashes": (C, described(sha256={})),
    "a model in a list": (C, described(model=[])),
    "a path for a hash": (C, described(sha256={"../../etc/passwd": "a"})),
    "a folder": (C, instead(C, Path.mkdir)),
    "a pipe": (C, instead(C, os.mkfifo)),
    "a link to a device": (C, instead(C, lambda file: file.symlink_to("/dev/zero"))),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("variant", [*VARIANTS, *UNSEALED])
def test_a_hostile_folder_is_refused(
    folder: Path, variant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CANARY_FOLDER", str(tmp_path / "canary"))
    named, change = (VARIANTS | UNSEALED)[variant]
    is_sealed = variant in VARIANTS and variant not in ("4 TiB", "a device")
    change(folder)
    if is_sealed:
        seal(folder)
    with pytest.raises(UserError, match=named.replace(".", r"\.")) as refused:
        Translator.load(folder, CPU)
    assert str(folder) in str(refused.value) and len(str(refused.value)) < 1000
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("activation", [Activation.relu, Activation.swiglu])
def test_a_model_with_few_heads_of_keys_is_whole(folder: Path, activation: Activation, tmp_path: Path) -> None:
    config = replace(CONFIG, num_heads=8, d_k=4, key_value_heads=1, activation=activation, bias=False)
    model = Transformer(config, Tokenizer.load(folder).vocab_size)
    save_model(tmp_path / "few", config, model.state_dict(), folder, {"steps": [1]})
    assert Translator.load(tmp_path / "few", CPU).model.config == config


def test_a_link_to_a_folder_and_one_within_it_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / W).rename(folder / "weights")
    (folder / W).symlink_to("weights")
    (tmp_path / "link").symlink_to(folder)
    assert Translator.load(tmp_path / "link", CPU).about["steps"] == [1]


def test_a_pickle_beside_the_weights_is_not_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_FOLDER", str(folder / "canary"))
    for name in ("pytorch_model.bin", "model.pt", "optimizer.pkl"):
        (folder / name).write_bytes(pickle.dumps(Payload()))
    assert Translator.load(folder, CPU).about["steps"] == [1]
    assert not (folder / "canary").exists()


def test_a_tokenizer_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes("".join(f"Der Hund {i} heult.\n" for i in range(200)).encode())
    train_tokenizer([text], TokenizerConfig(vocab_size=290), folder)
    seal(folder)
    with pytest.raises(UserError, match=r"embedding\.weight' has the shape"):
        Translator.load(folder, CPU)


def test_what_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(transloom.pipeline.untrusted.os, "open", refuse)
    with pytest.raises(UserError, match=r"config\.json can't be read: Permission denied"):
        Translator.load(folder, CPU)


def test_the_numbers_of_a_damaged_file_are_not_counted(folder: Path) -> None:
    headed({}, 2**63)(folder)
    with pytest.raises(UserError, match=W):
        count_saved(folder)
