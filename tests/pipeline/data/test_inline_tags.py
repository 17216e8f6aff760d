"""Inline tags: around the words that they were around, well-formed whatever the alignment."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transloom.pipeline.data.inline_tags import Node, Pair, Tag, markup_of, text_of, with_tags

BOLD = ("<g id='1'>", "</g>")
STRAIGHT = [(i, i) for i in range(9)]


def bold(*children: Node) -> Pair:
    return Pair(*BOLD, list(children))


@pytest.mark.parametrize(
    ("nodes", "translation", "links", "expected"),
    [
        (["the ", bold("red"), " house"], "la maison rouge", [(0, 0), (1, 2), (2, 1)], "la maison <g id='1'>rouge</g>"),
        ([bold("the red house")], "la maison rouge", [], "<g id='1'>la maison rouge</g>"),
        (["a ", bold("b c"), " d"], "A B C D", STRAIGHT, "A <g id='1'>B C</g> D"),
        (["a ", bold("b ", Tag("<x/>"), "c"), " d"], "A B C D", STRAIGHT, "A <g id='1'>B <x/>C</g> D"),
        (["Click", Tag("<br/>"), " here"], "Hier klicken", STRAIGHT, "Hier<br/> klicken"),
        (["Click ", Tag("<x/>"), " here"], "Hier klicken", STRAIGHT, "Hier <x/> klicken"),
        ([" ", Tag("<x/>"), bold(" Hello world "), Tag("<y/>"), " "], "A B", [], " <x/><g id='1'> A B </g><y/> "),
        ([Tag("<x/>"), " Hello world"], "Hallo Welt", STRAIGHT, "<x/> Hallo Welt"),
        (["Hello world", Tag("<x/>")], "Hallo Welt", STRAIGHT, "Hallo Welt<x/>"),
        (["Hello world ", Tag("<x/>")], "Hallo Welt", STRAIGHT, "Hallo Welt <x/>"),
        (["one two three four"], "eins & zwei", [], "eins &amp; zwei"),
        (["one two ", Tag("<x/>"), "three four"], "eins zwei drei vier", [], "eins zwei <x/>drei vier"),
        (["  a ", bold(), "b\n"], "A B", STRAIGHT, "  A<g id='1'></g> B\n"),
        ([" ", Tag("<x/>"), " "], "", [], " <x/> "),
        (["a b"], "bell\x07 <1>", [], "bell  &lt;1&gt;"),
        (["a ", bold("b"), " c"], "", [], "<g id='1'></g>"),
        # Two words that change places take their tags with them.
        (
            [Pair("<i>", "</i>", ["a"]), " ", Pair("<b>", "</b>", ["b"])],
            "B A",
            [(0, 1), (1, 0)],
            "<b>B</b> <i>A</i>",
        ),
        # Pairs of single tags, as TMX has them.
        (
            ["the ", Tag("<bpt i='1'/>", "1", True), "red", Tag("<ept i='1'/>", "1"), " house"],
            "la maison rouge",
            [(0, 0), (1, 2), (2, 1)],
            "la maison <bpt i='1'/>rouge<ept i='1'/>",
        ),
    ],
)
def test_tags_go_with_their_words(nodes, translation, links, expected) -> None:
    assert with_tags(nodes, translation, links) == expected


def test_without_a_translation_the_nodes_are_as_they_were() -> None:
    nodes: list[Node] = ["a & b", Tag("<x/>"), bold("c ", bold("d"))]
    assert text_of(nodes) == "a & bc d"
    assert markup_of(nodes) == "a &amp; b<x/><g id='1'>c <g id='1'>d</g></g>"


trees = st.recursive(
    st.sampled_from(["a", "b c", " ", "", " d ", "e "]) | st.builds(Tag, st.sampled_from(["<x/>", "<y/>"])),
    lambda inner: st.builds(lambda children: Pair("<g>", "</g>", children), st.lists(inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(trees, max_size=6),
    st.lists(st.sampled_from(["A", "B<", "&C"]), max_size=6),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12),
)
def test_every_tag_and_every_word_is_there_once_and_it_is_well_formed(
    nodes: list[Node], words: list[str], links: list[tuple[int, int]]
) -> None:
    before = markup_of(nodes)
    result = with_tags(nodes, " ".join(words), links)
    root = ElementTree.fromstring(f"<seg>{result}</seg>")
    assert sorted(re.findall(r"<[^>]+>", result)) == sorted(re.findall(r"<[^>]+>", before))
    if text_of(nodes).strip():
        assert "".join(root.itertext()).replace(" ", "") == "".join(words)
