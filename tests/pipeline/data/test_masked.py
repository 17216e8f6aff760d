"""Masks of a masked language model: how many, which, and that nothing but (seed, epoch, piece) decides."""

import numpy as np
import pytest

from transloom.pipeline.data.masked import MaskedPieces, collate_masked

END, VOCAB = 99, 100
MASK = VOCAB


class Documents:
    columns = ("tokens",)

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)[:, None]

    def __len__(self) -> int:
        return len(self.lengths)

    def get(self, column: str, row: int) -> np.ndarray:
        return np.array([*(np.arange(self.lengths[row, 0] - 1) % 90), END], np.uint16)


DOCUMENTS = Documents([1, 2, 3, 40, 500, 41])


def masked(seed: int | None = 3, epoch: int = 0, documents: Documents = DOCUMENTS) -> MaskedPieces:
    return MaskedPieces(documents, 32, END, MASK, seed, epoch)


def content(pieces: MaskedPieces) -> list[list[list[int]]]:
    return [[part.tolist() for part in pieces.masked(row)] for row in range(len(pieces))]


def test_fifteen_percent_of_each_piece_are_predicted_and_the_lengths_say_so() -> None:
    pieces = masked()
    for row in range(len(pieces)):
        piece, original = pieces.masked(row), pieces.get("text", row)
        number = max(1, round(0.15 * len(original)))
        assert len(piece.places) == len(piece.labels) == pieces.lengths[row, 0] == number
        assert pieces.lengths[row, 1] == len(original) == len(piece.tokens)
        assert original[piece.places].tolist() == piece.labels.tolist() == pieces.get("masked", row).tolist()
        others = np.delete(np.arange(len(original)), piece.places)
        assert piece.tokens[others].tolist() == original[others].tolist()
        assert len(original) == 1 or original[0] != END or 0 not in piece.places, "the end of text is no word"


def test_every_token_stands_in_one_piece_of_an_epoch() -> None:
    pieces = masked()
    words = np.concatenate([pieces.get("text", row) for row in range(len(pieces))])
    assert (words == END).sum() == len(DOCUMENTS), "once before each document"
    assert (words != END).sum() == int(DOCUMENTS.lengths.sum()) - len(DOCUMENTS)


def test_masks_are_of_seed_and_epoch_and_those_of_validation_stay() -> None:
    assert content(masked()) == content(masked())
    fixed = Documents([30] * 20)  # no document is cut, so that the texts are the same
    assert content(masked(documents=fixed)) != content(masked(epoch=1, documents=fixed))
    assert content(masked(documents=fixed)) != content(masked(seed=4, documents=fixed))
    assert content(masked(seed=None)) == content(masked(seed=None, epoch=7))


def test_of_the_masked_tokens_eighty_percent_are_masks_and_ten_are_random() -> None:
    pieces = masked(documents=Documents([32] * 3000))
    parts = [pieces.masked(row) for row in range(len(pieces))]
    tokens = np.concatenate([part.tokens[part.places] for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    is_mask, same = tokens == MASK, tokens == labels
    assert is_mask.mean() == pytest.approx(0.8, abs=0.01)
    assert same.mean() == pytest.approx(0.1 + 0.1 / VOCAB, abs=0.01)
    assert tokens[~is_mask].max() < VOCAB


def test_a_batch_has_the_masked_tokens_of_its_pieces_then_filler() -> None:
    pieces = masked()
    rows = [3, 0, 5]
    batch = collate_masked(pieces, rows)
    parts = [pieces.masked(row) for row in rows]
    lengths = [len(part.tokens) for part in parts]
    assert batch.tokens[: sum(lengths)].tolist() == np.concatenate([part.tokens for part in parts]).tolist()
    starts = np.cumsum([0, *lengths[:-1]])
    places = np.concatenate([start + part.places for start, part in zip(starts, parts, strict=True)])
    assert batch.places[: len(places)].tolist() == places.tolist() and len(batch.places) % 64 == 0
    assert batch.labels.tolist() == np.concatenate([part.labels for part in parts]).tolist()
