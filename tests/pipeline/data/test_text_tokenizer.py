import json
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from transloom.pipeline.data.document_store import open_documents, write_documents
from transloom.pipeline.data.text_tokenizer import (
    END_OF_TEXT,
    SCALARS,
    TextTokenizerConfig,
    TextTokenizerKind,
    bits_per_byte,
    load_text_tokenizer,
    tokenizer_fingerprint,
    train_text_tokenizer,
)
from transloom.pipeline.errors import UserError

BPE = TextTokenizerConfig(vocab_size=400)
CHARACTERS = TextTokenizerConfig(TextTokenizerKind.characters)
HARD = [
    "",
    " ",
    "\n\n \t\r\n",
    "\u2028\x85\x0b\x1c\ufeff",
    "\x00\x01\x7f",
    "a\u0301 \U0001f468\u200d\U0001f469",
    END_OF_TEXT,
]


def documents_of(folder, texts):
    folder.mkdir(exist_ok=True)
    write_documents(folder, "train", texts)
    return open_documents(folder, "train")


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    chooser = random.Random(0)
    words = ["".join(chooser.choices("aeiouäßklmnrst", k=chooser.randint(1, 7))) for _ in range(200)]
    texts = [f"{' '.join(chooser.choices(words, k=30))}.\n  {END_OF_TEXT} {i}\n" for i in range(100)]
    return documents_of(tmp_path_factory.mktemp("documents"), texts)


@pytest.fixture(scope="module")
def folders(documents, tmp_path_factory):
    folders = {}
    for config in (BPE, CHARACTERS):
        folders[config.kind] = tmp_path_factory.mktemp(config.kind.value)
        train_text_tokenizer(documents, config, folders[config.kind])
    return folders


@pytest.fixture(scope="module")
def byte_bpe(folders):
    return load_text_tokenizer(folders[TextTokenizerKind.byte_bpe])


@pytest.fixture(scope="module")
def characters(folders):
    return load_text_tokenizer(folders[TextTokenizerKind.characters])


def file_config(path, **settings):
    return TextTokenizerConfig(TextTokenizerKind.file, path=str(path), **settings)


# Byte-level pairs


@given(st.lists(st.text(max_size=200), max_size=4))
@example(HARD)
@settings(deadline=None)
def test_any_text_comes_back(byte_bpe, texts):
    ids = byte_bpe.encode(texts)
    assert [byte_bpe.decode(row) for row in ids] == texts
    assert all(row.dtype == np.int32 and byte_bpe.end_of_text not in row for row in ids)
    assert all((row >= 0).all() and (row < byte_bpe.vocab_size).all() for row in ids)


def test_the_end_of_text_is_a_symbol_that_no_text_produces(byte_bpe, characters):
    for tokenizer in (byte_bpe, characters):
        ids = tokenizer.encode([f"a{END_OF_TEXT}k", END_OF_TEXT])
        assert not any(tokenizer.end_of_text in row for row in ids)
        assert tokenizer.decode([*ids[0], tokenizer.end_of_text]) == f"a{END_OF_TEXT}k"
    assert byte_bpe.decode([byte_bpe.end_of_text]) == ""
    assert byte_bpe.unknown is None


def test_pairs_are_learnt(byte_bpe, documents):
    assert byte_bpe.vocab_size == 400
    text = documents[3]
    assert len(byte_bpe.encode([text])[0]) < 0.7 * len(text.encode())


def test_training_gives_the_same_file_in_every_process(documents, folders, tmp_path):
    (tmp_path / "again").mkdir()
    counts = train_text_tokenizer(documents, BPE, tmp_path / "again")
    assert counts == {
        "kind": "byte_bpe",
        "vocab_size": 400,
        "end_of_text": 0,
        "sha256": load_text_tokenizer(folders[BPE.kind]).sha256,
        "training_documents": 100,
        "training_bytes": int(documents.num_bytes.sum()),
    }
    write_documents(tmp_path, "train", documents)
    code = (
        "from pathlib import Path; from transloom.pipeline.data.document_store import open_documents;"
        "from transloom.pipeline.data.text_tokenizer import *; import sys; folder = Path(sys.argv[1]);"
        "train_text_tokenizer(open_documents(folder, 'train'), TextTokenizerConfig(vocab_size=400), folder)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    assert (tmp_path / "tokenizer.json").read_bytes() == (tmp_path / "again/tokenizer.json").read_bytes()


def test_training_takes_at_most_so_many_bytes_by_a_hash_whatever_the_order(tmp_path):
    texts = [f"number {i} " * 10 for i in range(200)]
    counts = []
    for name, order in (("a", texts), ("b", texts[::-1])):
        documents = documents_of(tmp_path / name, order)
        config = TextTokenizerConfig(vocab_size=300, max_training_bytes=5000)
        counts.append(train_text_tokenizer(documents, config, tmp_path / name))
    assert 4800 < counts[0]["training_bytes"] <= 5000
    assert 40 < counts[0]["training_documents"] < 60
    assert counts[0] == counts[1]


def test_of_a_document_larger_than_the_limit_the_beginning_is_learnt(tmp_path):
    documents = documents_of(tmp_path, ["ab" * 1000 + "é" * 3000])
    counts = train_text_tokenizer(documents, TextTokenizerConfig(vocab_size=300, max_training_bytes=2001), tmp_path)
    assert (counts["training_documents"], counts["training_bytes"]) == (1, 2001)
    tokenizer = load_text_tokenizer(tmp_path)
    assert len(tokenizer.encode(["é"])[0]) == 2
    assert len(tokenizer.encode(["ab"])[0]) == 1


def test_a_long_document_is_learnt_in_whole(tmp_path):
    documents = documents_of(tmp_path, ["x y\n" * 50_000 + "q" * 1_200_000 + "zwei"])
    train_text_tokenizer(documents, TextTokenizerConfig(vocab_size=300), tmp_path)
    tokenizer = load_text_tokenizer(tmp_path)
    assert len(tokenizer.encode(["x y\n" * 10])[0]) <= 30
    assert tokenizer.decode(tokenizer.encode([documents[0]])[0]) == documents[0]


def test_no_documents_are_told(tmp_path):
    with pytest.raises(UserError, match=r"^corpus\.train:"):
        train_text_tokenizer(documents_of(tmp_path, []), BPE, tmp_path)


# Characters


@given(st.lists(st.text(max_size=50), max_size=3))
@example(HARD)
def test_characters_are_those_of_train_and_others_are_unknown(characters, documents, texts):
    known = set("".join(documents))
    for text, ids in zip(texts, characters.encode(texts), strict=True):
        assert len(ids) == len(text)
        assert characters.decode(ids) == "".join(c if c in known else "\ufffd" for c in text)
        assert (ids == characters.unknown).sum() == sum(c not in known for c in text)


def test_characters_have_ids_in_the_order_of_unicode(tmp_path):
    documents = documents_of(tmp_path, ["hello", "world\n"])
    counts = train_text_tokenizer(documents, CHARACTERS, tmp_path)
    tokenizer = load_text_tokenizer(tmp_path)
    assert tokenizer.encode(["\ndehlorw!"])[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert (tokenizer.unknown, tokenizer.end_of_text, tokenizer.vocab_size) == (8, 9, 10)
    assert counts["vocab_size"] == 10
    assert counts["training_bytes"] == 11


def test_unknown_characters_cost_which_of_the_others_they_are(tmp_path):
    train_text_tokenizer(documents_of(tmp_path, ["ab"]), CHARACTERS, tmp_path)
    tokenizer = load_text_tokenizer(tmp_path)
    # A uniform model over the 4 symbols and, for the unknown one, over all other characters: probabilities of what may
    # follow (a, b, each other character, the end) sum to 1.
    assert 2**-2 * 3 + (SCALARS - 2) * 2 ** -(2 + tokenizer.unknown_bits) == pytest.approx(1.0)
    nats = 3 * math.log(4)  # of "ä" twice and the end of text
    expected = (3 * 2 + 2 * math.log2(SCALARS - 2)) / 4
    assert bits_per_byte(nats, 4, 2, tokenizer.unknown_bits) == pytest.approx(expected)
    assert bits_per_byte(math.log(2) * 8, 1) == pytest.approx(8.0)


def test_shakespeare_has_the_characters_of_nanogpt(corpora, tmp_path):
    text = (corpora / "lm-text/tinyshakespeare.txt").read_text()
    train_text_tokenizer(documents_of(tmp_path, [text[:1_003_854]]), CHARACTERS, tmp_path)
    tokenizer = load_text_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 65 + 2
    assert not (tokenizer.encode([text[1_003_854:]])[0] == tokenizer.unknown).any()


# Existing files


def test_an_existing_tokenizer_is_copied(folders, tmp_path):
    for kind, path in folders.items():
        folder = tmp_path / kind.value
        folder.mkdir()
        counts = train_text_tokenizer(documents_of(folder, []), file_config(path), folder)
        original = load_text_tokenizer(path)
        assert counts["sha256"] == original.sha256 == load_text_tokenizer(folder).sha256
        assert tokenizer_fingerprint(file_config(path)) == {"tokenizer": original.sha256}
        assert counts["training_bytes"] == 0
    assert tokenizer_fingerprint(BPE) == {}


def wordlevel(path, special=("</s>",), words=("a", "b", "c", "[UNK]"), **changes):
    vocabulary = {word: i for i, word in enumerate([*words, *special])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    value = json.loads(tokenizer.to_str()) | changes
    path.write_text(json.dumps(value))
    return path


def test_the_end_of_text_is_what_the_folder_says_or_a_known_name_or_an_id_of_its_own(tmp_path):
    file = wordlevel(tmp_path / "tokenizer.json", special=["<stop>"])
    tokenizer = load_text_tokenizer(file)
    assert (tokenizer.end_of_text, tokenizer.vocab_size) == (5, 6)  # behind those of the file
    for value in ("<stop>", {"content": "<stop>", "lstrip": False}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": value}))
        tokenizer = load_text_tokenizer(tmp_path)
        assert (tokenizer.end_of_text, tokenizer.vocab_size) == (4, 5)
        assert 4 not in tokenizer.encode(["a <stop> b"])[0]
        assert tokenizer_fingerprint(file_config(tmp_path))["end_of_text"] == "<stop>"
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<none>"}')
    with pytest.raises(UserError, match="<none>"):
        load_text_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    wordlevel(tmp_path / "tokenizer.json", special=["<pad>", "</s>"])
    assert load_text_tokenizer(tmp_path).end_of_text == 5


def test_a_named_end_of_text_goes_along_with_the_copy(tmp_path):
    file = wordlevel(tmp_path / "other.json", special=["<stop>"])
    (tmp_path / "copy").mkdir()
    counts = train_text_tokenizer(
        documents_of(tmp_path / "documents", []), file_config(file, end_of_text="<stop>"), tmp_path / "copy"
    )
    assert counts["end_of_text"] == load_text_tokenizer(tmp_path / "copy").end_of_text == 4


def test_an_end_of_text_that_a_text_could_produce_is_refused(tmp_path):
    file = wordlevel(tmp_path / "tokenizer.json", special=[], words=["a", "b", "stop", "[UNK]"])
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "stop"}')
    with pytest.raises(UserError, match="'stop'"):
        load_text_tokenizer(file)


def test_truncation_padding_and_added_tokens_of_a_file_are_switched_off(tmp_path):
    file = wordlevel(
        tmp_path / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        padding={
            **{"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None},
            **{"pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
        },
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [4], "tokens": ["</s>"]}},
        },
    )
    tokenizer = load_text_tokenizer(file)
    assert [row.tolist() for row in tokenizer.encode(["a b c a", "b x"])] == [[0, 1, 2, 0], [1, 3]]
    assert tokenizer.unknown == 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    file = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a hat and a bat </s>"] * 20),
        model_prefix=str(file.with_suffix("")),
        vocab_size=40,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return file


def test_a_sentencepiece_model(model, tmp_path):
    tokenizer = load_text_tokenizer(model)
    ids = tokenizer.encode(["the cat", "a ϡ", "the </s>"])
    assert tokenizer.decode([*ids[0], 2]) == "the cat"
    assert tokenizer.end_of_text == 2
    assert not any(2 in row for row in ids)
    assert tokenizer.unknown in ids[1]
    counts = train_text_tokenizer(documents_of(tmp_path, []), file_config(model), tmp_path)
    assert counts["sha256"] == load_text_tokenizer(tmp_path).sha256 == tokenizer.sha256
    with pytest.raises(UserError, match=r"^tokenizer\.end_of_text:"):
        train_text_tokenizer(documents_of(tmp_path, []), file_config(model, end_of_text="</s>"), tmp_path)


HOSTILE = {
    "tokenizer.json": [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"model": {}}',
        b'{"model": 5, "added_tokens": []}',
        b'{"version": "1.0", "added_tokens": 5, "model": {"type": "BPE", "vocab": {}, "merges": []}}',
        b'{"version": "1.0", "added_tokens": ["x"], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y z"]}}',
        b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}',
        b'{"version": "1.0", "added_tokens": [], "model": {"type": "Other", "vocab": {"a": 1}}}',
        b'{"added_tokens": [{"content": ["</s>"]}], "model": {"type": "BPE", "vocab": {"a": 1}, "merges": []}}',
    ],
    "characters.json": [
        b"{}",
        b'{"characters": "ba"}',
        b'{"characters": "aa"}',
        b'{"characters": "\\ud800"}',
        b"[",
        b"5",
    ],
    "tokenizer.model": [b"", b"no model at all", b"\x0a\xff\xff\xff\xff\x0f"],
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, rows in HOSTILE.items() for data in rows])
def test_damaged_and_hostile_files_are_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        load_text_tokenizer(tmp_path)


def test_what_is_no_file_or_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no tokenizer at"):
        load_text_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no tokenizer at"):
        load_text_tokenizer(tmp_path / "none.json")
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="pipe"):
        load_text_tokenizer(tmp_path)
    monkeypatch.setattr("transloom.pipeline.data.text_tokenizer.MAX_FILE_BYTES", 100)
    (tmp_path / "large.json").write_bytes(b" " * 101)
    with pytest.raises(UserError, match=r"large\.json has more than"):
        load_text_tokenizer(tmp_path / "large.json")


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("vocab_size", {"vocab_size": 256}),
        ("max_training_bytes", {"max_training_bytes": 0}),
        ("path", {"kind": TextTokenizerKind.file}),
        ("path", {"path": "tokenizer.json"}),
        ("end_of_text", {"end_of_text": "</s>"}),
    ],
)
def test_impossible_settings_are_refused_by_name(key, changes):
    with pytest.raises(ValueError, match=f"^{key}:"):
        TextTokenizerConfig(**changes)
