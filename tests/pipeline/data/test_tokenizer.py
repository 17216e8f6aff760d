import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transloom.pipeline.data.tokenizer import Tokenizer, TokenizerConfig, TokenizerKind, train_tokenizer
from transloom.pipeline.data.words import collapse_whitespace
from transloom.pipeline.errors import UserError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    chooser = random.Random(0)
    words = ["".join(chooser.choices("aeiouäßklmnrst", k=chooser.randint(1, 7))) for _ in range(300)]
    for name in ("source", "target"):
        lines = [" ".join(chooser.choices(words, k=8)) + "." for _ in range(500)]
        lines[7] = "one\u2028line \u0085 it\x0bis\x0call"
        (folder / name).write_bytes("".join(line + "\n" for line in lines).encode())
    return [folder / "source", folder / "target"]


@pytest.fixture(scope="module", params=list(TokenizerKind))
def tokenizer(files, tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(files, TokenizerConfig(vocab_size=600, kind=request.param), folder)
    return Tokenizer.load(folder)


@pytest.mark.parametrize("kind", TokenizerKind)
def test_training_is_reproducible_and_says_what_it_made(files, tmp_path, kind):
    counts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        counts.append(train_tokenizer(files, TokenizerConfig(vocab_size=600, kind=kind), tmp_path / name))
    assert (tmp_path / "a/tokenizer.model").read_bytes() == (tmp_path / "b/tokenizer.model").read_bytes()
    assert counts[0] == counts[1]
    assert counts[0]["vocab_size"] == {TokenizerKind.bpe: 600, TokenizerKind.unigram: 550}[kind]
    assert counts[0]["training_lines"] == 1000
    assert counts[0]["sha256"] == Tokenizer.load(tmp_path / "a").sha256


def test_a_corpus_too_small_for_the_vocabulary_gets_a_smaller_one(tmp_path):
    (tmp_path / "text").write_bytes(b"ab ab\ncd\n")
    counts = train_tokenizer([tmp_path / "text"], TokenizerConfig(vocab_size=10_000), tmp_path)
    assert 260 < counts["vocab_size"] < 300
    assert counts["requested_vocab_size"] == 10_000


def test_training_pairs_are_taken_from_the_whole_corpus(tmp_path):
    (tmp_path / "text").write_bytes(b"".join(b"%c\n" % (ord("a") + i // 10) for i in range(100)))
    counts = train_tokenizer([tmp_path / "text"], TokenizerConfig(max_training_pairs=20), tmp_path)
    assert counts["training_lines"] == 20
    tokenizer = Tokenizer.load(tmp_path)
    # Each letter fills ten lines in a row; every one of them was seen, so none is spelled as a byte.
    assert all(max(tokenizer.encode([letter])[0]) >= 260 for letter in "abcdefghij")


def test_a_vocabulary_too_small_for_the_characters_is_refused_by_name(tmp_path):
    (tmp_path / "text").write_bytes("".join(chr(0x4E00 + i) for i in range(400)).encode())
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=400.*character_coverage"):
        train_tokenizer([tmp_path / "text"], TokenizerConfig(vocab_size=400), tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()


def test_no_text_to_train_on_is_told(tmp_path):
    (tmp_path / "text").touch()
    with pytest.raises(UserError, match="empty"):
        train_tokenizer([tmp_path / "text"], TokenizerConfig(), tmp_path)


@pytest.mark.parametrize("settings", [{"vocab_size": 260}, {"character_coverage": 0.5}, {"max_training_pairs": 0}])
def test_impossible_settings_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        TokenizerConfig(**settings)


def test_special_ids(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, 3)
    assert tokenizer.encode(["", " "]) == [[3], [3]]
    assert tokenizer.encode([]) == []
    assert tokenizer.decode([[], [3], [2, *tokenizer.encode(["mal"])[0], 0, 0]]) == ["", "", "mal"]
    # Written out they are text like any other.
    assert not {0, 1, 2, 3} & set(tokenizer.encode(["<pad> <unk> <s> </s>"])[0][:-1])


def test_arrays_and_lists_are_the_same_ids(tokenizer):
    texts = ["eine mal", "", "日本"]
    arrays = tokenizer.encode_arrays(texts)
    assert [ids.tolist() for ids in arrays] == tokenizer.encode(texts)
    assert all(ids.dtype == np.int32 for ids in arrays)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))))
def test_decoding_gives_back_the_text(tokenizer, texts):
    ids = tokenizer.encode(texts)
    assert all(sentence[-1] == 3 and not {0, 1, 2, 3} & set(sentence[:-1]) for sentence in ids)
    assert tokenizer.decode(ids) == [collapse_whitespace(text) for text in texts]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 599)))
def test_whatever_a_model_puts_out_is_one_line(tokenizer, ids):
    (text,) = tokenizer.decode([[i % tokenizer.vocab_size for i in ids]])
    assert "\n" not in text
    text.encode()


def test_a_unigram_model_is_another_one(files, tmp_path):
    models = []
    for kind in TokenizerKind:
        (tmp_path / kind.value).mkdir()
        train_tokenizer(files, TokenizerConfig(vocab_size=600, kind=kind), tmp_path / kind.value)
        models.append(Tokenizer.load(tmp_path / kind.value))
    text = ["eine mal toll"]
    assert models[0].encode(text) != models[1].encode(text)
    assert models[0].decode(models[0].encode(text)) == models[1].decode(models[1].encode(text)) == text


def test_naughty_strings_come_back(tokenizer, corpora):
    lines = (corpora / "naughty-strings" / "blns.txt").read_text(encoding="utf-8").split("\n")
    lines += json.loads((corpora / "naughty-strings" / "blns.json").read_text(encoding="utf-8"))
    assert len(lines) > 1000
    # U+2581 is SentencePiece's own mark of a space; a text of several lines becomes one.
    texts = [" ".join(line.replace("\u2581", "_").split("\n")) for line in lines]
    assert tokenizer.decode(tokenizer.encode(texts)) == [collapse_whitespace(text) for text in texts]


def test_a_missing_or_foreign_file_is_told(tmp_path):
    with pytest.raises(UserError, match="no tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        Tokenizer.load(tmp_path)
