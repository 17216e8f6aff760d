"""How a stage tells what it is doing, and how it shares its work out."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

MapTasks = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]  # `map`, or the same in tasks of a cluster


class Progress(Protocol):
    """Called with what is going on, how much is done, and how much in all (0: unknown).

    `note`: what else there is to tell of it, for people.
    """

    def __call__(self, what: str, done: int, total: int, note: str = "", /) -> None: ...


def no_progress(what: str, done: int, total: int, note: str = "") -> None:
    """Tells nobody."""
