import gzip
import json
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from transloom.pipeline.data.corpus import corpus_fingerprint, count_pairs
from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind, SplitConfig
from transloom.pipeline.data.held_out import held_out_pairs, read_pairs
from transloom.pipeline.data.lines import MAX_LINE_BYTES, count_lines, read_lines
from transloom.pipeline.errors import UserError


def text_corpus(folder: Path, source: bytes, target: bytes, **settings) -> CorpusConfig:
    (folder / "a.en").write_bytes(source)
    (folder / "a.de").write_bytes(target)
    files = SplitConfig(source=str(folder / "a.en"), target=str(folder / "a.de"))
    everywhere = {"train": files, "validation": files, "test": files} | settings
    return CorpusConfig(kind=CorpusKind.text, name="a", **everywhere)


def test_a_line_ends_at_the_line_feed_only(tmp_path):
    lines = ["a\u2028b", "c\u0085d", "e\x0bf\x0cg", "h\ri", "\x1c\x1d\x1e", ""]
    text = "".join(line + "\n" for line in lines).encode()
    corpus = text_corpus(tmp_path, text, b"1\n2\n3\n4\n5\n6\n")
    assert [pair.source for pair in read_pairs(corpus, "train")] == lines
    assert count_lines(tmp_path / "a.en") == text.count(b"\n") == 6


def test_carriage_return_and_byte_order_mark_are_stripped_once(tmp_path):
    source = b"\xef\xbb\xbfone\r\n\xef\xbb\xbftwo\r\r\n\r\n last "
    corpus = text_corpus(tmp_path, source, b"1\n2\n3\n4\n")
    assert list(read_pairs(corpus, "test")) == [("one", "1"), ("\ufefftwo\r", "2"), ("", "3"), (" last ", "4")]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_unequal_line_counts_are_refused_with_both_counts(tmp_path, split):
    corpus = text_corpus(tmp_path, b"a\nb\nc\n", b"1\n2\n")
    with pytest.raises(UserError, match=rf"corpus\.{split}.*a\.en has 3 .*a\.de has 2"):
        next(read_pairs(corpus, split))


def test_a_last_line_without_a_line_feed_counts(tmp_path):
    corpus = text_corpus(tmp_path, b"a\nb", b"1\n2\n")
    assert list(read_pairs(corpus, "train")) == [("a", "1"), ("b", "2")]
    assert count_pairs(corpus, "train") == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"ab\xffcd", r"a\.de line 2: byte 3 of the line \(0xff\) is not valid UTF-8"),
        (b"\xed\xa0\x80", r"a\.de line 2: byte 1 .*UTF-8"),  # a surrogate
        (b"\xc0\xaf", r"a\.de line 2: byte 1 .*UTF-8"),  # an overlong slash
        (b"ab\0", r"a\.de line 2: a NUL byte at byte 3"),
        (b"x" * (MAX_LINE_BYTES + 1), r"a\.de line 2: longer than"),
    ],
)
def test_what_is_no_text_is_refused_with_file_and_line(tmp_path, line, message):
    corpus = text_corpus(tmp_path, b"a\nb\nc\n", b"1\n" + line + b"\n3\n")
    with pytest.raises(UserError, match=message):
        list(read_pairs(corpus, "train"))
    reasons = Counter()
    kept = list(read_pairs(corpus, "train", lambda reason, _: reasons.update([reason])))
    assert kept == [("a", "1"), ("c", "3")]
    assert reasons.total() == 1


def test_of_the_utf8_stress_file_exactly_the_invalid_lines_are_left_out(tmp_path, corpora):
    path = corpora / "unicode-stress" / "utf8tests.bin"
    lines = path.read_bytes().split(b"\n")[:-1]
    corpus = text_corpus(tmp_path, path.read_bytes(), b"".join(b"%d\n" % i for i in range(len(lines))))
    dropped = Counter()
    kept = list(read_pairs(corpus, "train", lambda reason, _: dropped.update([reason])))
    assert [lines[int(pair.target)].removesuffix(b"\r") for pair in kept] == [pair.source.encode() for pair in kept]
    assert len(kept) + dropped.total() == len(lines)
    assert dropped["invalid_utf8"] > 20


def test_long_lines_are_never_held_in_memory(tmp_path):
    path = tmp_path / "long"
    with open(path, "wb") as file:
        for _ in range(3):
            file.write(b"short\n")
            for _ in range(20):
                file.write(b"x" * (1 << 20))
            file.write(b"\n")
    tracemalloc.start()
    try:
        lengths = [len(line) for line in read_lines(path)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert lengths == [5, MAX_LINE_BYTES + 1] * 3
    assert count_lines(path) == 6
    assert peak < 6 * MAX_LINE_BYTES  # the lines are 20 times that limit


def test_the_longest_line_that_fits_is_whole(tmp_path):
    path = tmp_path / "long"
    path.write_bytes(b"x" * MAX_LINE_BYTES + b"\n" + b"y" * MAX_LINE_BYTES + b"\r\n" + b"z" * MAX_LINE_BYTES)
    assert [(line[:1], len(line)) for line in read_lines(path)] == [
        (b"x", MAX_LINE_BYTES),
        (b"y", MAX_LINE_BYTES + 1),  # too long with its carriage return
        (b"z", MAX_LINE_BYTES),
    ]


def test_compressed_files_are_read_under_either_name(tmp_path):
    corpus = text_corpus(tmp_path, b"a\nb\n", b"1\n2\n")
    plain = list(read_pairs(corpus, "train"))
    with gzip.open(tmp_path / "a.en.gz", "wb") as file:
        file.write((tmp_path / "a.en").read_bytes())
    (tmp_path / "a.en").unlink()
    assert list(read_pairs(corpus, "train")) == plain
    by_name = SplitConfig(source=str(tmp_path / "a.en.gz"), target=str(tmp_path / "a.de"))
    assert list(read_pairs(CorpusConfig(kind=CorpusKind.text, name="a", train=by_name, test=by_name,
                                        validation=by_name), "train")) == plain  # fmt: skip


def test_a_cut_compressed_file_is_told(tmp_path):
    corpus = text_corpus(tmp_path, b"", b"1\n" * 1000)
    (tmp_path / "a.en").unlink()
    (tmp_path / "a.en.gz").write_bytes(gzip.compress(os.urandom(5000))[:-100])
    with pytest.raises(UserError, match=r"a\.en\.gz: not a whole gzip file"):
        list(read_pairs(corpus, "train"))
    (tmp_path / "a.en.gz").write_bytes(b"plain text")
    with pytest.raises(UserError, match=r"a\.en\.gz: not a whole gzip file"):
        list(read_pairs(corpus, "train"))


def test_a_missing_file_names_the_key_to_set(tmp_path):
    nowhere = SplitConfig(source=str(tmp_path / "no.en"), target=str(tmp_path / "no.de"))
    corpus = CorpusConfig(kind=CorpusKind.text, name="a", train=nowhere, validation=nowhere, test=nowhere)
    with pytest.raises(UserError, match=r"corpus\.train\.source: no such file: .*no\.en.*Set corpus\.train\.source="):
        next(read_pairs(corpus, "train"))
    corpus = CorpusConfig(kind=CorpusKind.dataset, name="a", dataset="x/y", path=str(tmp_path), train=nowhere)
    with pytest.raises(UserError, match=r"corpus\.path="):
        corpus_fingerprint(corpus)


def numbered(folder, count, **settings):
    lines = [f"line {i}\n".encode() for i in range(count)]
    return text_corpus(folder, b"".join(lines), b"".join(lines), **settings)


def test_held_out_pairs_are_disjoint_from_train_and_always_the_same(tmp_path):
    corpus = numbered(tmp_path, 100, validation=SplitConfig(), test=SplitConfig(), held_out=10)
    splits = {split: list(read_pairs(corpus, split)) for split in ("train", "validation", "test")}
    assert {split: len(pairs) for split, pairs in splits.items()} == {"train": 80, "validation": 10, "test": 10}
    assert len({pair for pairs in splits.values() for pair in pairs}) == 100
    assert splits["train"] == sorted(splits["train"], key=lambda pair: int(pair.source.split()[1]))
    # The same pairs in another order, some of them twice and with other whitespace: the same ones are held out.
    lines = [f" line  {i}\n".encode() for i in reversed(range(100))] * 2
    again = text_corpus(tmp_path, b"".join(lines), b"".join(lines), validation=SplitConfig(), test=SplitConfig(),
                        held_out=10)  # fmt: skip
    held_out = held_out_pairs(again)
    for split in ("validation", "test"):
        assert [" ".join(pair.source.split()) for pair in held_out[split]] == [pair.source for pair in splits[split]]
    assert len(list(read_pairs(again, "train", held_out=held_out))) == 160


def test_only_what_is_lacking_is_held_out_and_never_an_empty_pair(tmp_path):
    files = SplitConfig(source=str(tmp_path / "a.en"), target=str(tmp_path / "a.de"))
    corpus = text_corpus(tmp_path, b"\n" * 50 + b"a\nb\nc\nd\n", b"\n" * 50 + b"1\n2\n3\n4\n", train=files,
                         test=SplitConfig(), held_out=2)  # fmt: skip
    held_out = held_out_pairs(corpus)
    assert list(held_out) == ["test"]
    assert len(held_out["test"]) == 2
    assert all(pair.source for pair in held_out["test"])
    assert len(list(read_pairs(corpus, "train"))) == 52
    assert len(list(read_pairs(corpus, "validation"))) == 54


def test_too_few_pairs_to_hold_out_are_told(tmp_path):
    corpus = numbered(tmp_path, 39, validation=SplitConfig(), test=SplitConfig(), held_out=10)
    with pytest.raises(UserError, match=r"39 pairs.*corpus\.held_out"):
        next(read_pairs(corpus, "validation"))


@pytest.mark.parametrize(("different", "held_out"), [(50, 25), (62, 30), (79, 20)])
def test_copies_count_once_when_pairs_are_held_out(tmp_path, different, held_out):
    source = b"".join(b"line %d\n" % (i % different) for i in range(2000))
    target = b"".join(b"Zeile %d\n" % (i % different) for i in range(2000))
    corpus = text_corpus(tmp_path, source, target, validation=SplitConfig(), test=SplitConfig(), held_out=held_out)
    with pytest.raises(UserError, match=rf"2,000 pairs.* {different} different .*corpus\.held_out={different // 4} or"):
        held_out_pairs(corpus)
    fits = text_corpus(tmp_path, source, target, validation=SplitConfig(), test=SplitConfig(), held_out=different // 4)
    train = {pair.source for pair in read_pairs(fits, "train")}
    assert len(train) == different - 2 * (different // 4)


def test_sources_with_many_translations_count_once_when_pairs_are_held_out(tmp_path):
    source = b"".join(b"line %d\n" % (i % 62) for i in range(2000))  # 62 sources, 2,000 different pairs
    target = b"".join(b"Zeile %d\n" % i for i in range(2000))
    corpus = text_corpus(tmp_path, source, target, validation=SplitConfig(), test=SplitConfig(), held_out=30)
    with pytest.raises(UserError, match=r"2,000 different .*62 share no sentence"):
        held_out_pairs(corpus)


def rows(count):
    return [{"id": i, "translation": {"en": f"line {i}", "de": f"Zeile {i}"}} for i in range(count)]


def dataset_corpus(kind, path, **settings):
    split = SplitConfig(split="train")
    defaults = {"train": split, "validation": split, "test": split, "data_files": {"train": str(path)}}
    return CorpusConfig(kind=CorpusKind.dataset, name="a", dataset=kind, **defaults | settings)


@pytest.fixture
def no_network(monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_nested_columns_of_a_parquet_file(tmp_path, no_network):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows(3)), tmp_path / "a.parquet")
    corpus = dataset_corpus("parquet", tmp_path / "a.parquet")
    assert list(read_pairs(corpus, "train")) == [(f"line {i}", f"Zeile {i}") for i in range(3)]
    assert count_pairs(corpus, "train") == 0


def test_flat_columns_of_json_lines_with_holes_and_line_feeds(tmp_path, no_network):
    texts = [{"en": "a\nb", "translation.de": "c"}, {"en": "d", "translation.de": None}]
    (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\n" for row in texts))
    corpus = dataset_corpus("json", tmp_path / "a.json", source_column="en")
    assert list(read_pairs(corpus, "test")) == [("a b", "c"), ("d", "")]


def test_columns_of_a_csv_file(tmp_path, no_network):
    (tmp_path / "a.csv").write_text("en,de\na,b\n")
    corpus = dataset_corpus("csv", tmp_path / "a.csv", source_column="de", target_column="en")
    assert list(read_pairs(corpus, "train")) == [("b", "a")]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("english", r"corpus\.source_column: no column 'english'; .* id, translation\.en, translation\.de"),
        ("translation.fr", r"no column 'translation\.fr'"),
        ("id.en", r"no column 'id\.en'"),
        ("id", r"corpus\.source_column: column 'id' holds int, not text"),
    ],
)
def test_a_wrong_column_is_told_with_the_right_ones(tmp_path, no_network, column, message):
    (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\n" for row in rows(2)))
    with pytest.raises(UserError, match=message):
        next(read_pairs(dataset_corpus("json", tmp_path / "a.json", source_column=column), "train"))


def test_a_number_in_a_column_of_text_is_told_with_its_row(tmp_path, no_network):
    (tmp_path / "a.json").write_text('{"en": "a", "de": 1}\n{"en": "b", "de": 2}\n')
    corpus = dataset_corpus("json", tmp_path / "a.json", source_column="en", target_column="de")
    with pytest.raises(UserError, match=r"^corpus\.target_column: column 'de' holds int.* row 1: 1\."):
        list(read_pairs(corpus, "train"))


def test_errors_after_the_first_rows_are_told_with_the_row_and_without_the_network(tmp_path, no_network):
    # The library parses 10 MB at a time.
    texts = [json.dumps({"en": f"line {i} " + "x" * 8000, "de": f"Zeile {i}"}) for i in range(1600)]
    texts[1550] = '{"en": "a", "de": '
    (tmp_path / "a.json").write_text("\n".join(texts))
    corpus = dataset_corpus("json", tmp_path / "a.json", source_column="en", target_column="de")
    with pytest.raises(UserError, match=r"^corpus\.dataset=json: .*a\.json, .*after row [\d,]+: ") as told:
        list(read_pairs(corpus, "train"))
    assert "network" not in str(told.value)
    assert "Mend the file" in str(told.value)


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), TimeoutError("slow")])
def test_a_connection_that_breaks_in_mid_stream_is_told_with_the_row(monkeypatch, error):
    class Builder:
        config = None

        def as_streaming_dataset(self, split):
            yield from rows(3)
            raise RuntimeError("while reading") from error

    monkeypatch.setattr("datasets.load_dataset_builder", lambda *args, **settings: Builder())
    corpus = dataset_corpus("some/where", "", data_files={})
    with pytest.raises(UserError, match=r"(?s)^corpus\.dataset=some/where: .*after row 3: .*The connection broke"):
        list(read_pairs(corpus, "train"))


def test_a_hub_out_of_reach_tells_what_to_set(no_network):
    corpus = dataset_corpus("nobody/nothing", "", data_files=None)
    with pytest.raises(UserError, match=r"(?s)corpus\.dataset=nobody/nothing.*corpus\.path="):
        next(read_pairs(corpus, "train"))


def test_held_out_pairs_of_a_dataset(tmp_path, no_network):
    (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\n" for row in rows(20)))
    corpus = dataset_corpus("json", tmp_path / "a.json", validation=SplitConfig(), test=SplitConfig(), held_out=2)
    splits = [list(read_pairs(corpus, split)) for split in ("train", "validation", "test")]
    assert [len(pairs) for pairs in splits] == [16, 2, 2]
    assert len({pair for pairs in splits for pair in pairs}) == 20


def test_a_folder_replaces_the_hub(tmp_path):
    (tmp_path / "train.en").write_bytes(b"a\n")
    (tmp_path / "train.de").write_bytes(b"b\n")
    where = SplitConfig(source="train.en", target=f"{tmp_path}/train.de", split="train")
    corpus = CorpusConfig(kind=CorpusKind.dataset, name="a", dataset="nobody/nothing", path=str(tmp_path),
                          train=where, validation=where, test=where)  # fmt: skip
    assert list(read_pairs(corpus, "train")) == [("a", "b")]
    assert set(corpus_fingerprint(corpus)) == {f"{s}.{t}" for s in ("train", "validation", "test")
                                               for t in ("source", "target")}  # fmt: skip


def test_the_fingerprint_follows_contents_not_places(tmp_path):
    prints = []
    for name, text in (("1", b"a\n"), ("2", b"a\n"), ("3", b"b\n")):
        (tmp_path / name).mkdir()
        prints.append(corpus_fingerprint(text_corpus(tmp_path / name, text, b"x\n")))
    assert prints[0] == prints[1] != prints[2]


def test_the_fingerprint_of_local_data_files_follows_their_contents(tmp_path):
    corpus = dataset_corpus("json", tmp_path / "*.json")
    with pytest.raises(UserError, match=r"corpus\.data_files\.train: no such file"):
        corpus_fingerprint(corpus)
    (tmp_path / "a.json").write_text("{}")
    before = corpus_fingerprint(corpus)
    (tmp_path / "a.json").write_text("[]")
    assert corpus_fingerprint(corpus) != before


def test_the_phrasebook_gives_as_many_pairs_as_asked_for():
    corpus = CorpusConfig(phrasebook_pairs=50, held_out=5)
    splits = {split: list(read_pairs(corpus, split)) for split in ("train", "validation", "test")}
    assert {split: len(pairs) for split, pairs in splits.items()} == {"train": 50, "validation": 5, "test": 5}
    assert splits["train"] == list(read_pairs(corpus, "train"))
    assert corpus_fingerprint(corpus) != corpus_fingerprint(CorpusConfig(phrasebook_pairs=50, held_out=6))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"name": "../x"}, "name"),
        ({"held_out": 0}, "held_out"),
        ({"kind": CorpusKind.dataset}, "dataset"),
        ({"kind": CorpusKind.text}, "train"),
        ({"kind": CorpusKind.text, "train": SplitConfig(source="a")}, "train"),
        ({"kind": CorpusKind.dataset, "dataset": "a"}, "train"),
    ],
)
def test_a_corpus_without_a_place_is_refused_by_name(settings, key):
    with pytest.raises(ValueError, match=f"^{key}: "):
        CorpusConfig(**settings)


@pytest.mark.parametrize("text", ["", "\n\n", " \n"])
def test_empty_files_are_told_by_name(tmp_path, text):
    for side in ("en", "de"):
        (tmp_path / f"a.{side}").write_text(text)
    split = SplitConfig(str(tmp_path / "a.en"), str(tmp_path / "a.de"))
    with pytest.raises(UserError, match=r"no pair that is not empty.*a\.en and .*a\.de"):
        held_out_pairs(CorpusConfig(kind=CorpusKind.text, train=split, held_out=2))
