import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transloom.pipeline.data.pieces import inputs_and_labels, pieces_of

LENGTHS = st.lists(st.integers(0, 50), max_size=12)


@given(LENGTHS, st.integers(1, 20), st.one_of(st.none(), st.integers(0, 5)), st.integers(0, 3))
def test_every_token_is_predicted_exactly_once(lengths, context, seed, epoch):
    pieces = pieces_of(np.array(lengths, dtype=np.int32), context, seed, epoch)
    predicted = [np.zeros(length, int) for length in lengths]
    for document, start, length in zip(*pieces, strict=True):
        assert 1 <= length <= context
        predicted[document][start : start + length] += 1
        assert start + length <= lengths[document]
    assert all((counts == 1).all() for counts in predicted)
    assert pieces.document.tolist() == sorted(pieces.document.tolist())


@given(LENGTHS, st.integers(1, 20), st.integers(0, 5), st.integers(0, 3))
def test_labels_in_order_are_the_document_and_inputs_are_one_place_before(lengths, context, seed, epoch):
    pieces = pieces_of(np.array(lengths), context, seed, epoch)
    for document, length in enumerate(lengths):
        tokens = np.arange(100, 100 + length)
        cut = [
            inputs_and_labels(tokens, start, size, end_of_text=7)
            for number, start, size in zip(*pieces, strict=True)
            if number == document
        ]
        if cut:
            assert np.concatenate([labels for _, labels in cut]).tolist() == tokens.tolist()
            assert np.concatenate([inputs for inputs, _ in cut]).tolist() == [7, *tokens.tolist()[:-1]]


def test_the_example_of_the_documentation():
    inputs, labels = inputs_and_labels(np.array([5, 6, 0], dtype=np.uint16), 0, 3, end_of_text=0)
    assert (inputs.tolist(), labels.tolist()) == ([0, 5, 6], [5, 6, 0])
    assert inputs.dtype == np.uint16


def test_without_a_seed_pieces_begin_where_the_document_does():
    pieces = pieces_of(np.array([10, 3, 0, 4, 8]), 4)
    assert list(zip(*(column.tolist() for column in pieces), strict=True)) == [
        (0, 0, 4),
        (0, 4, 4),
        (0, 8, 2),
        (1, 0, 3),
        (3, 0, 4),
        (4, 0, 4),
        (4, 4, 4),
    ]


def test_cuts_of_long_documents_move_evenly_from_epoch_to_epoch_and_come_back_by_the_seed():
    lengths = np.array([1000] * 50 + [5])
    firsts = np.concatenate([pieces_of(lengths, 8, 3, epoch).length[:-1] for epoch in range(40)])
    starts = np.concatenate([pieces_of(lengths, 8, 3, epoch).start[:-1] for epoch in range(40)])
    counts = np.bincount(firsts[starts == 0], minlength=9)[1:]
    assert counts.sum() == 2000
    assert counts.min() > 180  # of 250 expected
    for epoch in (0, 1):
        again = pieces_of(lengths, 8, 3, epoch)
        assert all((a == b).all() for a, b in zip(again, pieces_of(lengths, 8, 3, epoch), strict=True))
    assert not np.array_equal(pieces_of(lengths, 8, 3, 0).start[:100], pieces_of(lengths, 8, 3, 1).start[:100])
    assert not np.array_equal(pieces_of(lengths, 8, 3, 0).start[:100], pieces_of(lengths, 8, 4, 0).start[:100])
    assert pieces_of(lengths, 8, 3, 1).length[-1] == 5  # what fits is never cut


def test_a_context_of_nothing_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^context:"):
        pieces_of(np.array([3]), 0)
