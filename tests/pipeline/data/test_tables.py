import gzip

import pytest

from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind, SplitConfig
from transloom.pipeline.data.held_out import read_pairs
from transloom.pipeline.errors import UserError

NOTHING = ["None", "null", "NA", "n/a", "nan", "NULL", "N/A", "NaN", "-nan", "#N/A", "<NA>", "1.#IND", "True", "", " "]


def table_corpus(kind, path, **settings):
    split = SplitConfig(split="train")
    defaults = {"train": split, "validation": split, "test": split, "data_files": {"train": str(path)},
                "source_column": "en", "target_column": "de"}  # fmt: skip
    return CorpusConfig(kind=CorpusKind.dataset, name="a", dataset=str(kind), **defaults | settings)


def read(kind, path, text, **settings):
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return list(read_pairs(table_corpus(kind, path, **settings), "test"))


@pytest.mark.parametrize(
    ("kind", "name", "mark"),
    [
        ("csv", "a.csv", ","),
        ("csv", "a.csv.gz", ","),
        ("csv", "a.tsv", "\t"),
        ("csv", "a.tsv.gz", "\t"),
        ("tsv", "a.tsv", "\t"),
        ("tsv", "a.txt", "\t"),
    ],
)
def test_every_value_is_the_text_that_stands_there(tmp_path, kind, name, mark):
    texts = [*NOTHING, "1", "007", "1e5", "2020-01-01", "a  b ", "¼ “x”", "x\u2028y\u0085z"]
    lines = [f"en{mark}de{mark}id", *(f"{text}{mark}{text}!{mark}{i}" for i, text in enumerate(texts))]
    expected = [(text, f"{text}!") for text in texts]
    for end in ("\n", "\r\n"):
        assert read(kind, tmp_path / name, (end.join(lines) + end).encode()) == expected
    assert read(kind, tmp_path / name, b"\xef\xbb\xbf" + "\n".join(lines).encode()) == expected


def test_a_folder_of_csv_and_tsv_files_is_read_as_text_too(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "train.csv").write_text('en,de\nNone,"5, 6"\n7,NA\n')
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "train.tsv").write_text('en\tde\n"None\t5\nx\t"NA\n')
    corpus = table_corpus(tmp_path / "c", "", data_files={})
    assert list(read_pairs(corpus, "train")) == [("None", "5, 6"), ("7", "NA")]
    corpus = table_corpus(tmp_path / "t", "", data_files={})
    assert list(read_pairs(corpus, "train")) == [('"None', "5"), ("x", '"NA')]


def test_quotation_marks_quote_in_csv_alone(tmp_path):
    quoted = b'en,de\n"a, ""b""","c\r\nd"\n5" pipe,e\n'
    assert read("csv", tmp_path / "a.csv", quoted) == [('a, "b"', "c d"), ('5" pipe', "e")]
    lone = b'en\tde\n"a\tb\nc\t"d\n\n"e"\t"f\n'
    assert read("tsv", tmp_path / "a.tsv", lone) == [('"a', "b"), ("c", '"d'), ('"e"', '"f')]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", b"en,de\na,b\nc,d,e\n", r"a\.csv line 3: 3 fields, .* has 2 \('en', 'de'\)"),
        ("a.csv", b"en,de\na,b\nc\n", r"a\.csv line 3: 1 fields"),
        ("a.csv", b'en,de\n"x\ny",b\n"c" d,e\n', r"a\.csv line 4: not a row of CSV"),
        ("a.csv", b'en,de\na,b\n"c,d\n' + b"e,f\n" * 20, r"a\.csv line 3: not a row of CSV"),
        ("a.csv", b"en,de\ra,b\rc,d\r", r"a\.csv: .*carriage returns alone"),
        ("a.tsv", b"en\tde\na\tb\nc\td\te\n", r"a\.tsv line 3: 3 fields"),
        ("a.tsv", b"en\ten\na\tb\n", r"a\.tsv line 1: .*'en' twice"),
        ("a.csv", b"en,de\na,b\nc,d\xff\n", r"a\.csv line 3, de: byte 2 .*0xff.*UTF-8"),
        ("a.csv", b"en;de\na;b\n", r"corpus\.source_column: no column 'en'; the data set has en;de .*commas"),
        ("a.csv", b"A dog.,Ein Hund.\na,b\n", r"no column 'en'.*a\.csv line 2.*first line"),
        ("a.csv", gzip.compress(b"en,de\na,b\n", mtime=0), r"a\.csv is compressed by gzip"),
        ("a.csv", "en,de\na,b\n".encode("utf-16"), r"a\.csv is text in UTF-16"),
        ("a.csv.gz", gzip.compress(b"en,de\n" * 999, mtime=0)[:-12], r"a\.csv\.gz: not a whole gzip file"),
    ],
)
def test_a_fault_is_told_with_file_and_line(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError, match=message) as told:
        list(read_pairs(table_corpus("csv", tmp_path / name), "train"))
    assert "network" not in str(told.value)


def test_a_row_far_below_is_told_too(tmp_path):
    text = b"en,de\n" + b"".join(b"line %d,Zeile %d\n" % (i, i) for i in range(11_500)) + b"a,b,extra\n"
    (tmp_path / "a.csv").write_bytes(text)
    with pytest.raises(UserError, match=r"a\.csv line 11502: 3 fields"):
        list(read_pairs(table_corpus("csv", tmp_path / "a.csv"), "train"))


def test_a_split_without_a_file_is_told(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"en,de\na,b\n")
    with pytest.raises(UserError, match=r"^corpus\.data_files: has no 'all', only train"):
        list(read_pairs(table_corpus("csv", tmp_path / "a.csv", train=SplitConfig(split="all")), "train"))


@pytest.mark.parametrize(("kind", "mark"), [("csv", b","), ("tsv", b"\t")])
def test_carriage_returns_alone_are_told_as_such(tmp_path, kind, mark):
    text = b"\r".join(b"a" + mark + b"b" for _ in range(9))
    with pytest.raises(UserError, match=rf"a\.{kind}: .*carriage returns alone.*tr '"):
        read(kind, tmp_path / f"a.{kind}", text)
