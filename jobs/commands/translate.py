"""Translate: lines from a file or standard input, one translation a line to standard output."""

import sys

from transloom.jobs.cli import configuration, sort_words, usage
from transloom.jobs.runs.model import computing_device, find_model, tell_other_precision
from transloom.jobs.runs.workspace import output_dir
from transloom.jobs.terminal.printable import printable_word
from transloom.pipeline.data.lines import existing_file, read_lines, stream_lines
from transloom.pipeline.errors import UserError

LINES_AT_A_TIME = 2000  # so that the first translations of a long text do not wait for the last


def main(argv: list[str]) -> int:
    words, _, settings = sort_words(argv)
    config = configuration("translate", settings)
    if len(words) not in (1, 2):
        raise UserError(usage("translate"))
    folder = find_model(words[0], output_dir(config))

    from transloom.pipeline.generate.translator import Translator

    lines = read_lines(existing_file(words[1])) if len(words) == 2 else stream_lines(sys.stdin.buffer)
    device, dtype = computing_device()
    translator = Translator.load(folder, device, dtype)
    tell_other_precision(dtype, translator.about.get("precision"))
    to_terminal = sys.stdout.isatty()  # a file or a pipe gets the text as it is
    batch: list[str] = []
    translated = 0

    def flush() -> None:
        nonlocal translated
        for text in translator.translate(batch, config.decode, first_line=translated + 1):
            sys.stdout.buffer.write((printable_word(text) if to_terminal else text).encode() + b"\n")
        sys.stdout.buffer.flush()
        translated += len(batch)
        batch.clear()

    for number, line in enumerate(lines, start=1):
        try:
            batch.append(line.decode())
        except UnicodeDecodeError as error:
            flush()
            where = f"{words[1]}, line {number}" if len(words) == 2 else f"line {number}"
            raise UserError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}): convert it first") from None
        if len(batch) == LINES_AT_A_TIME:
            flush()
    flush()
    return 0
