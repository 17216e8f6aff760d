"""XLIFF and TMX: targets are filled in, and every other byte stays; what could harm is refused."""

import io
from xml.etree import ElementTree

import pytest

from transloom.pipeline.data.translation_files import Counts, translate_file
from transloom.pipeline.errors import UserError

XLIFF = """<?xml version="1.0" encoding="UTF-8"?>
<!-- made by a tool -->
<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2" xmlns:my="urn:my">
  <file original="a.html" source-language="en" target-language="de" datatype="html"><body>
    <trans-unit id="1" my:key='x>y'>
      <source>Hello <g id="1">brave</g> world &amp; <x id="2"/>all</source>
    </trans-unit>
    <trans-unit id="2">
<source>Press <bpt id="1">&lt;b&gt;</bpt>OK<ept id="1">&lt;/b&gt;</ept></source><target/></trans-unit>
    <trans-unit id="3"><source>kept</source><target>behalten</target></trans-unit>
    <trans-unit id="4"><source>to do</source><target state="needs-translation">to do</target>
      <alt-trans><source>old</source><target>alt</target></alt-trans></trans-unit>
    <trans-unit id="5" translate="no"><source>CODE_5</source></trans-unit>
    <trans-unit id="6"><source><![CDATA[a < b]]></source>
<seg-source><mrk mtype="seg" mid="0">a &lt; b</mrk></seg-source>
<note>n</note></trans-unit>
    <group translate="no"><trans-unit id="7"><source>no</source></trans-unit></group>
    <trans-unit id="8"><source>see <mrk mtype="protected">main.c</mrk> now</source></trans-unit>
    <trans-unit id="9"><source><x id="1"/></source></trans-unit>
  </body></file>
</xliff>
"""


def shout(texts: list[str]) -> list[tuple[str, list[tuple[int, int]]]]:
    """A translation word by word."""
    return [(" ".join(text.upper().split()), [(i, i) for i in range(len(text.split()))]) for text in texts]


def translated(data: str | bytes, **languages: str) -> tuple[str, Counts]:
    target = io.BytesIO()
    source = io.BytesIO(data.encode() if isinstance(data, str) else data)
    counts = translate_file(source, target.write, shout, "my.xml", **languages)
    return target.getvalue().decode(), counts


def test_an_xliff_file_gets_its_targets_and_keeps_every_other_byte() -> None:
    result, counts = translated(XLIFF)
    assert counts == Counts(translated=6, kept=1, left_out=2)
    added = [
        '\n      <target>HELLO <g id="1">BRAVE</g> WORLD &amp; <x id="2"/>ALL</target>',
        '<target>PRESS <bpt id="1">&lt;b&gt;</bpt>OK<ept id="1">&lt;/b&gt;</ept></target>',
        '<target state="needs-review-translation">TO DO</target>',
        '<target><mrk mtype="seg" mid="0">A &lt; B</mrk></target>',
        '<target>SEE <mrk mtype="protected">main.c</mrk> NOW</target>',
        '<target><x id="1"/></target>',
    ]
    expected = XLIFF.replace("</source>\n    </trans-unit>", f"</source>{added[0]}\n    </trans-unit>", 1)
    expected = expected.replace("<target/>", added[1])
    expected = expected.replace('<target state="needs-translation">to do</target>', added[2])
    expected = expected.replace("</seg-source>", f"</seg-source>{added[3]}")
    expected = expected.replace(" now</source>", f" now</source>{added[4]}")
    expected = expected.replace('<source><x id="1"/></source>', f'<source><x id="1"/></source>{added[5]}')
    assert result == expected
    ElementTree.fromstring(result)
    assert translated(result) == (result, Counts(translated=0, kept=7, left_out=2)), "nothing is left to do"


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ('<mrk mtype="seg" mid="0"></mrk>', 0),
        ('<mrk mtype="seg" mid="0"/>', 0),
        ('<g id="1"> <mrk mtype="seg" mid="0"></mrk></g>', 0),
        ('<mrk mtype="seg" mid="0">da</mrk>', 1),
        ('<mrk mtype="seg" mid="0"><x id="1"/></mrk>', 1),
    ],
)
def test_a_target_of_empty_segments_is_no_translation(target: str, kept: int) -> None:
    unit = f'<trans-unit id="3"><source>kept</source><target>{target}</target></trans-unit>'
    result, counts = translated(XLIFF.replace(XLIFF[XLIFF.index('<trans-unit id="3">') :].split("\n")[0], unit))
    assert counts.kept == kept and ("KEPT" in result) == (not kept)


def test_xliff_2_with_prefixes_of_names() -> None:
    source = """<x:xliff xmlns:x="urn:oasis:names:tc:xliff:document:2.0" version="2.0" srcLang="en"><x:file id="f">
<x:unit id="1"><x:segment><x:source>a <x:pc id="1">b</x:pc><x:ph id="2"/></x:source></x:segment>
<x:ignorable><x:source> </x:source></x:ignorable>
<x:segment state="initial"><x:source>c</x:source><x:target>c</x:target></x:segment>
<x:segment state="final"><x:source>d</x:source><x:target>D!</x:target></x:segment></x:unit></x:file></x:xliff>"""
    result, counts = translated(source, target_language="de")
    assert counts == Counts(translated=2, kept=1)
    expected = source.replace('srcLang="en">', 'srcLang="en" trgLang="de">')
    expected = expected.replace(
        "</x:source></x:segment>",
        '</x:source><x:target>A <x:pc id="1">B</x:pc><x:ph id="2"/></x:target></x:segment>',
        1,
    )
    expected = expected.replace("<x:target>c</x:target>", "<x:target>C</x:target>")
    expected = expected.replace('state="initial"', 'state="translated"')
    assert result == expected


@pytest.mark.parametrize(
    ("file", "own", "message"),
    [
        ('<xliff version="2.0" srcLang="fr" trgLang="de"><file/></xliff>', ("fr", "de"), "source language is fr"),
        ('<xliff><file source-language="en-GB" target-language="es"/></xliff>', ("en", "es"), "target language is es"),
    ],
)
def test_a_file_of_other_languages_is_refused(file: str, own: tuple[str, str], message: str) -> None:
    with pytest.raises(UserError, match=rf"^my\.xml, line 1: its {message}"):
        translated(file, source_language="en", target_language="de")
    assert translated(file, source_language=own[0], target_language=own[1])[0] == file


def test_the_segments_of_a_unit_are_in_its_target() -> None:
    mark = '<mrk mtype="seg" mid="{}">{}</mrk>'.format
    unit = f"<source>a b. c d.</source><seg-source>{mark(0, 'a b.')} {mark(1, 'c d.')}</seg-source>"
    for target in ("", f"<target>{mark(0, '')}{mark(1, '')}</target>"):
        result, _ = translated(f"<xliff><trans-unit>{unit}{target}</trans-unit></xliff>")
        whole = f"<target>{mark(0, 'A B.')} {mark(1, 'C D.')}</target>"
        assert result == f"<xliff><trans-unit>{unit}{whole}</trans-unit></xliff>"


TMX = """<?xml version="1.0"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en-US" datatype="plaintext"/><body>
<tu>
  <tuv xml:lang="en-US"><seg>a <bpt i="1">{\\b </bpt>b<ept i="1">}</ept> c</seg></tuv>
  <tuv xml:lang="fr"><seg>a</seg></tuv>
</tu>
<tu><tuv xml:lang="EN"><seg>d</seg></tuv><tuv xml:lang="de-AT"><seg>da</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>e</seg></tuv><tuv xml:lang="de"><seg/></tuv></tu>
<tu><tuv xml:lang="fr"><seg>f</seg></tuv></tu>
</body></tmx>"""


def test_a_tmx_file_gets_the_missing_language() -> None:
    result, counts = translated(TMX, source_language="en", target_language="de")
    assert counts == Counts(translated=2, kept=1, left_out=1)
    added = '\n  <tuv xml:lang="de"><seg>A <bpt i="1">{\\b </bpt>B<ept i="1">}</ept> C</seg></tuv>'
    expected = TMX.replace("c</seg></tuv>", f"c</seg></tuv>{added}").replace("<seg/>", "<seg>E</seg>")
    assert result == expected
    assert translated(TMX, target_language="de")[0] == expected, "the header has the source language"
    with pytest.raises(UserError, match=r"^my\.xml: has no segment in the language ja"):
        translated(TMX, source_language="ja", target_language="de")
    with pytest.raises(UserError, match=r"^my\.xml, line \d+: .*target_language="):
        translated(TMX)


def test_a_file_is_read_as_a_stream_and_written_as_it_goes() -> None:
    units = "".join(f'<trans-unit id="{i}"><source>text {i}</source></trans-unit>\n' for i in range(20_000))
    data = f'<xliff version="1.2"><file><body>{units}</body></file></xliff>'.encode()
    source, held = io.BytesIO(data), []
    written = 0

    def write(text: bytes) -> None:
        nonlocal written
        written += len(text)
        held.append(source.tell() - written)

    counts = translate_file(source, write, shout, "big.xlf")
    assert counts.translated == 20_000
    assert written == len(data) + 20_000 * len("<target>text </target>") + sum(len(str(i)) for i in range(20_000))
    assert max(held) < 200_000


def test_other_encodings() -> None:
    latin = '<?xml version="1.0" encoding="iso-8859-1"?>'
    latin += "<xliff><file><trans-unit><source>é 日</source></trans-unit></file></xliff>"
    data = latin.encode("iso-8859-1", "xmlcharrefreplace")
    target = io.BytesIO()
    translate_file(io.BytesIO(data), target.write, shout, "latin.xlf")
    assert b"<target>\xc9 &#26085;</target>" in target.getvalue()
    with pytest.raises(UserError, match=r"^my\.xml: is UTF-16"):
        translated(XLIFF.encode("utf-16"))


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (f"{BOMB}<xliff><trans-unit><source>&b;</source></trans-unit></xliff>", "line 1: declares a document type"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><xliff>&secret;</xliff>', "line 1: "),
        ("<xliff>&secret;</xliff>", "line 1: is not well-formed XML: undefined entity"),
        ("<xliff>\n<file>", "line 2: is not well-formed XML: no element found"),
        ("<html/>", "line 1: <html> is neither XLIFF nor TMX"),
        ("<xliff>" + "<g>" * 200, "line 1: is nested more than 100 deep"),
        ("<xliff><trans-unit><source>" + "<g>" * 200, "line 1: is nested more than 100 deep"),
        ("plain text", "line 1: is not well-formed XML"),
        ("", "line 1: is not well-formed XML"),
    ],
)
def test_what_could_harm_is_refused_by_line(data: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^my\.xml, {message}"):
        translated(data)
