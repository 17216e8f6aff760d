import bz2
import gzip
import io
import json
import lzma
import zipfile

import pytest

from transloom.pipeline.data.clean import CleanConfig
from transloom.pipeline.data.corpus import refuse_wrong_files
from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind, SplitConfig
from transloom.pipeline.data.formats import refuse_other_formats
from transloom.pipeline.data.prepare import prepare
from transloom.pipeline.data.tokenizer import TokenizerConfig
from transloom.pipeline.errors import UserError

ENGLISH = "".join(f"line {i} of the text\n" for i in range(50)).encode()
GERMAN = "".join(f"Zeile {i} des Textes\n" for i in range(50)).encode()


def zipped(text):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", text)
    return file.getvalue()


def parquet(text):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"en": text.decode().split("\n")}), file)
    return file.getvalue()


TMX = b'<?xml version="1.0"?>\n<tmx version="1.4">\n<body>\n' + b"".join(
    b'<tu><tuv xml:lang="en">\n<seg>line %d</seg>\n</tuv></tu>\n' % i for i in range(20)
)
SGML = b'<srcset setid="a" srclang="any">\n' + b"".join(b'<seg id="%d"> line %d </seg>\n' % (i, i) for i in range(20))
HTML = b"<!DOCTYPE html>\n<html>\n<body>\n" + b"<p>A line\nthat goes on</p>\n" * 20
RECORDS = [{"en": f"line {i}", "de": f"Zeile {i}"} for i in range(20)]

OTHERS = {
    "gzip": (gzip.compress(ENGLISH, mtime=0), r"compressed by gzip.*Rename it to a\.en\.gz"),
    "bzip2": (bz2.compress(ENGLISH), "bzip2"),
    "xz": (lzma.compress(ENGLISH), "xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(range(100)), "zstd"),
    "zip": (zipped(ENGLISH), "zip archive"),
    "parquet": (parquet(ENGLISH), r"corpus\.dataset=parquet"),
    "pdf": (b"%PDF-1.7\n" + ENGLISH, "PDF"),
    "utf-16": (ENGLISH.decode().encode("utf-16"), "iconv"),
    "utf-16 without a mark": (ENGLISH.decode().encode("utf-16-le"), "iconv"),
    "utf-32": (ENGLISH.decode().encode("utf-32"), "iconv"),
    "old Mac": (ENGLISH.replace(b"\n", b"\r"), "carriage returns"),
    "old Mac with a line feed": (ENGLISH.replace(b"\n", b"\r") + b"\n", "carriage returns"),
    "tmx": (TMX, "markup"),
    "tmx on a line": (TMX.replace(b"\n", b""), "markup"),
    "sgml": (SGML, "markup"),
    "sgml without a head": (SGML.partition(b"\n")[2], "markup"),
    "html": (HTML, "markup"),
    "xml behind a byte order mark": (b"\xef\xbb\xbf" + TMX, "markup"),
    "json lines": ("".join(json.dumps(record) + "\n" for record in RECORDS).encode(), r"corpus\.dataset=json"),
    "json": (json.dumps(RECORDS, indent=1).encode(), r"corpus\.dataset=json"),
    "json on a line": (json.dumps(RECORDS).encode(), r"corpus\.dataset=json"),
    "tsv": (b"".join(b"line %d\tZeile %d\n" % (i, i) for i in range(20)), r"corpus\.dataset=tsv"),
}


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("name", OTHERS)
def test_files_that_are_something_else_are_refused(tmp_path, name, side):
    contents, message = OTHERS[name]
    (tmp_path / "a.en").write_bytes(contents if side == "source" else ENGLISH)
    (tmp_path / "a.de").write_bytes(GERMAN if side == "source" else contents)
    if side == "target":
        message = message.replace(r"a\.en", r"a\.de")
    with pytest.raises(UserError, match=rf"^{tmp_path}/a\.{'en' if side == 'source' else 'de'}\b.*{message}"):
        refuse_other_formats(tmp_path / "a.en", tmp_path / "a.de")


def test_what_lies_in_a_gzip_file_is_looked_at_too(tmp_path):
    (tmp_path / "a.de").write_bytes(GERMAN)
    for contents, message in ((gzip.compress(ENGLISH), "Unpack it once"), (TMX, "markup"), OTHERS["tsv"]):
        (tmp_path / "a.en.gz").write_bytes(gzip.compress(contents))
        with pytest.raises(UserError, match=message):
            refuse_other_formats(tmp_path / "a.en.gz", tmp_path / "a.de")
    (tmp_path / "a.en.gz").write_bytes(gzip.compress(ENGLISH))
    refuse_other_formats(tmp_path / "a.en.gz", tmp_path / "a.de")


@pytest.mark.parametrize(
    "english",
    [
        b"",
        b"\xef\xbb\xbf" + ENGLISH.replace(b"\n", b"\r\n"),
        ENGLISH.replace(b"line", b"li\rne", 10),
        b"<b>Bold</b>\n" * 10 + ENGLISH,  # strings of a program
        b"<html> is a tag\n" + ENGLISH,
        b"[Music]\n[1]\n{0} files\n" * 20,
        b"%d percent\n" * 30,
        b"a\tb\n" * 5 + ENGLISH,
        b"\tindented\n" * 30,
        b"PAR1 is a protein\nBZh is a word\nPK\n",
        b"one line",
        ENGLISH + b"\0",
    ],
)
def test_text_is_not_taken_for_something_else(tmp_path, english):
    (tmp_path / "a.en").write_bytes(english)
    (tmp_path / "a.de").write_bytes(GERMAN)
    refuse_other_formats(tmp_path / "a.en", tmp_path / "a.de")


def test_equal_sides_are_refused_unless_the_language_is_one(tmp_path):
    source, target = tmp_path / "a.en", tmp_path / "a.de"
    source.write_bytes(ENGLISH)
    target.write_bytes(b"".join(ENGLISH.splitlines(True)[:30] + GERMAN.splitlines(True)[30:]))
    (tmp_path / "link").symlink_to(source)
    for other in (source, target, tmp_path / "link"):
        with pytest.raises(UserError, match="are the same sentences"):
            refuse_other_formats(source, other)
        refuse_other_formats(source, other, is_same_language=True)
    target.write_bytes(b"".join(ENGLISH.splitlines(True)[:20] + GERMAN.splitlines(True)[20:]))
    refuse_other_formats(source, target)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_split_is_told_and_nothing_is_written(tmp_path, split):
    (tmp_path / "a.en").write_bytes(ENGLISH)
    (tmp_path / "a.de").write_bytes(GERMAN)
    (tmp_path / "b.en").write_bytes(gzip.compress(ENGLISH))  # of other "lines" than a.de, which is not the mistake
    files = SplitConfig(str(tmp_path / "a.en"), str(tmp_path / "a.de"))
    splits = dict.fromkeys(("train", "validation", "test"), files)
    splits[split] = SplitConfig(str(tmp_path / "b.en"), str(tmp_path / "a.de"))
    corpus = CorpusConfig(kind=CorpusKind.text, name="a", **splits)
    with pytest.raises(UserError, match=rf"^corpus\.{split}: .*b\.en is compressed by gzip"):
        refuse_wrong_files(corpus)
    with pytest.raises(UserError, match=rf"^corpus\.{split}: .*b\.en is compressed by gzip"):
        prepare(corpus, CleanConfig(), TokenizerConfig(vocab_size=500), tmp_path / "out")
