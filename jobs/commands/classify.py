"""Classify: lines from a file or standard input, a label and its probability a line to standard output."""

import sys

from transloom.jobs.cli import configuration, sort_words, usage
from transloom.jobs.runs.model import computing_device, find_model, tell_other_precision
from transloom.jobs.runs.workspace import output_dir
from transloom.jobs.terminal.printable import printable_word
from transloom.pipeline.data.lines import existing_file, read_lines, stream_lines
from transloom.pipeline.errors import UserError

LINES_AT_A_TIME = 1000  # so that the first labels of a long text do not wait for the last
FORMATS = ("tsv", "jsonl")


def main(argv: list[str]) -> int:
    words, own, settings = sort_words(argv, ["format"])
    config = configuration("classify", settings)
    if len(words) not in (1, 2):
        raise UserError(usage("classify"))
    form = own.get("format", "tsv")
    if form not in FORMATS:
        raise UserError(f"format={form}: must be {' or '.join(FORMATS)}")
    folder = find_model(words[0], output_dir(config))

    from transloom.pipeline.data.json_lines import json_line
    from transloom.pipeline.evaluate.classifier import Classifier

    lines = read_lines(existing_file(words[1])) if len(words) == 2 else stream_lines(sys.stdin.buffer)
    device, dtype = computing_device()
    classifier = Classifier.load(folder, device, dtype)
    tell_other_precision(dtype, classifier.metadata.get("precision"))
    to_terminal = sys.stdout.isatty()  # a file or a pipe gets the text as it is
    batch: list[str] = []
    done = 0

    def flush() -> None:
        nonlocal done
        for probabilities in classifier.probabilities(batch, first_line=done + 1):
            label = max(probabilities, key=lambda name: probabilities[name])
            value = round(probabilities[label], 4)
            if form == "jsonl":
                each = {name: round(probability, 4) for name, probability in probabilities.items()}
                text = json_line({"label": label, "probability": value, "probabilities": each})
            else:
                text = f"{printable_word(label) if to_terminal else label}\t{value:.4f}\n"
            sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
        done += len(batch)
        batch.clear()

    for number, line in enumerate(lines, start=1):
        where = f"{words[1]}, line {number}" if len(words) == 2 else f"line {number}"
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            flush()
            raise UserError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}): convert it first") from None
        if not text.strip():
            flush()
            raise UserError(f"{where} is empty: a label needs a text. Remove the line")
        batch.append(text)
        if len(batch) == LINES_AT_A_TIME:
            flush()
    flush()
    return 0
