"""The embedded corpus: English-German and English-French sentences made from CLDR data and spelled-out numbers.

It needs no network and no file, and is the same on every machine: a pair is a sentence frame (`frames.py`) whose gaps
(`slots.py`) a seeded generator fills from Babel's CLDR tables and num2words.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from random import Random
from string import Formatter

from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.errors import UserError
from transloom.pipeline.phrasebook.frames import FRAMES, Frame
from transloom.pipeline.phrasebook.slots import SLOTS, fill

LANGUAGE_PAIRS = [("en", "de"), ("de", "en"), ("en", "fr"), ("fr", "en")]

# A sentence's split is where the hash of its English text falls among these shares (percent).
_SHARES = {"train": range(0, 90), "validation": range(90, 95), "test": range(95, 100)}
# Candidates in a row that bring nothing new before the corpus counts as used up.
_PATIENCE = 20_000


def phrasebook_pairs(
    source_language: str, target_language: str, split: str, count: int, seed: int = 0
) -> Iterator[SentencePair]:
    """Yields `count` distinct pairs of `split` ("train", "validation" or "test"), always the same for the same seed.

    A pair belongs to one split by its content, whatever the seed; all languages get the same sentences in the same
    order, and a smaller count gets the beginning of a larger one.

    Raises:
        UserError: no such language pair, or fewer than `count` distinct pairs exist.
    """
    if (source_language, target_language) not in LANGUAGE_PAIRS:
        raise UserError(
            f"corpus.source_language={source_language} corpus.target_language={target_language}: the phrasebook has "
            f"{', '.join(f'{source}-{target}' for source, target in LANGUAGE_PAIRS)}. "
            "Choose one of these, or a corpus of your own (corpus=text)."
        )
    share = _SHARES[split]
    random = Random(f"{split} {seed}")
    seen: set[bytes] = set()
    rejected = 0
    while len(seen) < count:
        frame, values = _draw(random)
        english = _render(frame, values, "en")
        digest = hashlib.sha256(english.encode()).digest()
        if int.from_bytes(digest[:4]) % 100 not in share or digest in seen:
            rejected += 1
            if rejected == _PATIENCE:
                raise UserError(
                    f"corpus.phrasebook_pairs: the phrasebook ran out of new {split} pairs after {len(seen):,} of "
                    f"{count:,}. Ask for fewer."
                )
            continue
        rejected = 0
        seen.add(digest)
        yield SentencePair(_render(frame, values, source_language), _render(frame, values, target_language))


def phrasebook_version() -> str:
    """Changes whenever the sentences may: names the versions of the data and a hash of this package's own text."""
    own = b"".join(
        (files(__name__) / name).read_bytes() for name in ("__init__.py", "frames.py", "slots.py", "words.py")
    )
    data = [f"{library} {version(library)}" for library in ("babel", "num2words")]
    return ", ".join([f"phrasebook {hashlib.sha256(own).hexdigest()[:12]}", *data])


@cache
def _gaps(frame: Frame) -> list[tuple[str, str]]:
    """The frame's gaps with their slots: [("city1", "city"), ("time", "time")]."""
    names = [field.partition("[")[0] for _, field, _, _ in Formatter().parse(frame.en) if field]
    return [(name, name.rstrip("123")) for name in dict.fromkeys(names)]


def _draw(random: Random) -> tuple[Frame, dict[str, tuple[str, int]]]:
    """A frame, and for each of its gaps a slot and the number of a value: no value twice in a sentence."""
    # Only random() is promised to give the same numbers in every version of Python.
    frame = FRAMES[int(random.random() * len(FRAMES))]
    while True:
        values = {name: (slot, int(random.random() * len(SLOTS[slot].values))) for name, slot in _gaps(frame)}
        if len(set(values.values())) == len(values):
            return frame, values


def _render(frame: Frame, values: dict[str, tuple[str, int]], language: str) -> str:
    template: str = getattr(frame, language)
    text = template.format_map({name: fill(slot, index, language) for name, (slot, index) in values.items()})
    return text[0].upper() + text[1:]
