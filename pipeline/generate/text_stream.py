"""Streams text token by token: whole characters only, and nothing of a stop string."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

REPLACEMENT = "\ufffd"  # a decoder's output for bytes that are not, or not yet, UTF-8
UNFINISHED = 3  # the largest number of bytes of an incomplete character: 3 of 4
CONTEXT_TOKENS = 8  # of the prompt that are decoded together with the first new token


class TextStream:
    """The text that new tokens add to a prompt, returned as soon as it is certain.

    The text ends before the first stop string, that whose last character comes first; of several with the same last
    character, the longest counts. So the result does not depend on how the text is cut into tokens. A stop string in
    the prompt, or across its end, does not count.

    Attributes:
        text: the whole text returned so far.
        stopped: whether a stop string has come. No text is returned after a stop string.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = (), prompt: Sequence[int] = ()) -> None:
        """
        Args:
            prompt: ids before the first new token, since some tokenizers drop the space at the beginning of a text.
        """
        self.text = ""
        self.stopped = False
        self._decode = decode
        self._stop = tuple(stop)
        # New tokens are decoded together with a few earlier tokens, whose text `_window` was already returned.
        self._ids = [int(token) for token in prompt[-CONTEXT_TOKENS:]]
        self._before = len(self._ids)
        self._window = decode(self._ids) if self._ids else ""
        self._held = ""  # text that may be the beginning of a stop string

    def push(self, token: int) -> str:
        """Takes the next token and returns the text that has become certain."""
        if self.stopped:
            return ""
        self._ids.append(token)
        text = self._decode(self._ids)
        certain = text
        for _ in range(UNFINISHED):
            certain = certain.removesuffix(REPLACEMENT)
        if not certain.startswith(self._window):
            return ""  # some decoders change the text of a run of bytes while its last character is incomplete
        new = certain[len(self._window) :]
        if certain == text:
            self._ids = self._ids[self._before :]
            self._before = len(self._ids)
            self._window = self._decode(self._ids)
        else:
            self._window = certain
        return self._hand_out(new)

    def finish(self) -> str:
        """Returns the rest, after the last token."""
        if self.stopped:
            return ""
        text = self._decode(self._ids) if self._ids else ""
        same = len(_common_prefix(text, self._window))
        self._window = text
        new = self._hand_out(text[same:])
        rest, self._held = self._held, ""
        self.text += rest
        return new + rest

    def _hand_out(self, new: str) -> str:
        text = self._held + new
        ends = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            out, self._held = text[: min(ends)[1]], ""
        else:
            keep = max((_overlap(text, stop) for stop in self._stop), default=0)
            out, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self.text += out
        return out


def _overlap(text: str, stop: str) -> int:
    """The number of characters at the end of the text that begin the stop string without completing it."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def _common_prefix(one: str, other: str) -> str:
    size = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:size]
