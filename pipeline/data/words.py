"""Counts words, in a unit for scripts with and without spaces between words."""

import re

# The average number of characters in a word, in scripts without spaces. The text's characters decide, not the language,
# so a sentence may be mixed. A thousand words of English correspond to 1,300 to 1,800 characters of Chinese, 2,000 to
# 2,500 of Japanese and about 5,000 of Thai; Lao, Khmer, Burmese and Tibetan are like Thai. Korean has spaces.
CHARACTERS_PER_WORD = (
    (
        2,  # Han, kana, Bopomofo
        re.compile(
            "[\u2e80-\u2fdf\u3005-\u3007\u3021-\u302f\u3031-\u3035\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"
            "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001aff0-\U0001b16f\U00020000-\U0003ffff]"
        ),
    ),
    (
        5,  # Thai, Lao, Tibetan, Burmese, Khmer, the Tai scripts
        re.compile(
            "[\u0e01-\u0e3a\u0e40-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17da\u17dc-\u17ff\u1950-\u19ff\u1a20-\u1aad"
            "\ua9e0-\ua9ff\uaa60-\uaadf]"
        ),
    ),
)


_WITHOUT_SPACES = re.compile("[\u0e01-\U0010ffff]")  # begins with the first of CHARACTERS_PER_WORD


def count_collapsed_words(text: str) -> int:
    """`count_words` of a text as `collapse_whitespace` makes it, in less time."""
    if not text:
        return 0
    has_spaces = text.isascii() or not _WITHOUT_SPACES.search(text)
    return text.count(" ") + 1 if has_spaces else count_words(text)


def count_words(text: str) -> int:
    """The number of words between ASCII whitespace. In scripts without spaces, the number of characters divided by
    `CHARACTERS_PER_WORD`, rounded up, plus the words of other scripts among them."""
    if text.isascii():
        return len(text.encode().split())
    words, rest = 0, text
    for size, characters in CHARACTERS_PER_WORD:
        rest, count = characters.subn(" ", rest)
        words += -(-count // size)
    if not words:
        return len(text.encode().split())
    # Punctuation that is left when the characters around it are removed is no word.
    return words + sum(any(map(str.isalnum, word)) for word in rest.split())


def is_unspaced(character: str) -> bool:
    """Whether a character is of a script without spaces between words."""
    return any(characters.match(character) for _, characters in CHARACTERS_PER_WORD)


def collapse_whitespace(text: str) -> str:
    """Strips whitespace at both ends and makes each run of ASCII whitespace one space.

    Other spaces inside stay: a no-break space belongs to French punctuation.
    """
    if text.isprintable() and "  " not in text:  # the one space that is printable is the plain one
        return text.strip()
    # bytes.split() splits at ASCII whitespace only; str.split() would split at other whitespace, too.
    return b" ".join(text.strip().encode().split()).decode()
