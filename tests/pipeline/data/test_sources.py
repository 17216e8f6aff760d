"""Sources of pairs of every format, what is refused of them, and how an epoch draws from them."""

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transloom.jobs.config.compose import from_dict, load_config, to_dict
from transloom.pipeline.data.clean import CleanConfig
from transloom.pipeline.data.corpus import corpus_fingerprint
from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind, SplitConfig
from transloom.pipeline.data.held_out import read_pairs
from transloom.pipeline.data.mix import draw_counts, drawn
from transloom.pipeline.data.prepare import prepare, prepare_corpus
from transloom.pipeline.data.remote import with_local_files
from transloom.pipeline.data.tokenizer import Tokenizer, TokenizerConfig
from transloom.pipeline.errors import UserError

TMX = """<?xml version="1.0"?><!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en"/><body>
<tu><tuv xml:lang="en-US"><seg>A <bpt i="1">&lt;b&gt;</bpt>dog<ept i="1">&lt;/b&gt;</ept> &amp; a cat.</seg></tuv>
<tuv xml:lang="DE"><seg>Ein <hi>Hund</hi>
und eine Katze.</seg></tuv><tuv xml:lang="fr"><seg>Un chien.</seg></tuv></tu>
<tu><tuv lang="en"><seg>Only English.</seg></tuv></tu>
</body></tmx>"""
XLIFF = """<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">
<file source-language="en" target-language="de-DE"><body><trans-unit id="1">
<source>Press <g id="1">Start</g><x id="2"/>.</source><alt-trans><target>Falsch</target></alt-trans>
<target><g id="1">Start</g> drücken.</target></trans-unit></body></file></xliff>"""
XLIFF2 = """<xliff xmlns="urn:oasis:names:tc:xliff:document:2.0" version="2.0" srcLang="en" trgLang="de"><file id="f">
<unit id="1"><segment><source>Yes</source><target>Ja</target></segment>
<segment><source>No</source></segment></unit></file></xliff>"""
PO = """msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\nPlural-Forms: nplurals=2; plural=(n != 1);\\n"

#, fuzzy
msgid "Open"
msgstr "Falsch"

msgid "Close "
"window"
msgstr "Fenster schließen"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Dateien"
"""


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def corpus_of(*sources: dict[str, Any], **settings: Any) -> CorpusConfig:
    return CorpusConfig(kind=CorpusKind.sources, name="mine", train=SplitConfig(sources=list(sources)), **settings)


def pairs_of(*sources: dict[str, Any], **settings: Any) -> list[tuple[str, str]]:
    corpus = corpus_of(*sources, validation=SplitConfig(split="x"), test=SplitConfig(split="x"), **settings)
    return [tuple(pair) for pair in read_pairs(corpus, "train", held_out={})]


def test_every_format_gives_its_pairs(tmp_path):
    rows = [{"en": "a", "de": "b"}, {"en": "c", "de": None}]
    parquet = tmp_path / "p.parquet"
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"en": ["a"], "x": [{"de": "b"}]}), parquet)
    cases = {
        write(tmp_path / "m.tmx", TMX): [("A dog & a cat.", "Ein Hund und eine Katze.")],
        write(tmp_path / "m.xlf.gz", gzip.compress(XLIFF.encode())): [("Press Start.", "Start drücken.")],
        write(tmp_path / "n.xliff", XLIFF2): [("Yes", "Ja")],
        write(tmp_path / "m.po", PO): [
            ("Close window", "Fenster schließen"), ("%d file", "%d Datei"), ("%d files", "%d Dateien"),
        ],
        write(tmp_path / "m.tsv", "a\tb\n\nc\td\te\n"): [("a", "b"), ("c", "d")],
        write(tmp_path / "m.jsonl", "".join(json.dumps(row) + "\n" for row in rows)): [("a", "b"), ("c", "")],
        write(tmp_path / "m.csv", 'de,en\n"b, c",a\n'): [("a", "b, c")],
    }  # fmt: skip
    for file, pairs in cases.items():
        assert pairs_of({"files": file}) == pairs, file
    assert pairs_of({"files": str(parquet), "source_column": "en", "target_column": "x.de"}) == [("a", "b")]
    # Names of columns read a header; numbers count columns from 1.
    table = write(tmp_path / "h.tsv", "score\ten\tde\n1\ta\tb\n")
    assert pairs_of({"files": table, "source_column": "en", "target_column": "de"}) == [("a", "b")]
    assert pairs_of({"files": table, "source_column": 2, "target_column": 3})[1:] == [("a", "b")]


def test_text_patterns_pair_files_by_their_names_and_sources_keep_their_order(tmp_path):
    for name, text in {"1.en": "a\nb\n", "1.de": "A\nB\n", "2.en": "c\n", "2.de": "C\n"}.items():
        write(tmp_path / name, text)
    write(tmp_path / "z.en.gz", gzip.compress(b"d\n"))
    write(tmp_path / "z.de", "D\n")
    sources = [{"source": "z.en.gz", "target": "z.de", "name": "z"}, {"source": "[12].en", "target": "[12].de"}]
    expected = [("d", "D"), ("a", "A"), ("b", "B"), ("c", "C")]
    assert pairs_of(*sources, path=str(tmp_path)) == expected
    one_column = {"format": "tsv", "source_column": 1, "target_column": 1}
    assert pairs_of({"files": f"{tmp_path}/*.en"} | one_column) == [("a", "a"), ("b", "b"), ("c", "c")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tmx", TMX.replace('SYSTEM "tmx14.dtd"', "[<!ENTITY a 'x'>]"), r"a\.tmx line 1: .*entity 'a'"),
        ("a.tmx", "<tmx>" + "<a>" * 200, r"a\.tmx line 1: .*nested"),
        ("a.tmx", TMX[:400], r"a\.tmx line \d column \d+: not well-formed"),
        ("a.tmx", TMX.encode().replace(b"dog", b"d\xff"), r"a\.tmx line 3 column .*not well-formed"),
        ("a.tmx", TMX.replace("DE", "it"), r"a\.tmx: none of its 2 units has both en and de; .*it \(1\)"),
        ("a.tmx.gz", gzip.compress(TMX.encode())[:-20], r"a\.tmx\.gz: not a whole gzip file"),
        ("a.tsv", "a\tb\nc\n", r"^corpus\.train\.sources\[0\]\.target_column: .*a\.tsv line 2 has 1 columns"),
        ("a.jsonl", '{"en": "a"}\n', r"^corpus\.train\.sources\[0\]\.target_column: no column 'de'.*line 1"),
        ("a.jsonl", '{"en"\n', r"a\.jsonl, line 1: is not JSON: Expecting .* at character 6\. "),
        ("a.po", 'msgid "a"\ngarbage\n', r"a\.po line 2: not a PO file"),
        ("a.po", 'msgid "a"\nmsgstr "Hallo\n', r"a\.po line 2: not a PO file .*quotation mark"),
        ("a.po", 'msgid "a"\nmsgstr Hallo"\n', r"a\.po line 2: not a PO file"),
        ("a.po", 'msgid "a "b" c"\nmsgstr "d"\n', r"a\.po line 1: not a PO file"),
        ("a.txt", "a\n", r"^corpus\.train\.sources\[0\]\.files: .*a\.txt ends in \.txt"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_told_with_its_place(tmp_path, name, content, message):
    file = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        pairs_of({"files": file})


def test_units_of_one_language_are_counted_in_train_and_no_part_of_a_test_set(tmp_path):
    files = [write(tmp_path / "m.tmx", TMX), write(tmp_path / "n.xliff", XLIFF2), write(tmp_path / "m.po", PO)]
    plural = (
        PO[: PO.index("\n\n")].replace("nplurals=2", "nplurals=3")
        + '\n\nmsgid "a"\nmsgid_plural "b"\nmsgstr[0] "c"\nmsgstr[1] "d"\nmsgstr[2] "e"\n'
    )
    files.append(write(tmp_path / "p.po", f'{plural}\nmsgid "x"\nmsgstr ""\n'))
    test = SplitConfig(sources=[{"files": files}])
    corpus = corpus_of({"files": files}, validation=test, test=test)
    assert len(list(read_pairs(corpus, "test"))) == 5
    stage = prepare_corpus(corpus, CleanConfig(decontaminate=False), tmp_path / "out")
    counts = stage.manifest["counts"]
    assert counts["dropped"] == {"untranslated": 5} and counts["splits"]["test"]["pairs"] == 5
    assert [example.partition("line ")[2] for example in counts["examples"]["untranslated"]] == [
        "6: has no text in de.",
        "3: has no text in de.",
        "5: is marked fuzzy.",
    ]


def test_a_quotation_mark_in_a_string_and_other_charsets_are_no_damage(tmp_path):
    header = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=SHIFT_JIS\\n"\n\n'
    text = header + '#~ msgid "gone"\n#~ msgstr ""\n  msgid   "a \\"b\\" \\\\"\nmsgstr "\u8868"\n'
    assert pairs_of({"files": write(tmp_path / "a.po", text.encode("shift_jis"))}) == [('a "b" \\', "\u8868")]


def test_a_bomb_of_entities_and_an_endless_tag_take_no_memory(tmp_path):
    bomb = "<!DOCTYPE t [<!ENTITY a0 'lol'>" + "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 20))
    with pytest.raises(UserError, match="entity"):
        pairs_of({"files": write(tmp_path / "a.tmx", f"{bomb}]><tmx>&a19;</tmx>")})
    with pytest.raises(UserError, match="a tag is longer"):
        pairs_of({"files": write(tmp_path / "b.tmx", b"<tmx a='" + b"x" * (20 << 20))})


def test_unequal_lines_empty_patterns_and_unequal_numbers_of_files_are_refused_by_their_setting(tmp_path):
    write(tmp_path / "a.en", "a\nb\n")
    write(tmp_path / "a.de", "A\n")
    write(tmp_path / "b.en.gz", gzip.compress(b"a\nb\n"))
    key = r"^corpus\.train\.sources\[0\]"
    with pytest.raises(UserError, match=rf"{key}: .*a\.en has 2 and .*a\.de has 1"):
        pairs_of({"source": "a.en", "target": "a.de"}, path=str(tmp_path))
    with pytest.raises(UserError, match=rf"{key}: .*equally many lines"):
        pairs_of({"source": "b.en.gz", "target": "a.de"}, path=str(tmp_path))
    with pytest.raises(UserError, match=rf"{key}\.files: no file matches"):
        pairs_of({"files": str(tmp_path / "*.tmx")})
    with pytest.raises(UserError, match=rf"{key}\.files: {tmp_path} is a folder\. Name files in it: "):
        pairs_of({"files": str(tmp_path)})
    with pytest.raises(UserError, match=rf"{key}\.source: no such file"):
        pairs_of({"source": "x*.en", "target": "a.de"}, path=str(tmp_path))
    with pytest.raises(UserError, match=rf"{key}\.source: matches 2 files and .*target 1"):
        pairs_of({"source": "*.en*", "target": "*.de"}, path=str(tmp_path))


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ({"files": "a.tmx", "colour": 1}, r"sources\[0\]\.colour"),
        ({"files": "a.tmx", "weight": -1}, r"sources\[0\]\.weight"),
        ({"files": "a.tmx", "weight": "much"}, r"sources\[0\]\.weight"),
        ({"source": "a"}, r"sources\[0\]\.source"),
        ({"files": "a.tmx", "dataset": "d"}, r"sources\[0\]\.source"),
        ({"files": 3}, r"sources\[0\]\.files"),
        ({"files": "a", "format": "doc"}, r"sources\[0\]\.format"),
        ({"files": "a.tsv", "source_column": 1, "target_column": "de"}, r"sources\[0\]\.target_column"),
        ("a.tmx", r"sources\[0\]"),
    ],
)
def test_a_source_that_means_nothing_is_refused_by_its_field(source, key):
    with pytest.raises(ValueError, match=rf"^{key}: "):
        corpus_of(source)
    with pytest.raises(UserError, match=rf"^corpus\.train\.{key}: "):
        from_dict({"corpus": {"kind": "sources", "train": {"sources": [source]}}})


def test_sources_go_through_the_command_line_and_a_run_s_file(tmp_path):
    word = "corpus.train.sources=[{name: a, files: 'x y/*.tmx', weight: 2}, {source: a.en, target: a.de}]"
    config = load_config(["corpus=sources", word])
    assert [source.weight for source in config.corpus.train.parsed] == [2, 1.0]
    assert config.corpus.train.parsed[1].name == "source 2"
    assert from_dict(to_dict(config)) == config
    absolute = config.corpus.with_absolute_paths()
    assert absolute.train.parsed[0].files == [str(Path.cwd() / "x y/*.tmx")]
    with pytest.raises(UserError, match=r"^corpus\.train\.sources: "):
        load_config(["corpus=text", word])


def test_a_name_and_a_column_are_part_of_the_corpus_s_key_but_no_weight(tmp_path):
    file = write(tmp_path / "a.tsv", "a\tb\n")
    keys = [
        corpus_fingerprint(corpus_of({"files": file, "name": "a"} | more, validation=SplitConfig(), held_out=1))
        for more in ({}, {"weight": 3.0}, {"licence": "CC0"}, {"source_column": 2, "target_column": 1}, {"name": "b"})
    ]
    assert keys[0] == keys[1] == keys[2]
    assert len({str(key) for key in keys}) == 3


def test_patterns_behind_urls_are_fetched(tmp_path):
    for i in (1, 2):
        write(tmp_path / f"{i}.en", f"a{i}\n")
        write(tmp_path / f"{i}.de", f"A{i}\n")
        write(tmp_path / f"{i}.tsv", f"b{i}\tB{i}\n")
    base = f"file://{tmp_path}"
    sources = [{"source": "*.en", "target": "*.de"}, {"files": f"{base}/*.tsv"}]
    local = with_local_files(corpus_of(*sources, path=base), tmp_path / "downloads")
    assert [pair for pair in read_pairs(local, "train", held_out={})] == [
        ("a1", "A1"), ("a2", "A2"), ("b1", "B1"), ("b2", "B2"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"^corpus\.train\.sources\[0\]\.files: no file matches"):
        with_local_files(corpus_of({"files": f"{base}/*.tmx"}), tmp_path / "downloads")


def test_the_counts_of_each_source_are_in_the_manifest(tmp_path):
    many = write(tmp_path / "a.tsv", "".join(f"word {i} here\tWort {i} hier\n" for i in range(100)) + "\tx\n")
    few = write(tmp_path / "b.tsv", "".join(f"other {i}\tandere {i}\n" for i in range(30)))
    corpus = corpus_of(
        {"files": many, "name": "many", "licence": "CC BY 4.0"}, {"files": few, "name": "few", "weight": 2}, held_out=5
    )
    prepared = prepare(corpus, CleanConfig(), TokenizerConfig(vocab_size=300), tmp_path / "out")
    counts = prepared.corpus.manifest["counts"]
    first, second = counts["sources"]
    assert (first["name"], first["licence"], first["read"], first["dropped"]["empty"]) == ("many", "CC BY 4.0", 101, 1)
    assert first["pairs"] + second["pairs"] == counts["splits"]["train"]["pairs"]
    assert first["held_out"] + second["held_out"] == 10
    lines = (prepared.corpus.folder / "train.source").read_text().splitlines()
    assert all(line.startswith("word") for line in lines[: first["pairs"]])
    assert all(line.startswith("other") for line in lines[first["pairs"] :])


class Numbers:
    """Examples whose only token is their number."""

    columns = ("text",)

    def __init__(self, count: int) -> None:
        self.lengths = np.ones((count, 1), np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def get(self, column: str, row: int) -> np.ndarray:
        return np.array([row])


def test_a_weight_multiplies_and_a_temperature_evens_out():
    assert draw_counts([100, 10], [1.0, 1.0]) == [100, 10]
    assert draw_counts([100, 10], [1.0, 2.5]) == [100, 25]
    assert draw_counts([100, 10, 7], [0.5, 1.0, 0.0]) == [50, 10, 0]
    assert draw_counts([100, 25], [1.0, 1.0], temperature=2.0) == [83, 42]  # 10 to 5 of 125
    assert sum(draw_counts([1000, 10], [1.0, 1.0], temperature=1e9)) == 1010


def test_an_epoch_is_drawn_by_seed_and_epoch_alone():
    train = Numbers(110)
    first, again, later = (drawn(train, [100, 10], [0.5, 2.0], 1.0, 3, epoch) for epoch in (1, 1, 2))
    rows = [[int(examples.get("text", i)[0]) for i in range(len(examples))] for examples in (first, again, later)]
    assert rows[0] == rows[1] != rows[2]
    counts = Counter(rows[0])
    assert len(first) == len(first.lengths) == 70
    assert [counts[row] for row in range(100, 110)] == [2] * 10
    assert sorted(counts[row] for row in range(100)) == [0] * 50 + [1] * 50
    assert drawn(train, [100, 10], [1.0, 1.0], 1.0, 3, 1) is train


def test_a_tag_of_the_target_language_is_the_first_piece_of_each_source(tmp_path):
    german = write(tmp_path / "a.tsv", "".join(f"word {i} here\tWort {i} hier\n" for i in range(60)))
    french = write(tmp_path / "b.tsv", "".join(f"other {i}\tautre {i}\n" for i in range(60)))
    test = write(tmp_path / "t.tsv", "word 7 here\tun autre\n")
    corpus = corpus_of(
        {"files": german},
        {"files": french, "target_language": "fr"},
        held_out=5,
        language_tags=True,
        test=SplitConfig(sources=[{"files": test, "target_language": "fr"}]),
    )
    prepared = prepare(corpus, CleanConfig(), TokenizerConfig(vocab_size=300), tmp_path / "out")
    tokenizer = Tokenizer.load(prepared.tokenizer.folder)
    for split in ("train", "validation", "test"):
        sources = (prepared.corpus.folder / f"{split}.source").read_text().splitlines()
        targets = (prepared.corpus.folder / f"{split}.target").read_text().splitlines()
        for source, target in zip(sources, targets, strict=True):
            tag = "<2de>" if target.startswith("Wort") else "<2fr>"
            assert source.startswith(f"{tag} ")
            assert tokenizer.pieces()[tokenizer.encode([source])[0][0]] == f"\u2581{tag}"
            assert tokenizer.decode(tokenizer.encode([source])) == [source]
    assert "<2de> word 7 here" not in (prepared.corpus.folder / "train.source").read_text()
    assert corpus_fingerprint(replace(corpus, language_tags=False)) != corpus_fingerprint(corpus)
