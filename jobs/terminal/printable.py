"""Texts as a terminal may be given them: nothing in them moves the cursor, hides a word or sets the clipboard."""

import re
import sys

# Control characters but tab and line feed (C0, DEL, C1), marks that turn or hide text (bidirectional ones, zero-width
# no-break space, tags), line separators, and halves of characters.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def printable(text: str) -> str:
    """The text with each character that would steer a terminal as its escape: \\x1b, \\u202e."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_word(text: str) -> str:
    """`printable`, of a text that is to stay within its line."""
    return printable(text).replace("\n", "\\n")


def print_line(text: str) -> None:
    """Prints a line of a log from elsewhere: as it is into a file or pipe, `printable` and without its colours on a
    terminal."""
    print(printable(_COLOUR.sub("", text)) if sys.stdout.isatty() else text, flush=True)
