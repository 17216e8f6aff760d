"""`transloom generate`: what is written where, the same samples in every form, and what is refused."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_folder import write_language_model

import transloom.pipeline.generate.prompts
from transloom.jobs.__main__ import main
from transloom.model.build import build_model
from transloom.model.config import TransformerConfig
from transloom.model.packing import Layout
from transloom.pipeline.data.text_tokenizer import load_text_tokenizer
from transloom.pipeline.files import write_json
from transloom.pipeline.generate.responses import respond
from transloom.pipeline.model_folder import save_model

Generate = Callable[..., bytes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    write_language_model(folder)
    return folder


@pytest.fixture
def generate(folder: Path, tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch) -> Generate:
    """What the command writes to standard output."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> bytes:
        assert main(["generate", str(folder), *words]) == code, capfdbinary.readouterr().err
        return capfdbinary.readouterr().out

    return run


def make_terminal(monkeypatch: pytest.MonkeyPatch, *streams: str) -> None:
    for name in streams:
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda: True)


def samples_of(output: bytes) -> list[list[dict[str, Any]]]:
    """Of each prompt; log-probabilities rounded, for products are other ones in another batch."""
    samples = [json.loads(line)["samples"] for line in output.splitlines()]
    return [[{**one, "log_probability": round(one["log_probability"], 3)} for one in some] for some in samples]


def test_one_sample_is_the_greedy_continuation_of_the_model(folder: Path, generate: Generate) -> None:
    model = write_language_model(folder.parent / "again")
    tokenizer = load_text_tokenizer(folder)
    ids = tokenizer.encode(["To be"])[0].tolist()
    expected: list[int] = []
    with torch.inference_mode():
        for _ in range(9):
            tokens = torch.tensor(ids + expected)
            hidden = model(tokens, Layout.of(torch.tensor([len(tokens)])))
            logits = model.logits(hidden[-1:])[0]
            assert int(logits.argmax()) >= tokenizer.vocab_size  # an id that the tokenizer does not know
            expected.append(int(logits[: tokenizer.vocab_size].argmax()))
    assert generate("To be", "temperature=0", "max_new_tokens=9") == tokenizer.decode(expected).encode() + b"\n"
    (((sample,),)) = samples_of(generate("To be", "", "temperature=0", "max_new_tokens=9"))[:1]
    assert sample["tokens"] == expected and sample["reason"] == "length"


def test_an_encoder_decoder_responds_as_in_its_evaluation(
    folder: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    tokenizer = load_text_tokenizer(folder)
    torch.manual_seed(0)
    config = TransformerConfig(d_model=16, d_ff=32, num_heads=2, encoder_layers=1, decoder_layers=1, max_positions=12)
    model = build_model(config, tokenizer.vocab_size).eval()
    weights = {name: 4 * value for name, value in model.state_dict().items()}  # not the same token again and again
    model.load_state_dict(weights)
    about = {"task": "prompt_response", "template": "{text}\n", "max_response_tokens": 9}
    save_model(tmp_path / "pairs", config, weights, folder, about)
    texts = ["To be", "or not"]
    prompts = [np.concatenate(tokenizer.encode([text, "\n"])) for text in texts]
    expected = respond(model, tokenizer, prompts, 9)
    assert len(set(expected)) == 2
    words = ("generate", str(tmp_path / "pairs"))
    assert main([*words, *texts]) == 0
    assert [sample["text"] for (sample,) in samples_of(capfdbinary.readouterr().out)] == expected
    assert main([*words, texts[0]]) == 0  # streamed
    assert capfdbinary.readouterr().out == f"{expected[0]}\n".encode()
    drawn = [*words, *texts, "temperature=1", "samples=3", "seed=1", "max_new_tokens=20"]
    assert main(drawn) == 0
    samples = samples_of(capfdbinary.readouterr().out)
    assert main([*drawn, "batch_size=1"]) == 0 and samples_of(capfdbinary.readouterr().out) == samples
    # All of the model's positions are the response's own.
    assert max(len(sample["tokens"]) for some in samples for sample in some) == 12
    assert {sample["reason"] for some in samples for sample in some} <= {"context", "end"}
    assert main([*words, "To be " * 9]) == 2 and b"the model's context is 12" in capfdbinary.readouterr().err
    (tmp_path / "text").write_text("To be")
    assert main(["score", str(tmp_path / "pairs"), str(tmp_path / "text")]) == 2
    assert b"which only responds" in capfdbinary.readouterr().err


def test_the_seed_alone_says_what_is_sampled(generate: Generate, tmp_path: Path) -> None:
    """Streamed or not, whatever is made beside it, from words or a file, to standard output or a file."""
    words = ("temperature=0.8", "top_p=0.9", "top_k=200", "max_new_tokens=12")
    streamed = generate("To be", *words, "seed=4")
    together = samples_of(generate("To be", "or", *words, "seed=4", "samples=3"))
    assert len(together) == 2 and all(len(samples) == 3 for samples in together)
    assert len({sample["text"] for samples in together for sample in samples}) == 6
    assert streamed == f"{together[0][0]['text']}\n".encode()
    assert samples_of(generate("To be", "or", *words, "seed=4", "samples=3", "batch_size=1")) == together
    assert samples_of(generate("To be", "or", *words, "seed=5", "samples=3")) != together
    Path("prompts.jsonl").write_text('{"prompt": "To be", "id": "a"}\n{"prompt": "or"}\n')
    assert generate("prompts=prompts.jsonl", *words, "seed=4", "samples=3", "to=new/out.jsonl") == b""
    written = (tmp_path / "new" / "out.jsonl").read_bytes()
    assert samples_of(written) == together
    assert [json.loads(line).get("id") for line in written.splitlines()] == ["a", None]


def test_without_a_prompt_a_text_begins(generate: Generate) -> None:
    assert generate("max_new_tokens=5") == generate("", "max_new_tokens=5") != generate("To", "max_new_tokens=5")


@pytest.mark.parametrize("stop", ['stop=["e", "a"]', "stop=e", 'stop="\\u0065"'])
def test_a_sample_ends_before_a_stop_string(stop: str, generate: Generate) -> None:
    words = ("To be", "samples=40", "max_new_tokens=50")
    (whole,), (stopped,) = samples_of(generate(*words)), samples_of(generate(*words, stop))
    ends = "[ea]" if "a" in stop else "e"
    assert [sample["text"] for sample in stopped] == [re.split(ends, sample["text"])[0] for sample in whole]
    assert "stop" in {sample["reason"] for sample in stopped}


def test_a_prompt_is_any_text(generate: Generate) -> None:
    """A tilde is not the home folder, and a sentence with an equals sign is no setting."""
    Path("p.jsonl").write_text('{"prompt": "~"}\n{"prompt": "f(x=1) = "}\n')
    from_file = samples_of(generate("prompts=p.jsonl", "max_new_tokens=4"))
    assert samples_of(generate("~", "f(x=1) = ", "max_new_tokens=4")) == from_file


def test_a_terminal_has_the_prompt_before_the_text_and_nothing_that_steers_it(
    generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = generate("\x1b[31mTo", "max_new_tokens=6").decode()
    make_terminal(monkeypatch, "stdout")
    shown = generate("\x1b[31mTo", "max_new_tokens=6").decode()
    assert shown.startswith("\\x1b[31mTo") and "\x1b" not in shown
    blocks = generate("To", "samples=2", "max_new_tokens=6").decode()
    assert (
        blocks.count("\n── prompt 1, sample ") == 2 and "── prompt 1, sample 2 of 2 (max_new_tokens) ──\nTo" in blocks
    )
    assert piped.endswith("\n") and not piped.startswith("\x1b")


def test_standard_error_has_progress_and_what_is_next_on_a_terminal_alone(
    folder: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["generate", str(folder), "To", "or", "max_new_tokens=3", "samples=2", "batch_size=1", "to=out.jsonl"]
    assert main(words) == 0
    assert capfd.readouterr().err == ""
    make_terminal(monkeypatch, "stderr")
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert "3 of 4" in err and f"transloom score {folder}" in err and out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["To", "temperature=hot"], "temperature: "),
        (["To", "temperature=nan"], "temperature: "),
        (["To", "top_p=0"], "top_p: "),
        (["To", "samples=1.5"], "samples: "),
        (["To", "seed=-1"], "seed: "),
        (["To", "stop="], "stop: "),
        (["To", 'stop=["a"'], "stop: "),
        (["To", "stop=[1]"], "stop: "),
        (["To", "stop=\\n"], "stop: "),
        (["To", 'stop="\\ud800"'], "stop: "),
        (["To", "temprature=1"], "Did you mean temperature?"),
        (["To", "prompts=p.txt"], "prompts: "),
        (["To", "to=."], "to=.: "),
        (["\udcff"], "prompt 1: is not UTF-8"),
        (["ab " * 40], "prompt 1: "),
        (["prompts=long.txt"], "long.txt, line 2: "),
        (["prompts=bad.txt"], "bad.txt, line 2: "),
        (["prompts=empty.txt"], "empty.txt has no prompts"),
        (["prompts=none.txt"], "no such file: none.txt"),
    ],
)
def test_what_is_wrong_is_named(
    words: list[str], message: str, folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("To\n")
    Path("long.txt").write_text("To\n" + "ab " * 40)
    Path("bad.txt").write_bytes(b"To\n\xff\n")
    Path("empty.txt").touch()
    assert main(["generate", str(folder), *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("transloom: ") and message in err and err.count("\n") == 1
    assert out == ""


def test_what_is_no_language_model_is_refused(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate"]) == 2
    assert "usage: transloom generate" in capsys.readouterr().err
    assert main(["generate", "nowhere", "To"]) == 2
    assert "there is no run 'nowhere'" in capsys.readouterr().err
    (tmp_path / "translator").mkdir()
    write_json(tmp_path / "translator" / "config.json", {"architecture": "lstm", "model": {}, "sha256": {}})
    assert main(["generate", "translator", "To"]) == 2
    assert "transloom translate translator" in capsys.readouterr().err
    write_language_model(tmp_path / "small", padding=-1)
    assert main(["generate", "small", "To"]) == 2
    assert "small: the tokenizer's largest id is " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["To"], ["To", "to=out.jsonl"]])
def test_ctrl_c_ends_quietly(words: list[str], folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transloom.pipeline.generate.prompts, "sample", interrupt)
    assert main(["generate", str(folder), *words]) == 130
    err = capsys.readouterr().err
    assert "checkpoint" not in err and "Traceback" not in err and len(err.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []
