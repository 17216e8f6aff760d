"""Translate: lines from a file or standard input, a line of output each; tables, and files of translation tools."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from transloom.jobs.cli import configuration, sort_words, usage
from transloom.jobs.runs.language_model import output_file, terminal_progress
from transloom.jobs.runs.model import computing_device, find_model, tell_other_precision
from transloom.jobs.runs.workspace import output_dir
from transloom.jobs.terminal.printable import printable_word
from transloom.pipeline.data.lines import count_lines, existing_file, open_text, read_lines, stream_lines
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import atomic_write, sha256_file

if TYPE_CHECKING:
    from transloom.jobs.config.schema import Config
    from transloom.jobs.translate.settings import Words
    from transloom.pipeline.generate.line_files import LineSettings
    from transloom.pipeline.generate.translator import Translator

LINES_AT_A_TIME = 2000  # so that the first translations of a long text do not wait for the last


def main(argv: list[str]) -> int:
    from transloom.jobs.translate.settings import WORDS, is_markup, line_settings, parse_words

    arguments, own, settings = sort_words(argv, WORDS)
    config = configuration("translate", settings)
    if len(arguments) not in (1, 2):
        raise UserError(usage("translate"))
    words = parse_words(own)
    own_settings = line_settings(words, config.decode)
    source = existing_file(arguments[1]) if len(arguments) == 2 else None
    target = output_file("output", words.output) if words.output else None
    if words.workers is not None and (source is None or target is None or is_markup(source.name)):
        raise UserError("workers: shares out the lines of a file: transloom translate <run> <file> output=<file>")
    if words.workers is not None and target is not None and target.exists():
        raise UserError(f"output: {target} exists; remove it, or name another file")
    if target is not None and not target.absolute().parent.is_dir():
        raise UserError(f"output: there is no folder {target.absolute().parent}; make it first")
    if source is not None and target is not None and target.exists() and target.samefile(source):
        raise UserError("output: is the file that is translated; name another")
    models = [find_model(name, output_dir(config)) for name in _names(arguments[0])]
    if words.workers is not None and source is not None and target is not None:
        return _share_out(config, words, own_settings, models, source, target)

    from transloom.pipeline.generate.translator import Translator

    device, dtype = computing_device()
    translator = Translator.load(models[0] if len(models) == 1 else models, device, dtype)
    tell_other_precision(dtype, translator.about.get("precision"))
    if source is not None and is_markup(source.name):
        return _translate_markup(translator, words, own_settings, source, target)
    lines = read_lines(source) if source is not None else stream_lines(sys.stdin.buffer)
    name = arguments[1] if source is not None else ""
    own_settings, header, lines = _take_header(words, own_settings, lines, name)
    total = count_lines(source) - words.has_header if source is not None else 0
    with _output(target) as write, _progress(target, total) as done:
        write(header)
        _translate(translator, lines, own_settings, 1 + words.has_header, name, write, done)
    return 0


def _names(word: str) -> list[str]:
    """The models that the command's first word names: one, or those of an ensemble."""
    return [word] if os.path.exists(word) else [os.path.expanduser(name) for name in word.split("+")]


def _take_header(
    words: "Words", settings: "LineSettings", lines: Iterable[bytes], name: str
) -> "tuple[LineSettings, bytes, Iterable[bytes]]":
    """The settings, what the output begins with, and the lines to translate. A table's first line says how many columns
    it has; with named columns it is the header."""
    from transloom.pipeline.generate.line_files import Format, decoded, header_line, where, with_named_columns

    if settings.column is None and not words.has_header:
        return settings, b"", lines
    rest = iter(lines)
    first = next(rest, None)
    if first is None and words.has_header:
        raise UserError(f"column: {name or 'the table'} is empty, and has no columns' names")
    if first is None:
        return settings, b"", rest
    if settings.format is Format.text:
        settings = replace(settings, num_columns=1 + first.count(b"\t"))
    if not words.has_header:
        return settings, b"", chain([first], rest)
    header = decoded(first, where(name, 1))
    settings = with_named_columns(settings, header, words.column, words.prefix_column or None)
    return settings, header_line(header, settings).encode(), rest


def _translate(
    translator: "Translator",
    lines: Iterable[bytes],
    settings: "LineSettings",
    first_line: int,
    name: str,
    write: Callable[[bytes], object],
    done: Callable[[int], None],
) -> None:
    from transloom.pipeline.generate.line_files import translate_lines

    stream = iter(lines)
    while batch := list(islice(stream, LINES_AT_A_TIME)):
        valid = len(list(_until_invalid(batch)))
        # What comes before a line that is not UTF-8 is translated; the line's error comes then.
        for part in filter(None, (batch[:valid], batch[valid:])):
            write(translate_lines(translator, part, settings, first_line, name, done))
            first_line += len(part)


def _until_invalid(lines: Iterable[bytes]) -> Iterator[bytes]:
    for line in lines:
        try:
            line.decode()
        except UnicodeDecodeError:
            return
        yield line


@contextmanager
def _output(target: Path | None) -> Iterator[Callable[[bytes], object]]:
    """Writes to the file, which is whole or absent; without one to standard output, at once."""
    if target is not None:
        with atomic_write(target) as file:
            yield file.write
        return
    is_terminal = sys.stdout.isatty()  # a file or a pipe gets the text as it is

    def write(text: bytes) -> None:
        if is_terminal:
            text = b"".join(printable_word(line).encode() + b"\n" for line in text.decode().split("\n")[:-1])
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()

    yield write


@contextmanager
def _progress(target: Path | None, total: int) -> Iterator[Callable[[int], None]]:
    """Counts finished lines on standard error; not where the translations themselves are on the terminal."""
    count = 0
    if target is None and sys.stdout.isatty():
        yield lambda finished: None
        return
    with terminal_progress() as progress:

        def done(finished: int) -> None:
            nonlocal count
            count += finished
            # A line in parts counts as several.
            progress("translating, lines", min(count, total - 1) if total else count, total)

        yield done


def _share_out(
    config: "Config", words: "Words", settings: "LineSettings", models: list[Path], source: Path, target: Path
) -> int:
    from transloom.jobs.ray_cluster.session import map_over_cluster, ray_session
    from transloom.jobs.translate.pieces import translate_in_pieces

    settings, header, lines = _take_header(words, settings, read_lines(source), str(source))
    with ray_session(config.cluster), terminal_progress() as progress:
        translate_in_pieces(
            models,
            lines,
            settings,
            target,
            partial(map_over_cluster, num_gpus=config.cluster.gpus_per_worker, at_once=words.workers),
            source=str(source),
            digest=sha256_file(source),
            header=header,
            first_line=1 + words.has_header,
            total=count_lines(source) - words.has_header,
            progress=progress,
        )
    return 0


def _translate_markup(
    translator: "Translator", words: "Words", settings: "LineSettings", source: Path, target: Path | None
) -> int:
    """Fills in the targets of an XLIFF or TMX file."""
    from transloom.jobs.translate.settings import Switch
    from transloom.pipeline.data.translation_files import Links, translate_file
    from transloom.pipeline.generate.line_files import Format

    if words.column or words.format is not Format.text or words.align is not Switch.off or words.prefix:
        raise UserError(
            f"{source.name}: of an XLIFF or TMX file targets are filled in; leave column, format, align and prefix out"
        )
    config = replace(settings.config, align=True)  # for the places of inline tags

    with _output(target) as write, _progress(target, 0) as done:

        def translate(texts: list[str]) -> list[tuple[str, Links]]:
            found = translator.translations(texts, settings.search, config, terms=settings.terms, done=done)
            return [(best.text, best.alignment or []) for best, *_ in found]

        with open_text(source) as file:
            counts = translate_file(
                file,
                write,
                translate,
                source.name,
                words.source_language or translator.about.get("source_language"),
                words.target_language or translator.about.get("target_language"),
            )
    print(
        f"transloom: {counts.translated:,} segments were translated; {counts.kept:,} had a translation and kept it; "
        f"{counts.left_out:,} are not to be translated",
        file=sys.stderr,
    )
    return 0
