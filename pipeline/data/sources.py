"""A source of pairs: files of one kind, or a data set. Every kind of corpus reads its pairs through this module."""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from transloom.pipeline.data.document_files import matching_files, parquet_rows
from transloom.pipeline.data.formats import refuse_binary, refuse_lone_returns, refuse_other_formats
from transloom.pipeline.data.hub import cell, load_rows
from transloom.pipeline.data.json_lines import read_json_lines
from transloom.pipeline.data.lines import count_lines, existing_file, open_text, read_lines, unpacked_name
from transloom.pipeline.data.tables import table_rows
from transloom.pipeline.data.xml_bitext import xml_rows
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import absolute_path, hash_of, sha256_file
from transloom.pipeline.progress import Progress, no_progress
from transloom.pipeline.storage.files import GLOB, fetch_file, is_url, matching_urls

# The format of a file by its ending, before .gz, .xz or .zst.
FORMATS = {
    ".tmx": "tmx",
    ".xlf": "xliff",
    ".xliff": "xliff",
    ".po": "po",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".csv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}


class Row(NamedTuple):
    """A pair as read.

    Attributes:
        place: for messages: "file line 7".
        lacks: why a unit of a translation memory is no pair, in words; None: it is one.
    """

    place: str
    source: bytes
    target: bytes
    lacks: str | None = None


@dataclass(frozen=True)
class SourceConfig:
    """A source of pairs.

    Attributes:
        name: for counts. licence: a note for people, kept with the counts.
        weight: how often an epoch draws each of its pairs; see `mix.py`.
        source, target: two text files of equally many lines, or patterns of as many files on either side, which belong
            together in the order of their names.
        files: a pattern of files, or a list of these: TMX, XLIFF, PO, TSV, CSV, JSON lines or parquet.
        format: of `files` whose names do not end in it; one of tmx, xliff, po, tsv, csv, json, parquet.
        source_column, target_column: names, dotted paths into nested ones, or, of TSV without a header, numbers from 1.
            None: 1 and 2 of TSV, else the languages.
        source_language, target_language: None: the corpus's.
        dataset, dataset_config, revision, split: of a data set on the hub, which is streamed.
        data_files: of `dataset`, such as json, by split.

    Raises:
        ValueError: there is no such combination, naming the field.
    """

    name: str = ""
    licence: str | None = None
    weight: float = 1.0
    source: str | None = None
    target: str | None = None
    files: Any = None
    format: str | None = None
    source_column: Any = None
    target_column: Any = None
    source_language: str | None = None
    target_language: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    revision: str | None = None
    split: str | None = None
    data_files: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.weight, int | float) or isinstance(self.weight, bool) or not 0 <= self.weight < 1e6:
            raise ValueError(f"weight: must be a number from 0, not {self.weight!r}")
        if (self.source is None) != (self.target is None):
            raise ValueError("source: source and target go together, and one of them is missing")
        given = [name for name in ("source", "files", "dataset") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"source: must be one of source and target, files, or dataset; here {' and '.join(given) or 'none'}"
            )
        if self.dataset is not None and self.split is None:
            raise ValueError("split: the split of the data set is missing, such as train")
        if not all(isinstance(pattern, str) and pattern for pattern in self.patterns):
            raise ValueError(f"files: must be a pattern of files or a list of these, not {self.files!r}")
        if self.format is not None and self.format not in FORMATS.values():
            raise ValueError(f"format: {self.format!r} is none of {', '.join(dict.fromkeys(FORMATS.values()))}")
        for name in ("source_column", "target_column"):
            column = getattr(self, name)
            if column is not None and (isinstance(column, bool) or not isinstance(column, str | int)):
                raise ValueError(f"{name}: must be a name or a number, not {column!r}")
            if isinstance(column, int) and column < 1:
                raise ValueError(f"{name}: columns are counted from 1, so it can't be {column}")
        if isinstance(self.source_column, int) != isinstance(self.target_column, int):
            raise ValueError("target_column: both columns are names, or both are numbers")

    @property
    def patterns(self) -> list[str]:
        """The patterns of `files`."""
        if self.files is None:
            return []
        return list(self.files) if isinstance(self.files, list | tuple) else [self.files]

    def map_paths(self, change: Callable[[str, str], Any]) -> "SourceConfig":
        """The source with other paths.

        Args:
            change: (field, path) to the new path or, of a pattern, paths.
        """
        if self.source is not None and self.target is not None:
            sides = {name: change(name, getattr(self, name)) for name in ("source", "target")}
            return replace(self, **sides)
        if self.files is None:
            return self
        changed = [change("files", pattern) for pattern in self.patterns]
        return replace(self, files=[path for part in changed for path in ([part] if isinstance(part, str) else part)])


def parse_sources(value: Any) -> tuple[SourceConfig, ...]:
    """The sources of a split's setting `sources`, a list of mappings.

    Raises:
        ValueError: an entry can't be read, naming its field: "sources[1].weight: …".
    """
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise ValueError(f"sources: must be a list of sources, [{{name: …, …}}], not {value!r}")
    known = [entry.name for entry in fields(SourceConfig)]
    sources: list[SourceConfig] = []
    for place, entry in enumerate(value):
        key = f"sources[{place}]"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{key}: must be a source, {{name: …, …}}, not {entry!r}")
        if unknown := [name for name in entry if name not in known]:
            raise ValueError(f"{key}.{unknown[0]}: no such setting of a source; there is {', '.join(known)}")
        if wrong := [name for name in entry if name in _TEXTS and not isinstance(entry[name], str | None)]:
            raise ValueError(f"{key}.{wrong[0]}: must be a text, not {entry[wrong[0]]!r}")
        try:
            source = SourceConfig(**entry)
        except ValueError as error:
            raise ValueError(f"{key}.{error}") from None
        sources.append(source if source.name else replace(source, name=f"source {place + 1}"))
    names = [source.name for source in sources]
    if doubles := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"sources: two have the name {doubles[0]!r}; each needs its own")
    return tuple(sources)


def as_settings(sources: Sequence[SourceConfig]) -> list[dict[str, Any]] | None:
    """The setting that `parse_sources` reads; None without sources."""
    return [
        {field.name: value for field in fields(source) if (value := getattr(source, field.name)) != field.default}
        for source in sources
    ] or None


_TEXTS = ("name", "licence", "source", "target", "format", "source_language", "target_language", "dataset", "split")


@dataclass(frozen=True)
class Source:
    """A source whose files are known.

    Attributes:
        key: the setting, for messages: "corpus.train.sources[0]".
        languages: of source and target.
        sides: of text: the files of each side that belong together.
        files: of all other formats.
        short_places: whether messages of examples leave the file's name out, for a corpus of a single pair of files.
    """

    config: SourceConfig
    key: str
    languages: tuple[str, str]
    sides: tuple[tuple[Path, Path], ...] = ()
    files: tuple[Path, ...] = ()
    short_places: bool = False

    @property
    def is_stream(self) -> bool:
        """Whether the source is one stream of rows, which only one process can read: a data set."""
        return self.config.dataset is not None

    @property
    def columns(self) -> tuple[Any, Any]:
        """The names or numbers of the two columns; (None, None): TSV's first two."""
        return self.config.source_column, self.config.target_column


def open_source(
    config: SourceConfig, key: str, languages: tuple[str, str], folder: str | None = None, is_named: bool = True
) -> Source:
    """The source with the files that its patterns match.

    Args:
        folder: that relative paths are in.
        is_named: whether the source is one of a list.
    Raises:
        UserError: a file is missing, or the two sides have unequal numbers of files.
    """
    languages = (config.source_language or languages[0], config.target_language or languages[1])
    if config.source is not None and config.target is not None:
        sides = [_side(config, side, key, folder) for side in ("source", "target")]
        if len(sides[0]) != len(sides[1]):
            raise UserError(
                f"{key}.source: matches {len(sides[0])} files and {key}.target {len(sides[1])}, but they must be "
                f"equally many: {', '.join(file.name for file in sides[0][:3])} …; "
                f"{', '.join(file.name for file in sides[1][:3])} …"
            )
        return Source(config, key, languages, tuple(zip(*sides, strict=True)), short_places=not is_named)
    files: dict[Path, None] = {}
    for pattern in config.patterns:
        if is_url(pattern):
            raise UserError(f"{key}.files: {pattern} is behind a URL and was not fetched")
        files |= dict.fromkeys(matching_files(os.path.join(folder or "", pattern), f"{key}.files"))
    for file in files:
        format_of(file, config.format, key)
    return Source(config, key, languages, files=tuple(files))


def _side(config: SourceConfig, side: str, key: str, folder: str | None) -> list[Path]:
    name = os.path.join(folder or "", getattr(config, side))
    if GLOB & set(name) and not os.path.exists(name) and (matches := sorted(filter(os.path.isfile, glob.glob(name)))):
        return [Path(match) for match in matches]
    try:
        return [existing_file(name)]
    except UserError as error:
        hint = "corpus.path=<folder>" if folder is not None else f"{key}.{side}=<file>"
        raise UserError(f"{key}.{side}: {error}. Set {hint} to where it is.") from None


def format_of(file: Path, given: str | None, key: str) -> str:
    """The format of a file, as given or by its name.

    Raises:
        UserError: the name does not tell.
    """
    ending = Path(unpacked_name(file.name)).suffix.lower()
    if given is None and ending not in FORMATS:
        raise UserError(
            f"{key}.files: {file} ends in {ending or 'nothing'}, not in {', '.join(FORMATS)}. Set {key}.format, or "
            f"give the two sides of plain text as {key}.source and {key}.target"
        )
    return given or FORMATS[ending]


def fingerprint(source: Source, prefix: str) -> dict[str, str]:
    """Names and hashes of all that the pairs depend on."""
    if source.sides and source.short_places:  # the two files of a corpus of text
        ((source_file, target_file),) = source.sides
        return {f"{prefix}.source": sha256_file(source_file), f"{prefix}.target": sha256_file(target_file)}
    config = source.config
    files = [sha256_file(file) for file in (*(file for side in source.sides for file in side), *source.files)]
    formats = [format_of(file, config.format, source.key) for file in source.files]
    hub = [config.dataset, config.dataset_config, config.revision, config.split, config.data_files]
    return {prefix: hash_of([config.name, files, formats, source.columns, source.languages, hub])}


def count_source(source: Source) -> int:
    """The number of rows of text files, or 0 where counting would need to read all.

    Raises:
        UserError: the sides have unequal numbers of lines.
    """
    total = 0
    for source_file, target_file in source.sides:
        source_lines, target_lines = count_lines(source_file), count_lines(target_file)
        if source_lines != target_lines:
            raise UserError(
                f"{source.key}: the two sides must have equally many lines, "
                f"but {source_file} has {source_lines} and {target_file} has {target_lines}."
            )
        total += source_lines
    return total


def source_bytes(source: Source) -> int:
    """The size of all files of a source."""
    return sum(file.stat().st_size for file in (*(file for side in source.sides for file in side), *source.files))


def refuse_wrong_source(source: Source) -> None:
    """Checks the beginning of the files before any other work.

    Raises:
        UserError: a file is not what its name says, or both sides are the same.
    """
    is_same_language = source.languages[0] == source.languages[1]
    for source_file, target_file in source.sides:
        try:
            refuse_other_formats(source_file, target_file, is_same_language)
        except UserError as error:
            place = "" if str(error).startswith("corpus.") else f"{source.key}: "
            raise UserError(f"{place}{error}") from None
    for file in source.files:
        if format_of(file, source.config.format, source.key) in ("tsv", "csv", "json"):
            with open_text(file) as opened:
                head = opened.read(1 << 12)
            refuse_binary(file, head)
            refuse_lone_returns(file, head)


def file_rows(source: Source, file: Path) -> Iterator[Row]:
    """Streams the rows of one of `source.files`.

    Raises:
        UserError: the file is damaged, or lacks a column or the languages; names the file and the line.
    """
    match format_of(file, source.config.format, source.key):
        case "tmx" | "xliff":
            for line, *texts in xml_rows(file, *source.languages):
                missing = [name for name, text in zip(source.languages, texts, strict=True) if text is None]
                lacks = f"has no text in {' and '.join(missing)}" if missing else None
                one, other = (_bytes(text or "") for text in texts)
                yield Row(f"{file} line {line}", one, other, lacks)
        case "po":
            yield from _po_rows(file)
        case "tsv" if not isinstance(source.config.source_column, str):
            yield from _numbered_rows(file, source)
        case "tsv" | "csv" as kind:
            rows = ((f"{file} {place}", row) for place, row in table_rows(str(file), kind == "tsv"))
            yield from _cells(rows, source)
        case "json":
            rows = ((place.replace(", line", " line"), row) for place, row in read_json_lines(file))
            yield from _cells(rows, source)
        case _:
            yield from _cells(parquet_rows(file, _named_columns(source), f"{source.key}.source_column"), source)


def dataset_rows(source: Source) -> Iterator[Row]:
    """Streams the rows of a data set of the hub, or of files that the `datasets` library reads."""
    config = source.config
    assert config.dataset is not None and config.split is not None
    rows = load_rows(config.dataset, config.dataset_config, config.split, config.revision, config.data_files or None)
    full = ((place if " line " in place else f"{config.dataset} {config.split} {place}", row) for place, row in rows)
    yield from _cells(full, source)


def _named_columns(source: Source) -> list[str]:
    return [str(column or language) for column, language in zip(source.columns, source.languages, strict=True)]


def _cells(rows: Iterable[tuple[str, Mapping[str, Any]]], source: Source) -> Iterator[Row]:
    one, other = _named_columns(source)
    for place, row in rows:
        yield Row(
            place,
            cell(row, one, f"{source.key}.source_column", place),
            cell(row, other, f"{source.key}.target_column", place),
        )


def _numbered_rows(file: Path, source: Source) -> Iterator[Row]:
    first, second = source.columns[0] or 1, source.columns[1] or 2
    for number, line in enumerate(read_lines(file), 1):
        parts = line.split(b"\t")
        if len(parts) < max(first, second):
            if not line:
                continue
            lacking = first if first > len(parts) else second
            side = "source" if lacking == first else "target"
            raise UserError(
                f"{source.key}.{side}_column: {file} line {number} has {len(parts)} columns, and none of number "
                f"{lacking}. Tabs separate columns; mend the line, or set the column"
            )
        yield Row(f"{file} line {number}", parts[first - 1], parts[second - 1])


def _po_rows(file: Path) -> Iterator[Row]:
    """The messages of a PO file; of plural forms the first with the singular and the last with the plural, of languages
    with two forms. Those that are marked fuzzy are no pairs."""
    from babel.messages.pofile import PoFileError, read_po

    try:
        with open_text(file) as opened:
            catalog = read_po(opened, ignore_obsolete=True, abort_invalid=True)  # type: ignore[arg-type]
        with open_text(file) as opened:
            _refuse_loose_quotes(file, opened, catalog.charset or "utf-8")
    except PoFileError as error:
        raise UserError(f"{file} line {error.lineno + 1}: not a PO file ({error}). Mend the line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not text in the charset that its header names ({error}). Mend the file") from None
    except (ValueError, LookupError) as error:
        raise UserError(f"{file}: not a PO file ({error}). Mend the file") from None
    for message in catalog:
        if not message.id:  # the header
            continue
        place = f"{file} line {message.lineno}"
        ids = [message.id] if isinstance(message.id, str) else list(message.id)
        texts = [message.string] if isinstance(message.string, str) else list(message.string or ("",))
        if message.fuzzy:
            yield Row(place, b"", b"", "is marked fuzzy")
        elif len(ids) != len(texts):
            yield Row(place, b"", b"", f"has {len(texts)} plural forms, which match no singular and plural")
        else:
            for one, other in zip(ids, texts, strict=True):
                lacks = None if one.strip() and other.strip() else "is not translated"
                yield Row(place, _one_line(one), _one_line(other), lacks)


# A line of a PO file: blank, a comment, or a keyword and a string, of which either may stand alone.
_PO_LINE = re.compile(r'\s*(#.*|((msgctxt|msgid|msgid_plural|msgstr(\s*\[\s*\d+\s*\])?)\s*)?("([^"\\]|\\.)*"\s*)?)$')


def _refuse_loose_quotes(file: Path, lines: Iterable[bytes], charset: str) -> None:
    """Babel reads a line whose quotation marks are missing or stray, and takes a letter of the text for one.

    Raises:
        UserError: there is such a line.
    """
    for number, line in enumerate(lines, 1):
        if not _PO_LINE.match(line.decode(charset).removeprefix("\ufeff").strip()):
            raise UserError(
                f"{file} line {number}: not a PO file (a quotation mark is missing, or stands inside of a string "
                "without a backslash). Mend the line"
            )


def _one_line(text: Any) -> bytes:
    return _bytes(str(text).replace("\r\n", " ").replace("\n", " "))


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # a lone surrogate is refused later as invalid


def with_absolute_sources(sources: Sequence[SourceConfig], folder: str | None) -> list[SourceConfig]:
    """The sources with paths made absolute (from the working directory), and ~ expanded; with `folder` as they are, for
    they are in it."""
    change = absolute_path if folder is None else os.path.expanduser
    return [source.map_paths(lambda _, path: change(path)) for source in sources]


def with_local_source(
    config: SourceConfig, key: str, path: str | None, folder: Path, progress: Progress = no_progress
) -> SourceConfig:
    """The source with each URL, a pattern included, replaced by the paths of copies below `folder`, which are fetched
    if missing or if the files have changed.

    Args:
        path: the folder, possibly a URL, that relative paths are in.
    Raises:
        UserError: a file can't be reached, or nothing matches; names the setting.
    """

    def fetched(name: str, pattern: str) -> Any:
        is_relative = not is_url(pattern) and not os.path.isabs(pattern)
        url = f"{path.rstrip('/')}/{pattern}" if is_url(path) and path is not None and is_relative else pattern
        if not is_url(url):
            return pattern
        setting = f"{key}.{name}"
        if not GLOB & set(url.partition("?")[0]):
            return str(fetch_file(url, folder, setting, progress))
        copies = [fetch_file(match, folder, setting, progress) for match in matching_urls(url, setting)]
        if name == "files":
            return [str(copy) for copy in copies]
        # The copies lie in folders of their own; links in one folder make a pattern of them again.
        together = folder / hash_of([url, [str(copy) for copy in copies]])[:12]
        together.mkdir(parents=True, exist_ok=True)
        for number, copy in enumerate(copies):
            link = together / f"{number:06d}-{copy.name}"
            if not link.exists():
                os.symlink(copy, link)
        return str(Path(glob.escape(str(together)), "*"))

    return config.map_paths(fetched)
