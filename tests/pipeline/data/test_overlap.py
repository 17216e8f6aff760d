"""Sentences that are equal but for their spaces are one sentence, whatever the spaces are."""

import pytest

from transloom.pipeline.data.overlap import Sides, pair_hash
from transloom.pipeline.data.pairs import SentencePair


@pytest.mark.parametrize("space", ["  ", "\u00a0", "\u202f", "\u3000", " \t"])
def test_any_white_space_is_a_space(space: str) -> None:
    pair = SentencePair("Oui !", "Yes !")
    other = SentencePair(f"Oui{space}!", f"Yes{space}! ")
    assert pair_hash(pair) == pair_hash(other)
    sides = Sides([pair])
    assert sides.share(SentencePair(other.source, "No")) and sides.share(SentencePair("Non", other.target))
    assert not sides.share(SentencePair("Oui!", "Yes!")), "a space is more than none"
