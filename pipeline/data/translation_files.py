"""XLIFF 1.2 and 2, and TMX: the segments of a file are translated, and everything else stays as it is, to the byte.

The file is read as a stream by expat, which says where in it each element begins: so targets are put into the bytes
that were read, and nothing is written anew. A document type with declarations of its own, and so every entity, is
refused; a reference to a DTD elsewhere, which TMX files have, is not followed.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import IO, NoReturn
from xml.parsers import expat

from transloom.pipeline.data.inline_tags import Links, Node, Pair, Tag, as_xml, markup_of, text_of, with_tags
from transloom.pipeline.errors import UserError

BLOCK_BYTES = 1 << 16
SEGMENTS_AT_A_TIME = 200
MAX_UNIT_BYTES = 1 << 24  # of a unit, or of what stands between two
MAX_DEPTH = 100
UNITS = ("trans-unit", "segment", "tu")

# Inline elements whose content is code of the document's own format, and those that have none.
_CODE = {"bpt", "ept", "it", "ph", "ut", "x", "bx", "ex", "cp", "sc", "ec", "sm", "em"}
_OPENING, _CLOSING = {"bpt", "bx", "sc"}, {"ept", "ex", "ec"}
# States of a target that is no translation yet.
_UNTRANSLATED = {"new", "needs-translation", "initial"}
_START_TAG = re.compile(rb"<[^\s/>]+(?:[^\"'>]|\"[^\"]*\"|'[^']*')*>")

Translate = Callable[[list[str]], list[tuple[str, Links]]]  # texts -> translations with their alignments


@dataclass
class Counts:
    """Segments that were translated; that had a translation and kept it; and that are not to be translated."""

    translated: int = 0
    kept: int = 0
    left_out: int = 0


@dataclass
class _Element:
    """An element that is open, or whose place matters: offsets in the file.

    Attributes:
        start, inner: where its start tag begins, and where that ends. close, end: of its end tag.
    """

    name: str
    attributes: dict[str, str]
    start: int
    inner: int
    is_empty: bool
    translate: bool
    close: int = 0
    end: int = 0
    nodes: list[Node] = field(default_factory=list)
    parts: "dict[str, _Element]" = field(default_factory=dict)  # of a unit; of a TMX's tu by language
    language: str = ""
    gap: bytes = b""  # space before it


@dataclass(frozen=True)
class _Edit:
    """Bytes start to end of the file become before + what is made of the nodes + after."""

    start: int
    end: int
    before: bytes
    nodes: list[Node]
    after: bytes


def translate_file(
    source: IO[bytes],
    write: Callable[[bytes], object],
    translate: Translate,
    name: str,
    source_language: str | None = None,
    target_language: str | None = None,
) -> Counts:
    """Copies an XLIFF or TMX file, and fills in the targets that are missing, empty or marked as not translated.

    Args:
        name: of the file, for messages.
        source_language, target_language: codes; of TMX both are needed, a region counts for nothing. The target's is
            written into XLIFF 2, which wants it.
    Raises:
        UserError: the file is neither, is not well-formed, declares entities, is nested too deeply, is of other
            languages by its own attributes, or has no segment in the source language (names the file, and the line).
    """
    reader = _Reader(name, source_language, target_language)
    counts = reader.counts
    while block := source.read(BLOCK_BYTES):
        reader.feed(block)
        if len(reader.edits) >= SEGMENTS_AT_A_TIME or (reader.edits and len(reader.buffer) > MAX_UNIT_BYTES):
            _flush(reader, write, translate)
        reader.refuse_long()
        if not reader.edits:
            write(reader.take(reader.settled))
    reader.feed(b"", is_last=True)
    _flush(reader, write, translate)
    write(reader.take(reader.base + len(reader.buffer)))
    if reader.kind == "tmx" and not (counts.translated or counts.kept):
        raise UserError(f"{name}: has no segment in the language {source_language}; set source_language=")
    return counts


def _flush(reader: "_Reader", write: Callable[[bytes], object], translate: Translate) -> None:
    """Translates the segments that were read, and writes the file up to the last one."""
    edits = sorted(reader.edits, key=lambda edit: edit.start)
    reader.edits.clear()
    texts = [text_of(edit.nodes) for edit in edits]
    full = [i for i, text in enumerate(texts) if text.strip()]
    found = dict(zip(full, translate([texts[i] for i in full]), strict=True)) if full else {}
    for i, edit in enumerate(edits):
        inner = with_tags(edit.nodes, *found[i]) if i in found else markup_of(edit.nodes)
        write(reader.take(edit.start))
        write(edit.before + inner.encode(reader.encoding, "xmlcharrefreplace") + edit.after)
        reader.take(edit.end)
    write(reader.take(reader.settled))


class _Reader:
    """The file's bytes that are not written yet, and the places in them that are to be filled."""

    def __init__(self, name: str, source_language: str | None, target_language: str | None) -> None:
        self.name = name
        self.source_language, self.target_language = source_language, target_language
        self.kind = ""  # xliff or tmx
        self.encoding = "utf-8"
        self.counts = Counts()
        self.edits: list[_Edit] = []
        self.buffer, self.base = bytearray(), 0
        self.settled = 0  # up to here nothing will be changed but by `edits`
        self._open: list[_Element] = []
        self._inline: list[Pair] = []  # open in the segment
        self._segment: _Element | None = None
        self._last_end = 0  # of the newest tag or comment
        self._code = 0  # depth within an inline element that is code
        self._code_start, self._code_attributes = 0, ("", {})
        parser = self._parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._text
        parser.CommentHandler = lambda text: self._other(b"-->")
        parser.ProcessingInstructionHandler = lambda target, text: self._other(b"?>")
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype
        parser.EntityDeclHandler = lambda *_: self._refuse("declares an entity, which is refused; write its text out")
        parser.SkippedEntityHandler = lambda *_: self._refuse("has an entity that is not declared in it")

    def feed(self, block: bytes, is_last: bool = False) -> None:
        self.buffer += block
        if not self.base and self.buffer[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{self.name}: is UTF-16; convert it to UTF-8")
        try:
            self._parser.Parse(block, is_last)
        except expat.ExpatError as error:
            reason = expat.errors.messages.get(error.code, str(error))
            raise UserError(f"{self.name}, line {error.lineno}: is not well-formed XML: {reason}") from None
        except LookupError:
            raise UserError(f"{self.name}: is of an unknown encoding; convert it to UTF-8") from None
        if not self._is_in_unit:
            self.settled = self._last_end

    def take(self, end: int) -> bytes:
        """The bytes up to an offset of the file, which are then forgotten."""
        taken = bytes(self.buffer[: max(0, end - self.base)])
        del self.buffer[: len(taken)]
        self.base += len(taken)
        return taken

    def refuse_long(self) -> None:
        if len(self.buffer) > MAX_UNIT_BYTES and not self.edits:
            self._refuse(f"has more than {MAX_UNIT_BYTES:,} bytes in one unit")

    @property
    def _is_in_unit(self) -> bool:
        return any(element.name in UNITS for element in self._open)

    def _refuse(self, reason: str) -> NoReturn:
        raise UserError(f"{self.name}, line {self._parser.CurrentLineNumber}: {reason}")

    def _raw(self, start: int, end: int) -> bytes:
        return bytes(self.buffer[start - self.base : end - self.base])

    def _tag_end(self, start: int) -> int:
        tag = _START_TAG.match(self.buffer, start - self.base)
        assert tag is not None  # expat has read it
        return self.base + tag.end()

    def _decoded(self, start: int, end: int) -> str:
        return self._raw(start, end).decode(self.encoding)

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        self.encoding = encoding or "utf-8"
        if self.encoding.lower().startswith(("utf-16", "utf-32", "ucs")):
            self._refuse(f"is {encoding}; convert it to UTF-8")

    def _doctype(self, name: str, system: str | None, public: str | None, has_internal_subset: int) -> None:
        if has_internal_subset:
            self._refuse("declares a document type of its own, which is refused; remove <!DOCTYPE … [ … ]>")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        local = name.rpartition(":")[2]
        start = self._parser.CurrentByteIndex
        inner = self._tag_end(start)
        is_empty = self.buffer[inner - 2 - self.base : inner - self.base] == b"/>"
        self._last_end = inner
        if self._segment is not None:
            self._start_inline(local, attributes, start, inner, is_empty)
            return
        if not self._open:
            if local not in ("xliff", "tmx"):
                self._refuse(f"<{name}> is neither XLIFF nor TMX")
            self.kind = local
            self._name_target_language(attributes, inner, is_empty)
        if len(self._open) >= MAX_DEPTH:
            self._refuse(f"is nested more than {MAX_DEPTH} deep")
        if local in ("xliff", "file"):
            self._refuse_other_languages(attributes)
        parent = self._open[-1] if self._open else None
        translate = attributes.get("translate", "yes" if parent is None or parent.translate else "no") != "no"
        element = _Element(local, attributes, start, inner, is_empty, translate)
        space = re.search(rb"[ \t\r\n]*$", self._raw(max(self.base, start - 200), start))
        element.gap = space[0] if space else b""
        if local == "header" and parent is not None and parent.name == "tmx" and self.source_language is None:
            language = attributes.get("srclang", "*all*")
            self.source_language = None if language == "*all*" else language
        if local == "tuv":
            element.language = attributes.get("xml:lang", attributes.get("lang", ""))
        is_segment = parent is not None and (
            (parent.name in ("trans-unit", "segment") and local in ("source", "seg-source", "target"))
            or (parent.name == "tuv" and local == "seg")
        )
        self._open.append(element)
        if is_segment and not is_empty:
            self._segment = element

    def _start_inline(self, local: str, attributes: dict[str, str], start: int, inner: int, is_empty: bool) -> None:
        if self._code:
            self._code += 1
            return
        is_protected = local == "mrk" and (
            attributes.get("translate") == "no" or attributes.get("mtype") == "protected"
        )
        if local in _CODE or is_protected or is_empty:
            self._code, self._code_start, self._code_attributes = 1, start, (local, attributes)
            return
        if len(self._inline) >= MAX_DEPTH:
            self._refuse(f"is nested more than {MAX_DEPTH} deep")
        pair = Pair(self._decoded(start, inner))
        self._nodes.append(pair)
        self._inline.append(pair)

    @property
    def _nodes(self) -> list[Node]:
        assert self._segment is not None
        return self._inline[-1].children if self._inline else self._segment.nodes

    def _end(self, name: str) -> None:
        close = self._parser.CurrentByteIndex
        if self._segment is not None and (self._code or self._inline):
            self._end_inline(close)
            return
        element = self._open.pop()
        element.close = element.inner if element.is_empty else close
        element.end = element.inner if element.is_empty else self._close_end(close)
        self._last_end = element.end
        self._segment = None
        parent = self._open[-1] if self._open else None
        if parent is None:
            return
        if parent.name in ("trans-unit", "segment") and element.name in ("source", "seg-source", "target"):
            parent.parts[element.name] = element
        elif parent.name == "tuv" and element.name == "seg":
            parent.parts["seg"] = element
        elif parent.name == "tu" and element.name == "tuv" and "seg" in element.parts:
            parent.parts.setdefault(element.language, element)
        elif element.name in UNITS:
            (self._end_tmx_unit if element.name == "tu" else self._end_xliff_unit)(element)
            self.settled = self.settled if self._is_in_unit else element.end

    def _end_inline(self, close: int) -> None:
        if not self._code:
            pair = self._inline.pop()
            pair.end = self._decoded(close, self._close_end(close))
            return
        self._code -= 1
        if self._code:
            return
        local, attributes = self._code_attributes
        tag_end = self._tag_end(self._code_start)
        is_empty = self._raw(tag_end - 2, tag_end) == b"/>"
        raw = self._decoded(self._code_start, tag_end if is_empty else self._close_end(close))
        key = attributes.get("i") or attributes.get("rid") or attributes.get("startRef") or attributes.get("id")
        is_half = local in _OPENING or local in _CLOSING
        self._nodes.append(Tag(raw, key if is_half else None, local in _OPENING))

    def _close_end(self, close: int) -> int:
        return self.base + self.buffer.index(b">", close - self.base) + 1

    def _text(self, text: str) -> None:
        if self._segment is not None and not self._code:
            self._nodes.append(text)

    def _other(self, ending: bytes) -> None:
        """A comment or a processing instruction."""
        start = self._parser.CurrentByteIndex
        end = self.base + self.buffer.index(ending, start - self.base) + len(ending)
        self._last_end = max(self._last_end, end)
        if self._segment is not None and not self._code:
            self._nodes.append(Tag(self._decoded(start, end)))

    def _name_target_language(self, attributes: dict[str, str], inner: int, is_empty: bool) -> None:
        """XLIFF 2 needs trgLang where it has targets."""
        is_second = self.kind == "xliff" and attributes.get("version", "").startswith("2")
        if is_second and "trgLang" not in attributes and self.target_language and not is_empty:
            place = inner - 1
            self.edits.append(_Edit(place, place, f' trgLang="{as_xml(self.target_language)}"'.encode(), [], b""))

    def _refuse_other_languages(self, attributes: dict[str, str]) -> None:
        """XLIFF 1.2 has its languages in <file>, XLIFF 2 in <xliff>."""
        for side, known, names in (
            ("source", self.source_language, ("source-language", "srcLang")),
            ("target", self.target_language, ("target-language", "trgLang")),
        ):
            own = next((attributes[name] for name in names if name in attributes), None)
            if own and known and _main_part(own) != _main_part(known):
                self._refuse(
                    f"its {side} language is {own}, and the model's is {known}; set {side}_language={own} to translate "
                    "it all the same"
                )

    def _end_xliff_unit(self, unit: _Element) -> None:
        source, target = unit.parts.get("source"), unit.parts.get("target")
        if source is None or not unit.translate:
            self.counts.left_out += 1
            return
        stated = unit if unit.name == "segment" else target  # XLIFF 2: of the segment, 1.2: of the target
        state = stated.attributes.get("state", "") if stated is not None else ""
        if target is not None and _is_full(target.nodes) and state not in _UNTRANSLATED:
            self.counts.kept += 1
            return
        self.counts.translated += 1
        if unit.name == "segment" and state in _UNTRANSLATED:
            changed = re.sub(rb"(\sstate\s*=\s*[\"'])[^\"']*", rb"\1translated", self._raw(unit.start, unit.inner))
            self.edits.append(_Edit(unit.start, unit.inner, changed, [], b""))
        segmented = unit.parts.get("seg-source", source)
        # The <mrk> of its segments are tags like others, and come into the target.
        nodes = segmented.nodes if _is_full(segmented.nodes) else source.nodes
        tag = self._raw(source.start, source.inner).split()[0].strip(b"</>")
        name = tag.rpartition(b":")[0] + b":target" if b":" in tag else b"target"
        if target is None:
            place = segmented.end
            self.edits.append(_Edit(place, place, source.gap + b"<" + name + b">", nodes, b"</" + name + b">"))
            return
        start_tag = self._raw(target.start, target.inner)
        if target.is_empty:
            start_tag = start_tag[:-2].rstrip() + b">"
        start_tag = re.sub(
            rb"(\sstate\s*=\s*[\"'])(?:new|needs-translation)(?=[\"'])", rb"\1needs-review-translation", start_tag
        )
        after = b"</" + name + b">" if target.is_empty else self._raw(target.close, target.end)
        self.edits.append(_Edit(target.start, target.end, start_tag, nodes, after))

    def _end_tmx_unit(self, unit: _Element) -> None:
        if self.source_language is None or self.target_language is None:
            missing = "source_language" if self.source_language is None else "target_language"
            self._refuse(f"the language is not known, neither from the model nor from the file; set {missing}=")
        source = _in_language(unit.parts.values(), self.source_language)
        target = _in_language(unit.parts.values(), self.target_language)
        if source is None:
            self.counts.left_out += 1
            return
        if target is not None and _is_full(target.parts["seg"].nodes):
            self.counts.kept += 1
            return
        self.counts.translated += 1
        nodes = source.parts["seg"].nodes
        if target is not None:
            seg = target.parts["seg"]
            self.edits.append(_Edit(seg.start, seg.end, b"<seg>", nodes, b"</seg>"))
            return
        language = as_xml(str(self.target_language)).encode()
        before = source.gap + b'<tuv xml:lang="' + language + b'"><seg>'
        self.edits.append(_Edit(source.end, source.end, before, nodes, b"</seg></tuv>"))


def _is_full(nodes: Sequence[Node]) -> bool:
    """Whether a target has text or code. Elements for text without any, such as the empty <mrk> of a segment that
    nobody has translated yet, are neither."""
    return bool(text_of(nodes).strip()) or any(
        _is_full(node.children) if isinstance(node, Pair) else isinstance(node, Tag) and not node.raw.startswith("<mrk")
        for node in nodes
    )


def _in_language(tuvs: Iterable[_Element], language: str | None) -> _Element | None:
    return next((tuv for tuv in tuvs if _main_part(tuv.language) == _main_part(language or "")), None)


def _main_part(language: str) -> str:
    return re.split(r"[-_]", language.lower())[0]
