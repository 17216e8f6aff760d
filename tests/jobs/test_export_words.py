"""`transloom export`: its words, and what it says where they are wrong."""

from pathlib import Path

import pytest

from transloom.jobs.__main__ import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "folder"], "usage: transloom export <run or model folder> <output folder> format=ctranslate2"),
        (["model", "format=ctranslate2"], "usage: transloom export"),
        (["model", "folder", "format=onnx"], "format=onnx: there is ctranslate2, huggingface"),
        (["model", "folder", "format=ctranslate2", "quantization=int3"], "quantization=int3: there is float32, int8"),
        (["nowhere", "folder", "format=ctranslate2"], "there is no run 'nowhere'"),
        (["model", "folder", "format=ctranslate2", "fromat=x"], "fromat: no such setting"),
    ],
)
def test_wrong_words_are_answered(words: list[str], message: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
