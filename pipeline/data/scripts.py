"""Scripts of languages and of texts, by Unicode."""

from collections import Counter
from functools import cache

import regex

# Codes of ISO 15924 for several scripts of Unicode at once.
SEVERAL = {
    "Jpan": ("Hani", "Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Hanb": ("Hani", "Bopo"),
}
SHOWN_SCRIPTS = (
    *(
        "Latin",
        "Cyrillic",
        "Greek",
        "Han",
        "Hiragana",
        "Katakana",
        "Hangul",
        "Arabic",
        "Hebrew",
        "Devanagari",
        "Bengali",
    ),
    *(
        "Gurmukhi",
        "Gujarati",
        "Tamil",
        "Telugu",
        "Kannada",
        "Malayalam",
        "Sinhala",
        "Thai",
        "Lao",
        "Tibetan",
        "Myanmar",
    ),
    *("Khmer", "Georgian", "Armenian", "Ethiopic", "Mongolian", "Cherokee"),
)
_LETTER = regex.compile(r"\p{L}")


def scripts_of(language: str) -> tuple[str, ...]:
    """The scripts that a language is usually written in, as codes of four letters.

    Args:
        language: a code such as en, zh_TW or sr-Latn.
    Raises:
        ValueError: the language is not known.
    """
    from babel.core import get_global

    parts = language.replace("-", "_").split("_")
    named = next((part.title() for part in parts[1:] if len(part) == 4), None)
    likely = get_global("likely_subtags")
    whole = likely.get("_".join([parts[0].lower(), *(part.upper() for part in parts[1:])])) or likely.get(
        parts[0].lower()
    )
    if named is None and whole is None:
        raise ValueError(f"{language!r} is no language whose script is known; a code such as {language}_Latn names it")
    script = named or str(whole).split("_")[1]
    return SEVERAL.get(script, (script,))


def script_share(text: str, scripts: tuple[str, ...]) -> float:
    """The share of a text's letters in the scripts; 1.0 of a text without letters."""
    if text.isascii() and "Latn" in scripts:
        return 1.0
    letters = len(_LETTER.findall(text))
    return len(_letters_in(scripts).findall(text)) / letters if letters else 1.0


@cache
def _letters_in(scripts: tuple[str, ...]) -> regex.Pattern[str]:
    either = "".join(rf"\p{{Script={script}}}" for script in scripts)
    return regex.compile(rf"(?V1)[\p{{L}}&&[{either}]]")


def count_scripts(text: str) -> Counter[str]:
    """The number of a text's letters by the name of their script, those of rare scripts as "other"."""
    counts: Counter[str] = Counter()
    if text.isascii():
        counts["Latin"] = sum(map(str.isalpha, text))
        return counts
    left = "".join(_LETTER.findall(text))
    for script in SHOWN_SCRIPTS:
        if not left:
            break
        left, count = _of_script(script).subn("", left)
        counts[script] += count
    counts["other"] += len(left)
    return counts


@cache
def _of_script(script: str) -> regex.Pattern[str]:
    return regex.compile(rf"\p{{Script={script}}}")
