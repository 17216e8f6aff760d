"""A subword vocabulary shared by both languages: SentencePiece's byte pair encoding or unigram model."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from transloom.pipeline.data.lines import count_lines, read_lines
from transloom.pipeline.data.words import collapse_whitespace
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import absolute_path, atomic_write, sha256_file
from transloom.pipeline.untrusted import read_small

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
MODEL_FILE = "tokenizer.model"
MAX_MODEL_BYTES = 256 * 2**20


class TokenizerKind(Enum):
    """Byte pair encoding (Sennrich et al. 2016), or a unigram language model (Kudo 2018)."""

    bpe = "bpe"
    unigram = "unigram"


@dataclass(frozen=True)
class TokenizerConfig:
    """The vocabulary to learn, or an existing one.

    Attributes:
        kind: how the vocabulary is learnt.
        vocab_size: pieces of the vocabulary, which both languages share.
        character_coverage: share of the text's characters that get a piece of their own, from 0.98.
        byte_fallback: whether other characters are written as bytes, instead of as unknown.
        max_training_pairs: taken evenly from a larger corpus.
        path: of an existing tokenizer.model, or of a folder with one, such as a run's model/; then nothing is learnt,
            and the other settings mean nothing.

    Raises:
        ValueError: if a setting is out of range, naming the field.
    """

    vocab_size: int = 10_000
    character_coverage: float = 1.0
    byte_fallback: bool = True
    max_training_pairs: int = 1_000_000
    path: str | None = None
    kind: TokenizerKind = TokenizerKind.bpe

    def __post_init__(self) -> None:
        smallest = 4 + 256 * self.byte_fallback + 1
        if self.vocab_size < smallest:
            raise ValueError(
                f"vocab_size: must be at least {smallest} (special pieces and bytes), not {self.vocab_size}"
            )
        if not 0.98 <= self.character_coverage <= 1.0:
            raise ValueError(f"character_coverage: must be from 0.98 to 1.0, not {self.character_coverage}")
        if self.max_training_pairs < 1:
            raise ValueError(f"max_training_pairs: must be at least 1, not {self.max_training_pairs}")

    def with_absolute_paths(self) -> "TokenizerConfig":
        """The configuration with its path made absolute (from the working directory), and ~ expanded."""
        return replace(self, path=self.path and absolute_path(self.path))


def train_tokenizer(
    files: list[Path], config: TokenizerConfig, folder: Path, tags: Sequence[str] = ()
) -> dict[str, Any]:
    """Learns one vocabulary from the lines of all files, or copies the existing one, and writes
    `folder`/tokenizer.model.

    The same lines and settings give the same file, byte for byte. A corpus too small for `vocab_size` gives a
    smaller vocabulary.

    Args:
        files: cleaned text, one sentence a line, equally many lines in each.
        tags: words that are one piece each at the beginning of a line or behind a space.

    Returns:
        The manifest's entries: vocab_size and requested_vocab_size, training_lines (0: nothing was learnt), sha256 of
        the model.

    Raises:
        UserError: there is nothing to learn from, or the vocabulary can't hold every character; `path` has no
            tokenizer.
    """
    if config.path:
        data = existing_tokenizer(config.path)
        with atomic_write(folder / MODEL_FILE) as file:
            file.write(data)
        return _counts(Tokenizer.load(folder), None, 0)
    total = count_lines(files[0])
    wanted = min(total, config.max_training_pairs)
    if not wanted:
        raise UserError(f"{files[0]} is empty: there is nothing to train a tokenizer on")
    lines = (line for file in files for line in _evenly(read_lines(file), wanted, total))
    model = io.BytesIO()
    own_pieces: dict[str, Any] = {"user_defined_symbols": [f"\u2581{tag}" for tag in tags]} if tags else {}
    try:
        # Lines come from an iterator: SentencePiece's own file reader leaves long lines out.
        # "identity" changes no character, so decoding returns the text unchanged: NFKC would turn ½ into 1⁄2 and ²
        # into 2, which a reference written with ½ counts as an error. No spaces are added or removed either, after
        # collapse_whitespace. Only U+2581, SentencePiece's own mark, decodes to a space.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type=config.kind.value,
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,
            character_coverage=config.character_coverage,
            byte_fallback=config.byte_fallback,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 20,
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            **own_pieces,
            num_threads=2,  # fixed: the number changes no piece, but is part of the file and so of its hash
            minloglevel=2,
        )
    except RuntimeError as error:
        if "smaller than required_chars" not in str(error):
            raise
        raise UserError(
            f"tokenizer.vocab_size={config.vocab_size} can't hold every character of the corpus: {error}. "
            f"Raise tokenizer.vocab_size, or lower tokenizer.character_coverage (rare characters become bytes)."
        ) from None
    with atomic_write(folder / MODEL_FILE) as file:
        file.write(model.getvalue())
    return _counts(Tokenizer.load(folder), config.vocab_size, wanted * len(files))


def _counts(tokenizer: "Tokenizer", requested: int | None, training_lines: int) -> dict[str, Any]:
    return {
        "vocab_size": tokenizer.vocab_size,
        "requested_vocab_size": requested or tokenizer.vocab_size,
        "training_lines": training_lines,
        "sha256": tokenizer.sha256,
        "sentencepiece_version": sentencepiece.__version__,
    }


def existing_tokenizer(path: str) -> bytes:
    """The content of the tokenizer.model that `TokenizerConfig.path` names.

    Raises:
        UserError: there is none, or it is no SentencePiece model with this project's special ids.
    """
    file = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise UserError(
            f"tokenizer.path: there is no {file}. Name a {MODEL_FILE}, or a folder with one such as a run's model/"
        )
    try:
        Tokenizer.load(file)
    except UserError as error:
        raise UserError(f"tokenizer.path: {error}") from error
    return read_small(file, MAX_MODEL_BYTES)


def _evenly(lines: Iterable[bytes], wanted: int, total: int) -> Iterator[bytes]:
    """`wanted` of the `total` lines, evenly spread: the start of a corpus is often of a single kind."""
    return (line for i, line in enumerate(lines) if (i + 1) * wanted // total > i * wanted // total)


class Tokenizer:
    """Text to token ids and back. Ids: <pad> 0, <unk> 1, <s> 2, </s> 3."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, sha256: str) -> None:
        self._processor = processor
        self.sha256 = sha256
        self.vocab_size: int = processor.vocab_size()
        self.pad_id, self.bos_id, self.eos_id = PAD_ID, BOS_ID, EOS_ID

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Reads a tokenizer.model, or the folder that holds it.

        Raises:
            UserError: the file is missing, or is no SentencePiece model with these special ids.
        """
        file = path / MODEL_FILE if path.is_dir() else path
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=read_small(file, MAX_MODEL_BYTES))
        except FileNotFoundError:
            raise UserError(f"no tokenizer at {file}: run the prepare job first") from None
        except RuntimeError as error:
            raise UserError(f"{file} is not a SentencePiece model: {error}") from None
        ids = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
        if ids != (PAD_ID, UNK_ID, BOS_ID, EOS_ID):
            raise UserError(f"{file}: its ids of <pad>, <unk>, <s>, </s> are {ids}, but must be 0, 1, 2, 3")
        return cls(processor, sha256_file(file))

    def pieces(self) -> list[str]:
        """The vocabulary, by id; U+2581 stands for a space."""
        return [self._processor.id_to_piece(i) for i in range(self.vocab_size)]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The token ids of each text, ending in </s>; an empty text is </s> alone."""
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: list[str]) -> list[np.ndarray]:
        """As `encode`, as arrays of int32."""
        # One thread: the callers spread work over processes.
        return self._processor.encode(
            [collapse_whitespace(text) for text in texts], add_eos=True, num_threads=1, return_type="numpy"
        )

    def decode(self, token_ids: list[list[int]]) -> list[str]:
        """The text of each list of ids, without special ids, each on one line."""
        # A model may generate the byte of a line feed, but a hypothesis must stay on one line.
        return [text.replace("\n", " ") for text in self._processor.decode(token_ids, num_threads=1)]
