"""`transloom translate`: its words, what is written, files of tools, and pieces that go on after a kill."""

import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_translator import make_run, make_tokenizer

from transloom.jobs.commands.translate import _progress, main
from transloom.jobs.runs.language_model import output_file
from transloom.jobs.translate.pieces import translate_in_pieces
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.line_files import LineSettings, translate_lines
from transloom.pipeline.generate.translator import TranslateConfig, Translator

FAST = ("decode.beam=2", "decode.extra_tokens=3")
SEARCH = BeamConfig(beam=2, extra_tokens=3)
LINES = ["Der Hund Nummer 3", "", "Haus 7 Haus 8"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with the runs first and second, of one tokenizer."""
    root = tmp_path_factory.mktemp("outputs")
    tokenizer = make_tokenizer(root / "tokenizer")
    for seed, name in enumerate(("first", "second")):
        make_run(root, name, tokenizer, seed)
    return root


@pytest.fixture(scope="module")
def translator(root: Path) -> Translator:
    return Translator.load(root / "runs" / "first" / "model", torch.device("cpu"))


@pytest.fixture
def translate(root: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs the command on lines, and returns what it wrote."""

    def run(*words: str, lines: Iterable[str] = LINES, model: str = "first", name: str = "text") -> str:
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        output = tmp_path / "out"
        assert main([model, str(tmp_path / name), f"output={output}", f"output_dir={root}", *FAST, *words]) == 0
        return output.read_bytes().decode()

    return run


def test_a_line_has_a_line_and_json_lines_have_scores(translate: Callable[..., str], translator: Translator) -> None:
    texts = translator.translate(LINES, SEARCH)
    assert translate() == "".join(f"{text}\n" for text in texts)
    records = [json.loads(line) for line in translate("format=jsonl", "n_best=2", "align=true").split("\n")[:-1]]
    assert [record["line"] for record in records] == [1, 2, 3]
    assert [record["source"] for record in records] == LINES
    assert [record["hypotheses"][0]["text"] for record in records] == texts
    assert [len(record["hypotheses"]) for record in records] == [2, 1, 2]
    for record in records:
        assert record["normalization"] == "score = log_probability / ((5 + tokens) / 6)^0.6"
        for one in record["hypotheses"]:
            score = one["log_probability"] / ((5 + one["tokens"]) / 6) ** 0.6
            assert one["score"] == pytest.approx(score, abs=2e-4)
            assert all(link.count("-") == 1 for link in one["alignment"].split())


def test_an_ensemble_is_named_with_plus(translate: Callable[..., str], root: Path) -> None:
    models = [root / "runs" / name / "model" for name in ("first", "second")]
    expected = Translator.load(models, torch.device("cpu")).translate(LINES, SEARCH)
    assert translate(model="first+second") == "".join(f"{text}\n" for text in expected)


def test_a_column_of_a_table_by_number_and_by_name(translate: Callable[..., str], translator: Translator) -> None:
    rows = [f"{i}\t{line}\tHaus" for i, line in enumerate(LINES)]
    plain = translator.translations(LINES, SEARCH)
    assert translate("column=2", lines=rows) == "".join(
        f"{row}\t{best.text}\n" for row, (best,) in zip(rows, plain, strict=True)
    )
    forced = translator.translations(LINES, SEARCH, TranslateConfig(align=True), prefixes=["Haus"] * 3)
    expected = "".join(
        f"{row}\t{best.text}\t{' '.join(f'{i}-{j}' for i, j in best.alignment or [])}\n"
        for row, (best,) in zip(rows, forced, strict=True)
    )
    header = "id\ttext\tbegin"
    words = ("column=text", "prefix_column=begin", "align=true")
    assert translate(*words, lines=[header, *rows]) == f"{header}\ttranslation\talignment\n{expected}"


def test_a_short_row_is_filled_up_and_a_long_one_refused(translate: Callable[..., str]) -> None:
    rows = [f"id\t{LINES[0]}\tnote", f"id\t{LINES[0]}"]
    first, second = translate("column=2", lines=rows).split("\n")[:-1]
    assert first.split("\t")[:3] == rows[0].split("\t") and second.split("\t")[:3] == [*rows[1].split("\t"), ""]
    assert first.split("\t")[3:] == second.split("\t")[3:]
    with pytest.raises(UserError, match=r"text, line 3: has 4 columns, .* first line 3"):
        translate("column=text", lines=["id\ttext\tnote", *rows[:1], f"{rows[0]}\tmore"])
    many = translate("column=2", "format=jsonl", lines=[rows[1], rows[0]])
    assert [json.loads(line)["source"] for line in many.split("\n")[:-1]] == [LINES[0], LINES[0]]


def test_terms_and_samples(translate: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "terms").write_text("Hund\tHaus\n", encoding="utf-8")
    records = [json.loads(line) for line in translate(f"terms={tmp_path / 'terms'}", "format=jsonl").split("\n")[:-1]]
    assert "Haus" in records[0]["hypotheses"][0]["text"]
    assert [record["terms"] for record in records] == [["Haus"], [], []]
    drawn = translate("samples=2", "seed=3", "format=jsonl")
    assert drawn == translate("samples=2", "seed=3", "format=jsonl", "decode.batch_sentences=1")
    assert drawn != translate("samples=2", "seed=4", "format=jsonl")
    assert [len(json.loads(line)["hypotheses"]) for line in drawn.split("\n")[:-1]] == [2, 1, 2]


def test_a_file_of_a_translation_tool(
    translate: Callable[..., str], translator: Translator, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = "<trans-unit><source>Der <g>Hund</g></source>{}</trans-unit>"
    result = translate(lines=[f"<xliff>{unit.format('')}</xliff>"], name="a.xlf")
    assert result.startswith("<xliff><trans-unit><source>Der <g>Hund</g></source><target>")
    assert result.count("<g>") == 2 and "1 segments were translated" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^a\.xlf: "):
        translate("format=jsonl", lines=["<xliff/>"], name="a.xlf")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["n_best=2"], r"^n_best: .*format=jsonl"),
        (["n_best=5", "format=jsonl"], r"^n_best: .*decode\.beam=5"),
        (["samples=2"], r"^samples: .*format=jsonl"),
        (["samples=2", "n_best=2", "format=jsonl"], r"^n_best: "),
        (["temperature=-1"], r"^temperature: "),
        (["top_p=2"], r"^top_p: "),
        (["seed=1"], r"^seed: "),
        (["align=yes"], r"^align=yes: there is true, false"),
        (["split=always"], r"^split=always: there is long, sentences, never"),
        (["format=xml"], r"^format=xml: "),
        (["column=0"], r"^column: "),
        (["column=9"], r"text, line 1: has 1 columns, and column=9"),
        (["column=name"], r"^column: the table has no columns named 'name'"),
        (["prefix_column=2"], r"^prefix_column: "),
        (["column=1", "prefix_column=2", "prefix=a"], r"^prefix: "),
        (["terms=gone.tsv"], r"gone\.tsv"),
        (["workers=0"], r"^workers: "),
        ([f"prefix={'Hund ' * 50}"], r"text, line 1: prefix and terms have"),
    ],
)
def test_words_that_are_refused(translate: Callable[..., str], words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        translate(*words)


def test_sampled_terms_workers_without_a_file_and_an_output_that_is_the_input_are_refused(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "terms").write_text("Hund\tHaus\n", encoding="utf-8")
    (tmp_path / "text").write_bytes(b"Hund\n")
    text, where = str(tmp_path / "text"), f"output_dir={root}"
    with pytest.raises(UserError, match=r"^terms: "):
        main(["first", text, where, "temperature=1", f"terms={tmp_path / 'terms'}"])
    with pytest.raises(UserError, match=r"^workers: "):
        main(["first", where, "workers=2", "output=x"])
    with pytest.raises(UserError, match=r"^output: there is no folder .*/gone"):
        main(["first", text, where, f"output={tmp_path / 'gone' / 'out'}"])
    with pytest.raises(UserError, match=r"^output: is the file"):
        main(["first", text, where, f"output={text}"])
    with pytest.raises(UserError, match=r"^output: .*text exists"):
        main(["first", text, where, f"output={text}", "workers=2"])


def in_pieces(
    root: Path, target: Path, lines: list[bytes], map_tasks: Any, settings: LineSettings, source: str = "text"
) -> None:
    translate_in_pieces(
        [root / "runs" / "first" / "model"],
        lines,
        settings,
        target,
        map_tasks,
        source=source,
        digest="of the text",
        header=b"",
        first_line=1,
        total=len(lines),
        progress=lambda what, done, total: None,
        piece_lines=3,
    )


def test_pieces_give_the_same_bytes_after_a_kill_and_in_any_order(root: Path, tmp_path: Path) -> None:
    settings = LineSettings(SEARCH)
    lines = [f"Haus {i}".encode() for i in range(10)]
    in_pieces(root, tmp_path / "whole", lines, map, settings)
    whole = (tmp_path / "whole").read_bytes()
    assert whole.count(b"\n") == 10 and not (tmp_path / "whole.pieces").exists()

    done: list[int] = []

    def killed(function: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Any]:
        for piece in list(pieces)[2:0:-1]:  # the last comes first
            done.append(piece.first_line)
            yield function(piece)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_pieces(root, tmp_path / "out", lines, killed, settings)
    assert done == [7, 4] and not (tmp_path / "out").exists()

    def rest(function: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Any]:
        given = list(pieces)
        assert [piece.first_line for piece in given] == [1, 10], "the others are there"
        return map(function, reversed(given))

    with pytest.raises(UserError, match=r"^output: .*out\.pieces has the pieces of another translation"):
        in_pieces(root, tmp_path / "out", lines, map, replace(settings, prefix="Haus"))
    in_pieces(root, tmp_path / "out", lines, rest, settings)
    assert (tmp_path / "out").read_bytes() == whole
    assert not (tmp_path / "out.pieces").exists()


def test_a_line_that_is_no_text_is_refused_and_not_cut(translator: Translator) -> None:
    lines = [b"Haus", b"Haus " * 300_000]
    with pytest.raises(UserError, match=r"^text, line 8: has more than 1,048,576 bytes"):
        translate_lines(translator, lines, LineSettings(SEARCH), 7, "text", lambda done: None)


def test_a_piece_names_lines_of_the_whole_file(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [b"Haus"] * 4 + [b"\xff"]
    with pytest.raises(UserError, match=r"^text, line 5 is not UTF-8"):
        in_pieces(root, tmp_path / "out", lines, map, LineSettings(SEARCH))
    with caplog.at_level(logging.WARNING):
        lines[4] = b"Haus " * 60
        in_pieces(root, tmp_path / "out", lines, map, LineSettings(SEARCH))
    assert any(message.startswith("line 5 has ") for message in caplog.messages)


def test_progress_is_on_standard_error_where_that_is_a_terminal_and_the_output_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out, err = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    with _progress(tmp_path / "out", 1000) as done:
        done(200)
        done(50)
    assert "translating, lines: 200 of 1,000" in err.getvalue() and "250 of 1,000" in err.getvalue()
    err.truncate(0)
    with _progress(None, 1000) as done:  # the translations are on the terminal
        done(200)
    assert "translating" not in err.getvalue() + out.getvalue()


def test_output_is_the_file_that_a_link_leads_to_and_a_pipe_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    for name in ("real", "pipe"):
        (tmp_path / f"to_{name}").symlink_to(tmp_path / name)
    assert output_file("output", str(tmp_path / "to_real")) == (tmp_path / "real").resolve()
    assert output_file("output", str(tmp_path / "to_pipe")) == tmp_path / "to_pipe"
