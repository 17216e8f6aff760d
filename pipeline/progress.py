"""How a stage tells what it is doing, and how it shares its work out."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Progress = Callable[[str, int, int], None]  # what is going on, how much is done, how much in all (0: unknown)
MapTasks = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]  # `map`, or the same in tasks of a cluster


def no_progress(what: str, done: int, total: int) -> None:
    """Tells nobody."""
