"""Tests of reading records."""

import gzip
import json
import lzma
from pathlib import Path

import pytest

from transloom.pipeline.data.records import Record, RecordSource, read_records, records_fingerprint
from transloom.pipeline.errors import UserError

RECORDS = [{"text": "ein Satz: ü\u2028", "label": "1"}, {"text": "a, b", "label": "0"}]


def _texts(
    source: RecordSource, fields: tuple[str, ...] = ("text", "label"), **options: object
) -> list[dict[str, str]]:
    return [record.texts for record in read_records(source, fields, "corpus.train", **options)]  # type: ignore[arg-type]


def _written(folder: Path, name: str) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    file = folder / name
    match file.suffix:
        case ".gz":
            file.write_bytes(gzip.compress(lines))
        case ".xz":
            file.write_bytes(lzma.compress(lines))
        case ".zst":
            import pyarrow

            with pyarrow.CompressedOutputStream(str(file), "zstd") as stream:
                stream.write(lines)
        case ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), file)
        case ".tsv":
            file.write_text("label\ttext\n" + "".join(f"{one['label']}\t{one['text']}\n" for one in RECORDS))
        case ".csv":
            file.write_text("label,text\n" + "".join(f'{one["label"]},"{one["text"]}"\n' for one in RECORDS))
        case _:
            file.write_bytes(lines)
    return file


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.xz", "json.zst", "parquet", "tsv", "csv"])
def test_the_same_records_are_read_from_every_format(tmp_path: Path, ending: str) -> None:
    assert _texts(RecordSource(str(_written(tmp_path, f"a.{ending}")))) == RECORDS


def test_plain_files_side_by_side_make_a_record_of_each_line(tmp_path: Path) -> None:
    for name in ("text", "label"):
        (tmp_path / name).write_text("".join(record[name] + "\n" for record in RECORDS))
    source = RecordSource({"text": str(tmp_path / "text"), "label": str(tmp_path / "label")})
    assert _texts(source) == RECORDS
    assert list(read_records(source, ("text",), "corpus.train", lists=("label",)))[1] == Record(
        f"{tmp_path / 'text'}, line 2", {"text": "a, b"}, {"label": ["0"]}
    )


def test_a_table_without_a_header_has_its_columns_by_number(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a good film\t1\na bad one\t0\n")
    assert _texts(RecordSource(str(tmp_path / "a.tsv")), columns=("text", "label")) == [
        {"text": "a good film", "label": "1"},
        {"text": "a bad one", "label": "0"},
    ]


def test_several_files_are_read_in_their_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    source = RecordSource([str(tmp_path / "c.jsonl"), str(tmp_path / "[ab].jsonl")])
    assert [texts["text"] for texts in _texts(source, ("text",))] == ["c", "a", "b"]


def test_nested_fields_numbers_and_lists(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"in": {"text": "x"}, "label": 3, "answers": ["a", "b"]}\n')
    (record,) = read_records(
        RecordSource(str(tmp_path / "a.jsonl")), ("in.text", "label"), "corpus.train", lists=("answers",)
    )
    assert (record.texts, record.lists) == ({"in.text": "x", "label": "3"}, {"answers": ["a", "b"]})


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2: is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n["x"]\n', r"a\.jsonl, line 2: must be an object"),
        ("a.jsonl", b'{"text": "x"}\n{"other": "x"}\n', r"a\.jsonl, line 2: no field 'text'"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}\n', r"a\.jsonl, line 2: 'text' holds nothing"),
        ("a.jsonl", b'{"text": true}\n', r"a\.jsonl, line 1: 'text' holds a bool"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"a\.jsonl, line 2: is not UTF-8"),
        ("a.jsonl", b'{"text": "a\\u0000"}\n', r"a\.jsonl, line 1: has a NUL"),
        ("a.tsv", b"text\tlabel\nx\t1\ny\n", r"a\.tsv line 3: 1 fields"),
        ("a.tsv", b"sentence\tlabel\nx\t1\n", r"a\.tsv line 2: no field 'text'"),
        ("a.tsv", b"text\tlabel\nx\t1\n\xff\t1\n", r"a\.tsv line 3: is not UTF-8"),
        ("a.csv", b'text\n"x\n', r"a\.csv line 2: "),
        ("a.parquet", b"PAR1", r"a\.parquet: is not a whole parquet file"),
        ("a.jsonl.xz", b'{"text": "x"}\n', r"a\.jsonl\.xz: not a whole xz file"),
        ("a.jsonl.zst", b'{"text": "x"}\n', r"a\.jsonl\.zst: not a whole zstd file"),
        ("a.jsonl.gz", b'{"text": "x"}\n', r"a\.jsonl\.gz: not a whole gzip file"),
        ("a.txt", b"x\n", r"corpus\.train\.files: .*a\.txt ends in \.txt"),
    ],
)
def test_faults_name_the_file_and_the_line(tmp_path: Path, name: str, content: bytes, place: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=place):
        _texts(RecordSource(str(tmp_path / name)), ("text",))


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.xz", "jsonl.zst"])
def test_a_truncated_file_is_refused(tmp_path: Path, ending: str) -> None:
    file = _written(tmp_path, f"a.{ending}")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"not a whole"):
        _texts(RecordSource(str(file)))


def test_unequal_numbers_of_lines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x\ny\n")
    (tmp_path / "b").write_text("x\n")
    with pytest.raises(UserError, match=r"^corpus\.train\.files: .*a has 2, .*b has 1"):
        _texts(RecordSource({"text": str(tmp_path / "a"), "label": str(tmp_path / "b")}))


@pytest.mark.parametrize(
    ("files", "key"),
    [
        ("nowhere*.jsonl", r"^corpus\.train\.files: no file"),
        ({"text": "nowhere", "label": "nowhere"}, r"^corpus\.train\.files\.text: no such file"),
        ({"text": "nowhere"}, r"^corpus\.train\.files: names no file of the field 'label'"),
    ],
)
def test_missing_files_are_refused(files: object, key: str) -> None:
    with pytest.raises(UserError, match=key):
        _texts(RecordSource(files))


@pytest.mark.parametrize("files", [3, [""], {"text": 3}, [["a"]]])
def test_files_of_another_type_are_refused(files: object) -> None:
    with pytest.raises(ValueError, match=r"^files:"):
        RecordSource(files)


def test_the_fingerprint_follows_the_content_alone(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text('{"text": "x"}\n')
    other.write_text('{"text": "x"}\n')
    before = records_fingerprint(RecordSource(str(one)), "corpus.train")
    assert before == records_fingerprint(RecordSource(str(other)), "corpus.train")
    one.write_text('{"text": "y"}\n')
    assert before != records_fingerprint(RecordSource(str(one)), "corpus.train")
