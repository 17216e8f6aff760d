"""Tokenizers of language models: byte-level pairs, characters, or an existing tokenizer.json or SentencePiece model.

The end of text is a symbol of its own, which no text produces: "<|endoftext|>" inside a document is ordinary text.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from transloom.pipeline.data.document_store import Documents
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import absolute_path, atomic_write, write_json
from transloom.pipeline.untrusted import NotWellFormed, read_small

END_OF_TEXT = "<|endoftext|>"
# Usual names of the end of text, for tokenizers whose folder does not name it.
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
JSON_FILE, CHARACTERS_FILE, MODEL_FILE = "tokenizer.json", "characters.json", "tokenizer.model"
SETTINGS_FILE = "tokenizer_config.json"  # Hugging Face's file beside tokenizer.json; only eos_token is read
MAX_FILE_BYTES = 128 * 2**20
MAX_VOCABULARY = 1 << 22
SCALARS = 0x110000 - 0x800  # characters of Unicode: all code points without surrogates
CHUNK = 1 << 11  # characters of a document that the trainer gets at a time, or up to twice as many


class TextTokenizerKind(Enum):
    """Learnt byte-level byte pair encoding, the characters of train, or an existing file."""

    byte_bpe = "byte_bpe"
    characters = "characters"
    file = "file"


@dataclass(frozen=True)
class TextTokenizerConfig:
    """The choice of tokenizer.

    Attributes:
        kind: byte pair encoding learnt here, the characters of train, or an existing file.
        vocab_size: for byte_bpe, with the 256 bytes and the end of text. The other kinds have a fixed size.
        max_training_bytes: of train that byte_bpe learns from at most; a hash of the content chooses the documents.
        path: for file: a tokenizer.json, a SentencePiece model, or a folder with one of these.
        end_of_text: for file: the token that ends a text, where the file's folder does not name it.

    Raises:
        ValueError: if the settings make no tokenizer, naming the field.
    """

    kind: TextTokenizerKind = TextTokenizerKind.byte_bpe
    vocab_size: int = 8192
    max_training_bytes: int = 256 * 2**20
    path: str | None = None
    end_of_text: str | None = None

    def __post_init__(self) -> None:
        if not 257 <= self.vocab_size <= MAX_VOCABULARY:
            raise ValueError(
                f"vocab_size: must be from 257 (bytes and the end of text) to {MAX_VOCABULARY}, not {self.vocab_size}"
            )
        if self.max_training_bytes < 1:
            raise ValueError(f"max_training_bytes: must be at least 1, not {self.max_training_bytes}")
        if self.kind is TextTokenizerKind.file and not self.path:
            raise ValueError("path: kind=file needs a tokenizer.json or a SentencePiece model")
        if self.kind is not TextTokenizerKind.file and (self.path or self.end_of_text):
            raise ValueError(f"{'path' if self.path else 'end_of_text'}: is for kind=file, not {self.kind.value}")

    def with_absolute_paths(self) -> "TextTokenizerConfig":
        """The configuration with its path made absolute (from the working directory), and ~ expanded."""
        return replace(self, path=self.path and absolute_path(self.path))


class TextTokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        vocab_size: the largest id + 1.
        end_of_text: the id that ends a document; no text is encoded to this id, and it decodes to the empty text.
        unknown: the id for characters without a token; None where every text has tokens.
        unknown_bits: the cost of an unknown symbol beside its loss, which keeps the loss the length of a code for the
            text, comparable between tokenizers. The id tells only that the character is unknown; to tell which of the
            unknown characters takes log2 of their number.
        sha256: of the tokenizer's file.
    """

    vocab_size: int
    end_of_text: int
    unknown: int | None
    unknown_bits: float
    sha256: str

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids (tokens,) int32 of each text, without an end of text."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids. Bytes that are no character, and unknown symbols, become U+FFFD."""
        ...


def bits_per_byte(nats: float, num_bytes: int, unknown: int = 0, unknown_bits: float = 0.0) -> float:
    """The length of a code for a text, in bits for each byte of its UTF-8: comparable between tokenizers.

    Args:
        nats: the loss, summed over all tokens and ends of text.
        unknown: number of unknown symbols among the tokens, each of `TextTokenizer.unknown_bits`.
    """
    return (nats / math.log(2.0) + unknown * unknown_bits) / num_bytes


def train_text_tokenizer(documents: Documents, config: TextTokenizerConfig, folder: Path) -> dict[str, Any]:
    """Learns the tokenizer from the documents of train, or copies the existing one, and writes it into `folder`.

    The same documents and settings give the same file, byte for byte. Too few documents for `vocab_size` give a smaller
    vocabulary.

    Returns:
        The manifest's entries: kind, vocab_size, end_of_text, sha256, training_documents, training_bytes (the
        tokenizer's training text; 0 for kind=file).
    Raises:
        UserError: there is nothing to learn from; or see `load_text_tokenizer`.
    """
    if config.kind is not TextTokenizerKind.file and not len(documents):
        raise UserError("corpus.train: has no documents: there is nothing to train a tokenizer on")
    training_documents, training_bytes = 0, 0
    if config.kind is TextTokenizerKind.byte_bpe:
        training_documents, training_bytes = _train_byte_bpe(documents, config, folder)
    elif config.kind is TextTokenizerKind.characters:
        characters: set[str] = set()
        for text in documents:
            characters.update(text)
        write_json(folder / CHARACTERS_FILE, {"characters": "".join(sorted(characters))})
        training_documents, training_bytes = len(documents), int(documents.num_bytes.sum())
    else:
        _copy(config, folder)
    tokenizer = load_text_tokenizer(folder)
    return {
        "kind": config.kind.value,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "sha256": tokenizer.sha256,
        "training_documents": training_documents,
        "training_bytes": training_bytes,
    }


def tokenizer_fingerprint(config: TextTokenizerConfig) -> dict[str, str]:
    """The hash of the existing tokenizer, and the end of text that its folder names; empty for learnt kinds.

    Raises:
        UserError: the file is missing, or larger than a tokenizer is.
    """
    if config.kind is not TextTokenizerKind.file:
        return {}
    assert config.path is not None
    file = tokenizer_file(Path(config.path))
    fingerprint = {"tokenizer": hashlib.sha256(_data(file)).hexdigest()}
    return fingerprint | ({"end_of_text": named} if (named := _named_end(file.parent)) else {})


def _copy(config: TextTokenizerConfig, folder: Path) -> None:
    assert config.path is not None
    file = tokenizer_file(Path(config.path))
    name = config.end_of_text or _named_end(file.parent)
    name_of_copy = file.name if file.name in (JSON_FILE, CHARACTERS_FILE) else MODEL_FILE
    if file.suffix == ".json" and file.name != CHARACTERS_FILE:
        name_of_copy = JSON_FILE
    if config.end_of_text is not None and name_of_copy != JSON_FILE:
        raise UserError(f"tokenizer.end_of_text: is for a {JSON_FILE}; {file} says itself what ends a text")
    with atomic_write(folder / name_of_copy) as copy:
        copy.write(_data(file))
    if name is not None and name_of_copy == JSON_FILE:
        write_json(folder / SETTINGS_FILE, {"eos_token": name})


def load_text_tokenizer(path: Path) -> TextTokenizer:
    """Reads a tokenizer.json, a characters.json or a SentencePiece model, or a folder with one of these.

    A tokenizer.json's truncation, padding and added tokens around a text are switched off. Its end of text is the
    eos_token of the tokenizer_config.json beside it, else the first of ENDS among its special tokens, else a new id
    behind the others.

    Raises:
        UserError: the file is missing, too large or damaged, or a text can be encoded to the end of text.
    """
    file = tokenizer_file(path)
    data = _data(file)
    sha256 = hashlib.sha256(data).hexdigest()
    if file.name == CHARACTERS_FILE:
        return CharacterTokenizer(_characters(file, data), sha256)
    if file.suffix == ".json":
        return _json_tokenizer(file, data, _named_end(file.parent), sha256)
    return _model_tokenizer(file, data, sha256)


def tokenizer_file(path: Path) -> Path:
    """The tokenizer's file: the path itself, or the file in the folder.

    Raises:
        UserError: there is no tokenizer.
    """
    candidates = [path / name for name in (JSON_FILE, CHARACTERS_FILE, MODEL_FILE)] if path.is_dir() else [path]
    for file in candidates:
        if file.exists():
            return file
    names = f" (none of {JSON_FILE}, {CHARACTERS_FILE}, {MODEL_FILE})" if path.is_dir() else ""
    raise UserError(f"no tokenizer at {path}{names}. Name another file, or run the prepare job first")


def _data(file: Path) -> bytes:
    try:
        return read_small(file, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise UserError(f"no tokenizer at {file}") from None


def _json(file: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotWellFormed(f"{file} is damaged, it is no JSON: {error}. Copy it anew") from None
    if not isinstance(value, dict):
        raise NotWellFormed(f"{file} is no tokenizer: it holds a {type(value).__name__}, not an object")
    return value


def _named_end(folder: Path) -> str | None:
    """The end of text that a folder's tokenizer_config.json names."""
    file = folder / SETTINGS_FILE
    try:
        value = _json(file, read_small(file)).get("eos_token")
    except FileNotFoundError:
        return None
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


# Byte-level pairs, and any other tokenizer.json


def _train_byte_bpe(documents: Documents, config: TextTokenizerConfig, folder: Path) -> tuple[int, int]:
    """Writes tokenizer.json; returns the numbers of its training documents and bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Bytes as characters, and GPT-2's rule for the beginnings of words; every text decodes unchanged.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    chosen = chosen_documents(documents, config.max_training_bytes)
    num_bytes = min(int(documents.num_bytes[chosen].sum()), config.max_training_bytes)
    tokenizer.train_from_iterator(_chunks(documents, chosen, config.max_training_bytes), trainer)
    with atomic_write(folder / JSON_FILE) as file:
        file.write(tokenizer.to_str().encode())
    return len(chosen), num_bytes


def chosen_documents(documents: Documents, max_bytes: int) -> np.ndarray:
    """The numbers, in order, of the documents with the smallest hashes that have at most `max_bytes` bytes together. If
    the first document alone is larger, the caller takes its beginning."""
    if int(documents.num_bytes.sum()) <= max_bytes:
        return np.arange(len(documents))
    digests = np.empty(len(documents), np.uint64)
    for index in range(len(documents)):
        digest = hashlib.blake2b(documents.data(index), digest_size=8, person=b"tokenizer").digest()
        digests[index] = int.from_bytes(digest)
    order = np.argsort(digests, kind="stable")
    count = int(np.searchsorted(np.cumsum(documents.num_bytes[order]), max_bytes, side="right"))
    return np.sort(order[: max(1, count)])


def _chunks(documents: Documents, chosen: np.ndarray, max_bytes: int) -> Iterator[str]:
    """Yields the texts in chunks that end at a near line end, if any: the trainer's time is quadratic in the length of
    a word, and a text may be a single word."""
    for index in chosen:
        text = documents.data(index)[:max_bytes].decode(errors="ignore")
        start = 0
        while start < len(text):
            end = text.find("\n", start + CHUNK, start + 2 * CHUNK) + 1 or start + 2 * CHUNK
            yield text[start:end]
            start = end


class JsonTokenizer:
    """A tokenizer.json of Hugging Face's library `tokenizers`; see `TextTokenizer`."""

    def __init__(self, tokenizer: Any, end_of_text: int | None, unknown: int | None, sha256: str) -> None:
        self._tokenizer = tokenizer
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.end_of_text = largest + 1 if end_of_text is None else end_of_text
        self.vocab_size = max(largest, self.end_of_text) + 1
        self.unknown = unknown
        self.unknown_bits = (
            0.0 if unknown is None else math.log2(SCALARS)
        )  # at least: an unknown symbol may be a whole word
        self.sha256 = sha256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        plain = [int(i) for i in ids if i != self.end_of_text]
        return self._tokenizer.decode(plain, skip_special_tokens=False)


def _json_tokenizer(file: Path, data: bytes, named_end: str | None, sha256: str) -> JsonTokenizer:
    # One thread: the callers spread work over processes.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    settings = _json(file, data)
    model, added = settings.get("model"), settings.get("added_tokens") or []
    if not isinstance(model, dict) or not isinstance(added, list):
        raise NotWellFormed(f"{file} is no tokenizer.json: it has no model with a vocabulary")
    ids = {
        token["content"]: token for token in added if isinstance(token, dict) and isinstance(token.get("content"), str)
    }
    end = named_end or next((name for name in ENDS if ids.get(name, {}).get("special") is True), None)
    if end in ids:
        ids[end]["special"] = True  # else texts could be encoded to the end of text
    settings["truncation"] = settings["padding"] = None
    try:
        tokenizer = Tokenizer.from_str(json.dumps(settings))
        tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is ordinary text
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        if max(vocabulary.values(), default=0) >= MAX_VOCABULARY:
            raise NotWellFormed(f"{file}: an id of {max(vocabulary.values()):,} is too large for a vocabulary")
        if named_end is not None and named_end not in vocabulary:
            raise UserError(
                f"{file}: has no token {named_end!r}, which is to end a text (eos_token of {SETTINGS_FILE})"
            )
        unknown = model.get("unk_id")
        if isinstance(name := model.get("unk_token"), str):
            unknown = vocabulary.get(name)
        result = JsonTokenizer(tokenizer, vocabulary[end] if end else None, unknown, sha256)
        if end and result.end_of_text in result.encode([end])[0]:
            raise UserError(f"{file}: the text {end!r} is encoded to the end of text itself: no text could hold it")
        result.decode(result.encode(["A text.\n"])[0])
    except UserError:
        raise
    except BaseException as error:
        # Errors of the library's Rust code are plain Exceptions; its panics do not derive from Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise NotWellFormed(f"{file} is not a tokenizer.json that can be used: {error}. Copy it anew") from None
    return result


# Characters


class CharacterTokenizer:
    """A token for each character, in the order of code points; then the unknown symbol, then the end of text."""

    def __init__(self, characters: str, sha256: str) -> None:
        self._points = np.frombuffer(characters.encode("utf-32-le"), np.uint32)
        self._characters = [*characters, "\ufffd", ""]
        self._ids = np.full(0x110000, len(characters), np.int32)
        self._ids[self._points] = np.arange(len(characters))
        self.unknown: int | None = len(characters)
        self.end_of_text = len(characters) + 1
        self.vocab_size = len(characters) + 2
        self.unknown_bits = math.log2(SCALARS - len(characters)) if len(characters) < SCALARS else 0.0
        self.sha256 = sha256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._ids[np.frombuffer(text.encode("utf-32-le"), np.uint32)] for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return "".join([self._characters[i] for i in ids])


def _characters(file: Path, data: bytes) -> str:
    characters = _json(file, data).get("characters")
    if not isinstance(characters, str) or any(a >= b for a, b in pairwise(characters)):
        raise NotWellFormed(f"{file} is damaged: it holds no characters in the order of Unicode. Copy it anew")
    if any("\ud800" <= character <= "\udfff" for character in characters):
        raise NotWellFormed(f"{file} is damaged: halves of surrogate pairs are no characters. Copy it anew")
    return characters


# SentencePiece


class ModelTokenizer:
    """A SentencePiece model; see `TextTokenizer`. Decoding does not undo the model's normalisation."""

    def __init__(self, processor: Any, sha256: str) -> None:
        self._processor = processor
        size = processor.vocab_size()
        self.end_of_text: int = processor.eos_id() if processor.eos_id() >= 0 else size
        self.vocab_size: int = max(size, self.end_of_text + 1)
        self.unknown: int | None = processor.unk_id()
        self.unknown_bits = math.log2(SCALARS)  # at least: an unknown symbol may be several characters
        self.sha256 = sha256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(ids, np.int32) for ids in self._processor.encode(list(texts), num_threads=1)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._processor.decode([int(i) for i in ids if i != self.end_of_text])


def _model_tokenizer(file: Path, data: bytes, sha256: str) -> ModelTokenizer:
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        result = ModelTokenizer(processor, sha256)
        result.decode(result.encode(["A text.\n"])[0])
    except (RuntimeError, IndexError) as error:
        raise NotWellFormed(f"{file} is neither a {JSON_FILE} nor a SentencePiece model: {error}") from None
    return result
