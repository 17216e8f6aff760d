"""What comes from elsewhere can't steer a terminal, nor be taken for rich's markup; files and pipes get it as it is."""

import io
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

import transloom.jobs.__main__
import transloom.jobs.commands.translate
from transloom.jobs.runs.environment import log_safely
from transloom.jobs.terminal.console import SafeConsole, StatusLine, table
from transloom.jobs.terminal.printable import print_line, printable
from transloom.pipeline.errors import UserError

STEERING = {
    "colour": "a\x1b[31mb",
    "title": "a\x1b]0;owned\x07b",
    "clipboard": "a\x1b]52;c;Y2FuYXJ5\x07b",
    "C1": "a\x9b31mb",
    "carriage return": "good\rbad",
    "backspace": "bad\x08\x08\x08ok",
    "NUL": "a\x00b",
    "delete": "a\x7fb",
    "right to left": "a\u202eb",
    "isolate": "a\u2066b",
    "line separator": "a\u2028b",
    "tags": "a\U000e0041b",
}
UNSAFE = "".join(chr(i) for i in [*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x2066, 0x2028, 0xE0041])


def steers(text: str) -> bool:
    return any(character in UNSAFE for character in text)


@pytest.mark.parametrize("name", STEERING)
def test_a_steering_text_is_shown_as_its_escapes(name: str) -> None:
    text = STEERING[name]
    assert printable("Zoë sagt:\t„日本語“ 👍\n") == "Zoë sagt:\t„日本語“ 👍\n"
    escaped = printable(text)
    assert not steers(escaped) and "\\" in escaped
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=True, color_system=None, markup=False, highlight=False, width=300)
    console.print(text)
    console.print(text, soft_wrap=True)
    console.print(table(text, [text, "b"], [["c", text]]))
    grid = Table.grid()
    grid.add_row(text)
    console.print(grid)
    console.print(Text(text))
    assert not steers(out.getvalue())
    assert out.getvalue().count(escaped) >= 5


@pytest.mark.parametrize("text", ["[red]a[/red]", "[/]", "[/nothing]", "a [link=x]b", ":smile:", "[bold"])
def test_markup_in_a_text_is_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from transloom.jobs.terminal.console import console

    console.print(text)
    console.print(table(text, [text], [[text]]), style="bold")
    assert capsys.readouterr().out.count(text) == 4


def test_a_secret_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from transloom.jobs.terminal.console import console

    console.print("transloom train corpus.data_files.train=https://h/x?sig=canary")
    console.print(table("", ["where"], [["https://u:canary@h/x"]]))
    StatusLine().show("  fetching https://u:canary@h/x", now=True)
    told = capsys.readouterr().out
    assert "canary" not in told and told.count("***") == 3


def test_an_error_that_is_told_does_not_steer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> int:
        raise UserError("name: no such run: \x1b]52;c;YQ==\x07 [/red] \x1b[2J at http://u:canary@h")

    monkeypatch.setattr(transloom.jobs.commands.translate, "main", fail)
    assert transloom.jobs.__main__.main(["translate", "x"]) == 2
    told = capsys.readouterr().err
    assert told == "transloom: name: no such run: \\x1b]52;c;YQ==\\x07 [/red] \\x1b[2J at http://***@h\n"


def test_a_log_and_a_traceback_neither_steer_nor_tell(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    before = logging.getLogRecordFactory()
    try:
        log_safely()
        log_safely()
        logging.getLogger("x").warning("%s: %d rows of %s", "\x1b[2J", 3, "https://u:canary@h")
        assert caplog.messages == ["\\x1b[2J: 3 rows of https://***@h"]
        try:
            raise RuntimeError("https://h?token=canary \x1b[2J")
        except RuntimeError as error:
            logging.getLogger("x").exception("it ends")
            sys.excepthook(RuntimeError, error, error.__traceback__)
            threading.excepthook(threading.ExceptHookArgs((RuntimeError, error, error.__traceback__, None)))
    finally:
        logging.setLogRecordFactory(before)
    told = capsys.readouterr().err
    assert told.endswith("RuntimeError: https://h?token=*** \\x1b[2J\n")
    assert "canary" not in told + caplog.text and "Exception in thread" in told
    assert "RuntimeError: https://h?token=*** \\x1b[2J\n" in caplog.text


class _Stream(io.TextIOWrapper):
    is_terminal = False

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_translations_are_escaped_on_a_terminal_alone(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Translator:
        about: dict[str, Any] = {}  # noqa: RUF012

        @staticmethod
        def load(*_: Any) -> "Translator":
            return Translator()

        def translate(self, lines: list[str], *_: Any, **__: Any) -> list[str]:
            return lines

    import transloom.pipeline.generate.translator

    monkeypatch.setattr(transloom.pipeline.generate.translator, "Translator", Translator)
    monkeypatch.setattr(transloom.jobs.commands.translate, "find_model", lambda *_: tmp_path)
    (tmp_path / "text").write_bytes("a\x1b[31m\u202eb\r\n[/red]\n".encode())
    out = _Stream(io.BytesIO(), encoding="utf-8")
    out.is_terminal = is_terminal
    monkeypatch.setattr(sys, "stdout", out)
    assert (
        transloom.jobs.commands.translate.main([str(tmp_path), str(tmp_path / "text"), f"output_dir={tmp_path}"]) == 0
    )
    print_line("\x1b[36mworker\x1b[0m \x1b]0;x\x07")
    out.flush()
    written = out.buffer.getvalue().decode()  # type: ignore[attr-defined]
    if is_terminal:
        assert written == "a\\x1b[31m\\u202eb\n[/red]\nworker \\x1b]0;x\\x07\n"
    else:
        assert written == "a\x1b[31m\u202eb\n[/red]\n\x1b[36mworker\x1b[0m \x1b]0;x\x07\n"
