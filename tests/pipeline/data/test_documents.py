import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from transloom.pipeline.data.clean import Invalid
from transloom.pipeline.data.document_files import Unit
from transloom.pipeline.data.documents import (
    DocumentsConfig,
    DocumentsKind,
    Dropped,
    HeldOutBy,
    HeldOutConfig,
    SourceConfig,
    documents_fingerprint,
    documents_key,
    evaluation_hashes,
    read_documents,
    refuse_nothing_left,
    with_local_documents,
)
from transloom.pipeline.errors import UserError

NOTHING = HeldOutConfig(validation=0.0, test=0.0)


def config_of(train, **settings):
    settings = {"kind": DocumentsKind.text, "name": "x", "held_out": NOTHING} | settings
    for split in ("validation", "test"):
        if split in settings:
            settings[split] = SourceConfig(settings[split])
    return DocumentsConfig(train=SourceConfig(train), **settings)


def read(config, split="train", dropped=None):
    return list(read_documents(config, split, Dropped() if dropped is None else dropped))


def write(path: Path, data: bytes | str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def write_parquet(path, column, values):
    parquet.write_table(pa.table({column: values}), path)
    return str(path)


# What is read


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("unit", "documents"),
    [
        (Unit.file, ["a\u2028b\r\n\n\n c\n"]),
        (Unit.line, ["a\u2028b", " c"]),
        (Unit.paragraph, ["a\u2028b", " c"]),
    ],
)
def test_a_document_is_a_file_or_a_line_or_a_paragraph(tmp_path, unit, documents, suffix):
    file = write(tmp_path / f"a.txt{suffix}", "\ufeffa\u2028b\r\n\n\n c\n")
    assert read(config_of(file, unit=unit)) == documents


def test_a_paragraph_keeps_its_lines(tmp_path):
    file = write(tmp_path / "a.txt", "\n \none\n  two\n\t\nthree")
    assert read(config_of(file, unit=Unit.paragraph)) == ["one\n  two", "three"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".ndjson", ".json"])
def test_json_lines(tmp_path, suffix):
    lines = [json.dumps({"text": "one\ntwo", "id": 1}), "", json.dumps({"text": "\U0001f600"}, ensure_ascii=True)]
    file = write(tmp_path / f"a{suffix}", "\n".join(lines))
    assert read(config_of(file)) == ["one\ntwo", "\U0001f600"]


def test_parquet(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", "content", [f"document\n{i}" for i in range(300)])
    assert read(config_of(file, text_field="content")) == [f"document\n{i}" for i in range(300)]
    with pytest.raises(UserError, match=r"^corpus\.text_field:.*content"):
        read(config_of(file))


def test_nested_fields_by_a_dotted_path_and_fields_whose_names_have_dots(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"a": {"b": "nested"}}\n{"a.b": "plain"}\n')
    assert read(config_of(file, text_field="a.b")) == ["nested", "plain"]
    file = write_parquet(tmp_path / "a.parquet", "a", [{"b": "nested"}])
    assert read(config_of(file, text_field="a.b")) == ["nested"]


def test_a_folder_is_read_through_by_suffix_in_the_order_of_names(tmp_path):
    for name in ("b.py", "a/z.py", "a/b/c.py.gz", "a-b/d.py", "a/no.txt", ".git/e.py", "__pycache__.py", "a/.f.py"):
        write(tmp_path / name, name)
    config = config_of(str(tmp_path), suffixes=[".py"])
    assert read(config) == ["__pycache__.py", "a/b/c.py.gz", "a/z.py", "a-b/d.py", "b.py"]
    with pytest.raises(UserError, match=r"^corpus\.train\.text:.*\.rs"):
        read(config_of(str(tmp_path), suffixes=[".rs"]))


def test_patterns_are_read_in_their_order_and_no_file_twice(tmp_path):
    for name in ("a/1.txt", "a/2.txt", "b/0.txt", "c[1].txt"):
        write(tmp_path / name, name)
    patterns = [f"{tmp_path}/b/*.txt", f"{tmp_path}/**/[012].txt", f"{tmp_path}/c[1].txt"]
    assert read(config_of(patterns)) == ["b/0.txt", "a/1.txt", "a/2.txt", "c[1].txt"]


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    write(tmp_path / "a.txt.gz", "a")
    with pytest.raises(UserError, match=r"^corpus\.train\.text:.*\.gz is there"):
        read(config_of(f"{tmp_path}/a.txt"))
    with pytest.raises(UserError, match=r"^corpus\.test\.text:"):
        read(config_of(f"{tmp_path}/a.txt.gz", test=f"{tmp_path}/*.md"), "test")


def test_rows_of_a_data_set(tmp_path):
    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set/train-00000.parquet", "text", ["one\nline", "two"])
    config = DocumentsConfig(
        kind=DocumentsKind.dataset,
        dataset=str(tmp_path / "set"),
        train=SourceConfig(split="train"),
        held_out=NOTHING,
    )
    assert read(config) == ["one\nline", "two"]
    assert documents_fingerprint(config)["dataset"] == str(tmp_path / "set")


def test_pythons_own_library_is_the_default():
    dropped = Dropped()
    config = DocumentsConfig()
    splits = {split: read(config, split, dropped) for split in config.splits}
    assert list(splits) == ["train", "validation", "test"]
    train = splits["train"]
    assert len(train) > 300
    assert min(len(texts) for texts in splits.values()) > 10
    assert not set(train) & {*splits["validation"], *splits["test"]}
    everything = "".join("".join(texts) for texts in splits.values())
    assert "class JSONDecoder" in everything
    assert "unittest.main()\n" not in everything[-100:]
    assert read(config, "validation") == splits["validation"]
    assert set(dropped.counts) <= {"empty", "invalid_utf8", "nul"}
    assert documents_fingerprint(config) == documents_fingerprint(config)


def test_urls_become_local_files(tmp_path):
    file = write(tmp_path / "far/a.txt", "far")
    near = write(tmp_path / "near.txt", "near")
    config = config_of([f"file://{file}", near])
    with pytest.raises(UserError, match=r"^corpus\.train\.text:"):
        read(config)
    assert read(with_local_documents(config, tmp_path / "copies")) == ["far", "near"]
    with pytest.raises(UserError, match=r"^corpus\.train\.text:.*pattern"):
        with_local_documents(config_of("s3://bucket/*.txt"), tmp_path)


# What is held out


def test_held_out_documents_go_by_their_content_alone(tmp_path):
    texts = [f"document {i}" for i in range(2000)]
    held_out = HeldOutConfig(validation=0.1, test=0.05)
    one = config_of(write(tmp_path / "a.txt", "\n".join(texts)), unit=Unit.line, held_out=held_out)
    other = config_of(
        write(tmp_path / "b.txt", "\n".join(["first", *texts[::-1], *texts])), unit=Unit.line, held_out=held_out
    )
    splits = {split: read(one, split) for split in ("train", "validation", "test")}
    assert sorted(text for part in splits.values() for text in part) == sorted(texts)
    assert 150 < len(splits["validation"]) < 250
    assert 70 < len(splits["test"]) < 130
    dropped = Dropped()
    again = read(other, "validation", dropped)
    assert sorted(set(again) - {"first"}) == sorted(splits["validation"])
    assert dropped.counts == {"held_out_repeated": len(splits["validation"])}
    assert not set(read(other)) & {*read(other, "validation"), *read(other, "test")}


def test_the_tail_is_the_last_part_of_each_document_as_nanogpt_takes_it(tmp_path):
    text = "".join(chr(0x100 + i) for i in range(1009))
    held_out = HeldOutConfig(HeldOutBy.tail, validation=0.1, test=0.0)
    config = config_of(write(tmp_path / "a.txt", text), held_out=held_out)
    assert config.splits == ("train", "validation")
    assert read(config) == [text[: int(1009 * 0.9)]]
    assert read(config, "validation") == [text[int(1009 * 0.9) :]]
    config = config_of(str(tmp_path / "a.txt"), held_out=HeldOutConfig(HeldOutBy.tail, 0.1, 0.1))
    assert [read(config, split) for split in config.splits] == [[text[:807]], [text[807:908]], [text[908:]]]


def test_shakespeare_is_cut_where_nanogpt_cuts(corpora):
    file = corpora / "lm-text/tinyshakespeare.txt"
    config = config_of(str(file), held_out=HeldOutConfig(HeldOutBy.tail, 0.1, 0.0))
    assert [len(read(config, split)[0]) for split in config.splits] == [1_003_854, 111_540]


def test_documents_of_validation_and_test_are_left_out_of_train(tmp_path):
    config = config_of(
        write(tmp_path / "train.txt", "a\nb\nc\nb\nd\n"),
        validation=write(tmp_path / "validation.txt", "b\nb\nx\n"),
        test=write(tmp_path / "test.txt", "d\nb\n"),
        unit=Unit.line,
    )
    dropped = Dropped()
    assert read(config, "train", dropped) == ["a", "c"]
    assert dropped.counts == {"in_validation": 2, "in_test": 1}
    assert "train.txt line 2" in dropped.examples["in_validation"]
    assert read(config, "validation") == ["b", "b", "x"]  # never filtered
    assert list(read_documents(config, "train", Dropped(), evaluation_hashes(config))) == ["a", "c"]


def test_a_split_without_documents_says_why(tmp_path):
    config = config_of(write(tmp_path / "a.txt", "one"), held_out=HeldOutConfig(validation=0.0001, test=0))
    with pytest.raises(UserError, match=r"^corpus\.held_out\.validation:"):
        refuse_nothing_left(config, "validation", len(read(config, "validation")), Dropped())
    dropped = Dropped()
    config = config_of(write(tmp_path / "a.txt", ""))
    with pytest.raises(UserError, match=r"^corpus\.train:[\s\S]*empty: .*a\.txt"):
        refuse_nothing_left(config, "train", len(read(config, "train", dropped)), dropped)


# What is no document

BAD = {
    "nul": (".txt", b"a line of text\nab\0c", r"a\.txt line 2: .*byte 3"),
    "invalid_utf8": (".txt", b"fine\nfine\n\xe4hm", r"a\.txt line 3: 0xe4 .*byte 1"),
    "binary": (".txt", b"\0\1\2\3" * 100, r"a\.txt is binary"),
    "broken_json": (".jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl line 2: is no JSON"),
    "missing_field": (".jsonl", b'{"text": "a"}\n{"body": "b"}\n', r"a\.jsonl line 2: .*'text'.*body"),
}
MORE_BAD = [
    ("invalid_utf8", ".jsonl", b'{"text": "\\ud800"}', r"a\.jsonl line 1: .*surrogate"),
    ("invalid_utf8", ".jsonl", b'{"text": "\xff"}', r"a\.jsonl line 1: 0xff"),
    ("nul", ".jsonl", b'{"text": "\\u0000"}', r"a\.jsonl line 1: .*NUL"),
    ("broken_json", ".jsonl", b"[" * 100_000, r"a\.jsonl line 1: "),
    ("broken_json", ".json", b'[\n{"text": "a"}\n]', r"a\.json line 1: .*whole object in each line"),
    ("missing_field", ".jsonl", b'["text"]', r"a\.jsonl line 1: .*list"),
    ("missing_field", ".jsonl", b'{"text": null}', r"a\.jsonl line 1: .*nothing"),
    ("missing_field", ".jsonl", b'{"text": 5}', r"a\.jsonl line 1: .*int"),
    ("binary", ".txt", b"PAR1\x15" + b"x" * 90, r"a\.txt is a parquet file"),
    ("binary", ".txt", "ab".encode("utf-16"), r"a\.txt is text in UTF-16"),
]


@pytest.mark.parametrize(
    ("reason", "suffix", "data", "message"), [*((reason, *rest) for reason, rest in BAD.items()), *MORE_BAD]
)
def test_what_is_no_text_is_an_error_or_a_counted_drop(tmp_path, reason, suffix, data, message):
    write(tmp_path / f"a{suffix}", data)
    write(tmp_path / f"b{suffix}", '{"text": "good"}')
    pattern = f"{tmp_path}/*"
    with pytest.raises(UserError, match=message):
        read(config_of(pattern))
    dropped = Dropped()
    config = config_of(pattern, invalid=Invalid.drop)
    assert read(config, "train", dropped)[-1] == ("good" if suffix.startswith(".json") else '{"text": "good"}')
    assert reason in dropped.counts
    assert tmp_path.name in dropped.examples[reason]


@pytest.mark.parametrize("unit", Unit)
def test_units_name_the_line_of_a_fault(tmp_path, unit):
    file = write(tmp_path / "a.txt", b"one\n\ntwo\nth\xffree\nfour\n\nfive\n")
    with pytest.raises(UserError, match=r"a\.txt line 4: 0xff .*byte 3"):
        read(config_of(file, unit=unit))
    dropped = Dropped()
    rest = {Unit.file: [], Unit.line: ["one", "two", "four", "five"], Unit.paragraph: ["one", "five"]}
    rest[Unit.sentence] = rest[Unit.paragraph]  # no line here ends a sentence
    assert read(config_of(file, unit=unit, invalid=Invalid.drop), "train", dropped) == rest[unit]
    assert dropped.counts["invalid_utf8"] == 1


def test_empty_documents_are_counted(tmp_path):
    write(tmp_path / "a.txt", "")
    write(tmp_path / "b.txt", " \n\t\n")
    write(tmp_path / "c.txt", "c")
    dropped = Dropped()
    assert read(config_of(f"{tmp_path}/*.txt"), "train", dropped) == ["c"]
    assert dropped.counts == {"empty": 2}
    assert "a.txt" in dropped.examples["empty"]


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".txt.gz"])
def test_a_line_of_a_hundred_megabytes_is_dropped_without_being_held_in_memory(tmp_path, unit, suffix):
    end = b'{"text": "end"}\n'
    file = write(tmp_path / f"a{suffix}", b"x" * 100_000_000 + b"\n\n" + end)
    dropped = Dropped()
    tracemalloc.start()
    try:
        documents = read(config_of(file, unit=unit, max_bytes=1_000_000), "train", dropped)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    whole = unit is Unit.file and suffix != ".jsonl"
    assert documents == ([] if whole else ["end"] if suffix == ".jsonl" else [end.decode().strip()])
    assert dropped.counts["too_long"] == 1
    assert "a." in dropped.examples["too_long"]
    assert peak < 20_000_000


@pytest.mark.parametrize("unit", Unit)
def test_the_limit_is_exact(tmp_path, unit):
    for size, kept in ((9, True), (10, True), (11, False)):
        for end in ("", "\n", "\r\n") if unit is not Unit.file else ("",):
            file = write(tmp_path / "a.txt", "é" * (size // 2) + "x" * (size % 2) + end)
            assert bool(read(config_of(file, unit=unit, max_bytes=10))) is kept
    file = write(tmp_path / "b.txt", "1234\n6789a\n\n1234\n6789ab\n")
    assert read(config_of(file, unit=Unit.paragraph, max_bytes=10)) == ["1234\n6789a"]


def test_files_that_are_not_whole_are_refused(tmp_path):
    write(tmp_path / "a.txt.gz", "text " * 1000)
    (tmp_path / "a.txt.gz").write_bytes((tmp_path / "a.txt.gz").read_bytes()[:20])
    with pytest.raises(UserError, match=r"a\.txt\.gz: not a whole gzip file"):
        read(config_of(f"{tmp_path}/*.gz"))
    write(tmp_path / "a.parquet", b"PAR1 nothing")
    with pytest.raises(UserError, match=r"a\.parquet: is not a whole parquet file"):
        read(config_of(f"{tmp_path}/*.parquet"))


# Settings and keys


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("name", {"name": "a/b"}),
        ("max_bytes", {"max_bytes": 0}),
        ("text_field", {"text_field": ""}),
        ("suffixes", {"suffixes": ["py"]}),
        ("kind", {"train": SourceConfig("a.txt")}),
        ("train", {"kind": DocumentsKind.text}),
        ("train", {"kind": DocumentsKind.dataset, "dataset": "x", "train": SourceConfig("a.txt")}),
        ("dataset", {"kind": DocumentsKind.dataset, "train": SourceConfig(split="train")}),
        ("held_out.by", {"unit": Unit.line, "held_out": HeldOutConfig(HeldOutBy.tail)}),
    ],
)
def test_impossible_settings_are_refused_by_name(key, settings):
    with pytest.raises(ValueError, match=f"^{key}:"):
        DocumentsConfig(**settings)


@pytest.mark.parametrize(("key", "shares"), [("validation", (1.0, 0)), ("test", (0, -0.1)), ("test", (0.6, 0.5))])
def test_impossible_shares_are_refused_by_name(key, shares):
    with pytest.raises(ValueError, match=f"^{key}:"):
        HeldOutConfig(HeldOutBy.documents, *shares)


@pytest.mark.parametrize("text", [5, [1], "", [""]])
def test_patterns_are_texts(text):
    with pytest.raises(ValueError, match=r"^text:"):
        SourceConfig(text)


def test_the_fingerprint_is_of_contents_and_not_of_folders(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / folder / "1.txt", "one")
        write(tmp_path / folder / "2.txt", "two")
    a, b = (config_of(f"{tmp_path}/{folder}/*.txt") for folder in "ab")
    assert documents_fingerprint(a) == documents_fingerprint(b)
    write(tmp_path / "b/2.txt", "other")
    assert documents_fingerprint(a) != documents_fingerprint(b)
    assert documents_key(a) == documents_key(b)
    keys = [
        documents_key(config_of("x", **settings))
        for settings in ({}, {"unit": Unit.line}, {"max_bytes": 5}, {"held_out": HeldOutConfig()}, {"text_field": "t"})
    ]
    assert all(keys[i] != keys[j] for i in range(5) for j in range(i))
