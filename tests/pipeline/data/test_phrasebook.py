import os
import re
import subprocess
import sys
from string import Formatter

import pytest

from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.errors import UserError
from transloom.pipeline.phrasebook import LANGUAGE_PAIRS, phrasebook_pairs, phrasebook_version
from transloom.pipeline.phrasebook.frames import FRAMES
from transloom.pipeline.phrasebook.slots import SLOTS, fill

LANGUAGES = ("en", "de", "fr")


@pytest.fixture(scope="module")
def sentences() -> dict[str, list[list[str]]]:
    """60,000 training and 2 x 2,000 held-out sentences in each language, of the same meaning at the same place."""
    counts = {"train": 60_000, "validation": 2000, "test": 2000}
    texts: dict[str, list[list[str]]] = {}
    for split, count in counts.items():
        german, french = (list(phrasebook_pairs("en", language, split, count)) for language in ("de", "fr"))
        assert [pair.source for pair in german] == [pair.source for pair in french]
        texts[split] = [[p.source for p in german], [p.target for p in german], [p.target for p in french]]
    return texts


def gaps(text: str) -> dict[str, set[str]]:
    """The gaps of a frame's text with the forms that it uses: {"city1": {"of"}}."""
    used: dict[str, set[str]] = {}
    for _, field, _, _ in Formatter().parse(text):
        if field:
            name, _, form = field.rstrip("]").partition("[")
            used.setdefault(name, set()).add(form or "plain")
    return used


def test_sixty_thousand_distinct_pairs(sentences):
    for texts in sentences["train"]:
        assert len(set(texts)) == 60_000


def test_every_sentence_has_one_translation_in_either_direction(sentences):
    english, *others = ([text for split in sentences.values() for text in split[i]] for i in range(3))
    for other in others:
        assert len(set(english)) == len(set(other)) == len(set(zip(english, other, strict=True))) == 64_000


def test_no_sentence_of_either_side_is_in_two_splits(sentences):
    for language in range(3):
        train, validation, test = (set(texts[language]) for texts in sentences.values())
        assert train.isdisjoint(validation) and train.isdisjoint(test) and validation.isdisjoint(test)


def test_another_seed_gives_other_pairs_that_keep_to_their_split():
    first = set(phrasebook_pairs("en", "de", "test", 300))
    second = list(phrasebook_pairs("en", "de", "test", 300, seed=1))
    train = set(phrasebook_pairs("en", "de", "train", 5000, seed=1))
    assert len(first.intersection(second)) < 30
    assert train.isdisjoint(first) and train.isdisjoint(second)


def test_splits_have_the_same_distribution_of_words(sentences):
    """Held-out sentences use only words, and numbers almost only, that training has."""
    for language in range(3):
        known = {word for text in sentences["train"][language] for word in text.split()}
        held_out = [word for text in sentences["test"][language] for word in text.split()]
        unknown = [word for word in held_out if word not in known]
        assert len(unknown) < 0.002 * len(held_out), unknown


def test_every_value_differs_from_every_other_in_the_forms_that_a_frame_uses():
    """So a sentence tells what stands in its gaps, and the splits are disjoint in every language."""
    needed = {
        (name.rstrip("123"), tuple(sorted(forms)), language)
        for frame in FRAMES
        for language in LANGUAGES
        for name, forms in gaps(getattr(frame, language)).items()
    }
    for slot, forms, language in needed:
        filled = [fill(slot, index, language) for index in range(len(SLOTS[slot].values))]
        assert len({tuple(value[form] for form in forms) for value in filled}) == len(filled), (slot, forms, language)


def test_every_gap_stands_in_all_languages():
    for frame in FRAMES:
        assert gaps(frame.en).keys() == gaps(frame.de).keys() == gaps(frame.fr).keys()


def test_frames_differ_in_every_language():
    for language in LANGUAGES:
        # What stands between the gaps, with the kinds of gap, tells two frames apart.
        assert len({re.sub(r"\{(\w+?)\d?(\[\w+\])?\}", "_", getattr(frame, language)) for frame in FRAMES}) == len(
            FRAMES
        )


@pytest.mark.parametrize(("source", "target"), LANGUAGE_PAIRS)
def test_directions_mirror_each_other(source, target):
    there, back = (phrasebook_pairs(*pair, "train", 200) for pair in ((source, target), (target, source)))
    assert [SentencePair(b.target, b.source) for b in back] == list(there)


def test_a_smaller_count_is_the_beginning_of_a_larger_one():
    assert list(phrasebook_pairs("en", "fr", "train", 50)) == list(phrasebook_pairs("en", "fr", "train", 100))[:50]
    assert list(phrasebook_pairs("en", "fr", "train", 0)) == []


def test_does_not_depend_on_hash_seed_locale_or_time_zone():
    program = (
        "from hashlib import sha256\n"
        "from transloom.pipeline.phrasebook import phrasebook_pairs, phrasebook_version\n"
        "pairs = list(phrasebook_pairs('en', 'fr', 'train', 2000))\n"
        "print(phrasebook_version(), sha256(repr(pairs).encode()).hexdigest())"
    )
    environments = (
        {"PYTHONHASHSEED": "1", "LC_ALL": "C", "LANGUAGE": "C", "TZ": "UTC"},
        {"PYTHONHASHSEED": "2", "LC_ALL": "de_DE.UTF-8", "LANGUAGE": "de_DE", "TZ": "Asia/Tokyo"},
    )
    first, second = (
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, **variables}, capture_output=True, check=True
        ).stdout
        for variables in environments
    )
    assert first == second


def test_version_names_the_data_it_comes_from():
    assert re.fullmatch(r"phrasebook [0-9a-f]{12}, babel [\d.]+, num2words [\d.]+", phrasebook_version())


def test_sentences_are_clean_lines_of_five_to_twenty_words(sentences):
    lengths = []
    for texts in sentences.values():
        for language in texts:
            for text in language:
                assert text == " ".join(text.split()) and text.isprintable()
                assert text.endswith(".") and "{" not in text
                lengths.append(len(text.split()))
    assert min(lengths) >= 4 and max(lengths) <= 23
    assert sum(5 <= length <= 20 for length in lengths) > 0.98 * len(lengths)


def test_french_elides_and_contracts(sentences):
    french = " ".join(text for texts in sentences.values() for text in texts[2])
    vowel = "[AEIOUÉÂÎaeiouéâîœ]"
    assert not re.findall(rf"\b(?:de|le|la|que|jusque) (?!onz|un\b){vowel}\w*", french)
    assert not re.findall(r"\b(?:à|de) les?\b|\b(?:à|de) l[ae] (?:Portugal|Pays)", french)
    assert not re.findall(r"\b1 (?:janvier|mars|avril|août|décembre)", french)  # le 1er mars
    assert not re.findall(r"\bpremier (?:fois|place)|quatre-vingtsième", french)


def test_numbers_agree(sentences):
    english, german, french = (" ".join(text for texts in sentences.values() for text in texts[i]) for i in range(3))
    assert "1 hour " in english and not re.findall(r"\b1 hours|\b(?!1\b)\d+ (?:hour|minute|day|year)\b", english)
    assert "1 Stunde " in german and not re.findall(r"\b1 Stunden|(?:in|vor|seit) \d+ (?:Tage|Jahre|Monate)\b", german)
    assert "1,5 million de" in french and not re.findall(
        r"\b1,\d millions|\b[2-9],\d (?:million|litre|hectare)\b", french
    )


@pytest.mark.parametrize(
    ("slot", "value", "language", "form", "text"),
    [
        ("country", ("la", "CH"), "de", "in", "in der Schweiz"),
        ("country", ("la", "CH"), "de", "to", "in die Schweiz"),
        ("country", ("les", "NL"), "de", "from", "aus den Niederlanden"),
        ("country", ("les", "NL"), "en", "in", "in the Netherlands"),
        ("country", ("les", "NL"), "fr", "to", "aux Pays-Bas"),
        ("country", ("la", "FR"), "fr", "in", "en France"),
        ("country", ("le", "JP"), "fr", "in", "au Japon"),
        ("country", ("l'", "IT"), "fr", "from", "d'Italie"),
        ("country", ("la", "FR"), "de", "to", "nach Frankreich"),
        ("language", "hu", "fr", "the", "le hongrois"),
        ("language", "de", "fr", "the", "l'allemand"),
        ("city", "Europe/Vienna", "de", "plain", "Wien"),
        ("city", "Europe/Athens", "fr", "of", "d'Athènes"),
        ("weekday", 0, "de", "each", "montags"),
        ("weekday", 0, "fr", "each", "le lundi"),
        ("ordinal", 1, "fr", "feminine", "première"),
        ("ordinal", 21, "de", "n", "einundzwanzigsten"),
        ("span", (3, "year"), "de", "dative", "3 Jahren"),
        ("span", (3, "month"), "de", "ago", "vor 3 Monaten"),
        ("span", (2, "week"), "fr", "ahead", "dans 2 semaines"),
        ("count", 80, "fr", "plain", "quatre-vingts"),
        ("amount", (100, "DKK"), "de", "plain", "100 dänische Kronen"),
        ("amount", (100, "CHF"), "de", "plain", "100 Schweizer Franken"),
        ("number", 12_500, "fr", "plain", "12 500"),
        ("liquid", {"en": "olive oil", "de": "Olivenöl", "fr": "huile d'olive"}, "fr", "of", "d'huile d'olive"),
        ("duration", (1, 30), "de", "plain", "1 Stunde und 30 Minuten"),
    ],
)
def test_forms(slot, value, language, form, text):
    assert fill(slot, list(SLOTS[slot].values).index(value), language)[form] == text


def test_refuses_other_languages_by_name():
    with pytest.raises(UserError, match=r"corpus\.source_language=de corpus\.target_language=fr.*en-de.*fr-en"):
        next(phrasebook_pairs("de", "fr", "train", 1))


def test_says_when_it_runs_out(monkeypatch):
    monkeypatch.setattr("transloom.pipeline.phrasebook.FRAMES", FRAMES[:1])
    monkeypatch.setattr("transloom.pipeline.phrasebook._PATIENCE", 500)
    with pytest.raises(UserError, match=r"corpus\.phrasebook_pairs: .* test pairs after"):
        list(phrasebook_pairs("en", "de", "test", 50_000))
