"""Refuses files that are not text with a sentence a line, by their beginning."""

import json
import re
from itertools import islice
from pathlib import Path

from transloom.pipeline.data.lines import open_text, read_lines
from transloom.pipeline.errors import UserError

HEAD_BYTES = 1 << 20
LINES = 1000
LINE_BYTES = 4 << 20  # of the lines that are checked

# First bytes -> the file's format. A text in UTF-8 never begins with these bytes.
BINARY = {
    b"\x1f\x8b": "compressed by gzip",
    b"PK\x03\x04": "a zip archive (as .docx and .xlsx are, too)",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"BZh": "compressed by bzip2",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\x04\x22\x4d\x18": "compressed by lz4",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"PAR1\x15": "a parquet file",
    b"ARROW1\x00\x00": "an Arrow file",
    b"SQLite format 3\x00": "an SQLite database",
    b"%PDF-": "a PDF document",
    b"{\\rtf": "an RTF document",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Office document",
    b"\xff\xfe\x00\x00": "text in UTF-32",
    b"\x00\x00\xfe\xff": "text in UTF-32",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}
DATASET = "corpus.kind=dataset corpus.dataset={} 'corpus.data_files={{train: {}}}' corpus.train.split=train"
MARKUP = re.compile(
    rb"<(\?xml|!doctype|!--|tmx|html|xliff|srcset|refset|tstset|mteval|dataset|doc|corpus|body|ts|tbx)\b", re.I
)
TAG = re.compile(rb"<[?!/]?[A-Za-z]")


def refuse_binary(file: str | Path, head: bytes, is_compressed: bool = False) -> None:
    """
    Args:
        head: the first bytes of the file.
        is_compressed: whether the file may be gzip, by its name.
    Raises:
        UserError: by its beginning, the file is not text in UTF-8.
    """
    kind = next((kind for magic, kind in BINARY.items() if head.startswith(magic)), None)
    if kind == "compressed by bzip2" and head[4:10] != b"1AY&SY":
        kind = None
    if kind is None and head[257:262] == b"ustar":
        kind = "a tar archive"
    if kind is None and head.count(0) > len(head) // 10:
        kind = "binary, or text in UTF-16 or UTF-32"
    if kind is None or (is_compressed and "gzip" in kind):
        return
    if "gzip" in kind:
        remedy = f"Rename it to {Path(file).name}.gz" if Path(file).suffix != ".gz" else "Unpack it once"
    elif "UTF-" in kind:
        remedy = "Make it UTF-8: iconv -f UTF-16 -t UTF-8 (or UTF-32)"
    elif "parquet" in kind:
        remedy = f"Read it by its columns: {DATASET.format('parquet', file)}"
    elif "compressed" in kind or "archive" in kind:
        remedy = "Unpack it, or compress it by gzip (.gz) instead"
    else:
        remedy = "Export its text, a sentence a line"
    raise UserError(f"{file} is {kind}, not text in UTF-8. {remedy}.")


def refuse_lone_returns(file: str | Path, head: bytes) -> None:
    """
    Args:
        head: the first bytes of the text.
    Raises:
        UserError: most lines end in a carriage return without a line feed.
    """
    if head.count(b"\r") - head.count(b"\r\n") > head.count(b"\n"):
        raise UserError(
            f"{file}: its lines end in carriage returns alone, as of old on a Mac. Only a line feed ends a line: "
            f"tr '\\r' '\\n' < {Path(file).name} > mended"
        )


def refuse_other_formats(source: Path, target: Path, is_same_language: bool = False) -> None:
    """Checks the beginning of the two sides of a corpus.

    Raises:
        UserError: a side is not text with a sentence a line, or both sides have the same sentences.
    """
    source_lines, target_lines = _lines(source), _lines(target)
    if is_same_language:
        return
    pairs = [pair for pair in zip(source_lines, target_lines, strict=False) if all(pair)]
    equal = sum(one == other for one, other in pairs)
    if source.samefile(target) or 2 * equal > len(pairs):
        raise UserError(
            f"{source} and {target} are the same sentences ({equal:,} of the first {len(pairs):,} pairs): nothing is "
            "translated. Name the file of each language; where both sides are meant to be one language, set "
            "corpus.source_language and corpus.target_language to the same."
        )


def _lines(file: Path) -> list[bytes]:
    """The first lines of a file, without white space around them.

    Raises:
        UserError: the file is not text.
    """
    with open(file, "rb") as raw:
        refuse_binary(file, raw.read(HEAD_BYTES), is_compressed=file.suffix == ".gz")
    with open_text(file) as text:
        head = text.read(HEAD_BYTES)
    refuse_binary(file, head)
    refuse_lone_returns(file, head)
    lines, size = [], 0
    for line in islice(read_lines(file), LINES):
        lines.append(line.strip())
        size += len(line)
        if size > LINE_BYTES:
            break
    _refuse_structure(file, [line for line in lines if line])
    return lines


def _refuse_structure(file: Path, lines: list[bytes]) -> None:
    if not lines:
        return
    most = 0.5 * len(lines)
    tags = sum(TAG.match(line) is not None for line in lines)
    elements = sum(TAG.match(line) is not None and line.endswith(b">") for line in lines)
    if (MARKUP.match(lines[0]) and tags > 0.2 * len(lines)) or elements > 0.8 * len(lines):
        example = _shown(next(filter(TAG.match, lines)))
        raise UserError(
            f"{file} is markup (XML, TMX, HTML or SGML), as in {example}. Take the sentences out of it: two files of "
            "plain text, a sentence a line."
        )
    if _is_json(lines):
        raise UserError(
            f"{file} holds JSON: its first line is {_shown(lines[0])}. Read it by its columns: "
            f"{DATASET.format('json', file)} corpus.source_column= corpus.target_column="
        )
    if sum(b"\t" in line for line in lines) > most:
        raise UserError(
            f"{file} has tabs in most lines: a table, whose columns are no sentences. Cut its columns into files "
            f"(cut -f1), or, where its first line names them, read it by these names: {DATASET.format('tsv', file)} "
            "corpus.source_column= corpus.target_column="
        )


def _is_json(lines: list[bytes]) -> bool:
    if re.fullmatch(rb"[\[{]", lines[0]) and len(lines) > 1 and lines[1][:1] in (b'"', b"{", b"["):
        return True  # a single value over many lines
    if lines[0].startswith((b'[{"', b'{"')) and len(lines) == 1:
        return True  # a single line, whose end may not have been read
    return sum(map(_is_json_value, lines)) > 0.5 * len(lines)


def _is_json_value(line: bytes) -> bool:
    if line[:1] not in (b"{", b"["):
        return False
    try:
        value = json.loads(line.removesuffix(b","))
    except ValueError:
        return False
    return isinstance(value, dict) or len(value) > 1


def _shown(line: bytes) -> str:
    text = line[:60].decode(errors="replace")
    return repr(text + "…" if len(line) > 60 else text)
