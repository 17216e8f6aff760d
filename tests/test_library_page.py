"""The blocks of docs/library.md run, one after the other, as a notebook does."""

import re
from pathlib import Path
from typing import Any

import pytest
from tiny_translator import make_model, make_tokenizer

PAGE = Path(__file__).parents[1] / "docs" / "library.md"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    for seed, name in enumerate(("first", "second")):
        make_model(tmp_path / "outputs" / "runs" / name / "model", tokenizer, seed=seed)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 7
    notebook: dict[str, Any] = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), notebook)
    assert notebook["aligned"].alignment is not None
    assert notebook["both"].others and notebook["first"].text != notebook["second"].text
    assert "[1, 2] 40" in capsys.readouterr().out
