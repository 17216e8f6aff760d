"""Text that grows token by token is the decoded whole, cut at the first stop string."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_toys import ByteTokenizer

from transloom.pipeline.generate.text_stream import TextStream

decode = ByteTokenizer().decode


def push_all(stream: TextStream, tokens) -> list[str]:
    return [*(stream.push(int(token)) for token in tokens), stream.finish()]


def cut_by_character(text: str, stop: list[str]) -> str:
    """The text before the stop string whose last character comes first, character by character."""
    for end in range(1, len(text) + 1):
        if endings := [one for one in stop if text[:end].endswith(one)]:
            return text[: end - max(map(len, endings))]
    return text


def test_no_part_of_a_character_is_handed_out() -> None:
    stream = TextStream(decode)
    assert push_all(stream, "aé€😀z".encode()) == ["a", "", "é", "", "", "€", "", "", "", "😀", "z", ""]
    assert stream.text == "aé€😀z"


def test_bytes_that_are_no_text_come_as_the_replacement_character() -> None:
    stream = TextStream(decode)
    assert "".join(push_all(stream, b"a\xff\xe2\x82b\xe2\x82")) == "a\ufffd\ufffdb\ufffd" == stream.text


def test_a_stop_string_ends_the_text_before_it_and_nothing_of_it_is_handed_out() -> None:
    stream = TextStream(decode, stop=["END"])
    assert push_all(stream, b"x EN ENDING") == ["x", " ", "", "", "EN ", "", "", "", "", "", "", ""]
    assert stream.stopped and stream.text == "x EN "


def test_the_beginning_of_a_stop_string_that_does_not_come_is_handed_out_at_the_end() -> None:
    stream = TextStream(decode, stop=["\n\nQ"])
    assert "".join(push_all(stream, b"yes\n\n")) == "yes\n\n"
    assert not stream.stopped


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=24), st.text("abé€😀\ufffd", max_size=24).map(str.encode)),
    st.lists(st.text("abé", min_size=1, max_size=3), max_size=3),
    st.binary(max_size=4),
)
def test_the_pieces_are_the_whole_whatever_the_bytes(data: bytes, stop: list[str], prompt: bytes) -> None:
    stream = TextStream(decode, stop, list(b"." + prompt + b"."))
    handed_out = "".join(push_all(stream, data))
    assert handed_out == stream.text == cut_by_character(data.decode(errors="replace"), stop)


@settings(max_examples=200, deadline=None)
@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_the_result_does_not_depend_on_how_text_is_cut_into_tokens(text: str, stop: list[str], data) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    stream = TextStream(lambda ids: "".join(pieces[i] for i in ids), stop)
    push_all(stream, range(len(pieces)))
    assert stream.text == cut_by_character(text, stop)
    assert stream.stopped == (stream.text != text)


@pytest.mark.parametrize("prompt", [[], [0], [0, 1]])
def test_the_space_that_a_decoder_drops_at_the_beginning_is_kept_after_a_prompt(prompt: list[int]) -> None:
    words = [" the", " cat", " sat"]

    def decode_words(ids) -> str:  # as SentencePiece does
        return "".join(words[i] for i in ids).removeprefix(" ")

    stream = TextStream(decode_words, prompt=prompt)
    push_all(stream, [2, 1])
    assert stream.text == (" sat cat" if prompt else "sat cat")


def test_bytes_that_a_decoder_takes_back_until_the_run_is_whole_are_held_back() -> None:
    def decode_run(ids) -> str:  # as a byte fallback does: a run of bytes is text as a whole, or not at all
        data = bytes(ids)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(data)

    stream = TextStream(decode_run)
    assert push_all(stream, "字中文".encode()) == ["", "", "字", "", "", "中", "", "", "文", ""]


def test_a_long_text_is_decoded_in_short_windows() -> None:
    sizes = []

    def counting(ids) -> str:
        sizes.append(len(ids))
        return decode(ids)

    push_all(TextStream(counting, stop=["zz"]), np.frombuffer(("aé€" * 200).encode(), dtype=np.uint8))
    assert max(sizes) <= 16
