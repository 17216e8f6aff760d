"""What a part of the check answers with."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


class Skipped(Exception):
    """The part does not run on this machine; the argument says why."""


@dataclass(frozen=True)
class Target:
    """A measured value beside what it should be.

    Attributes:
        at_least: False where the goal is a most.
        is_required: the part fails where the goal is not met. A goal of speed is only reported.
    """

    what: str
    value: float
    goal: float
    at_least: bool = True
    is_required: bool = True

    @property
    def is_met(self) -> bool:
        """False for a value that is no number."""
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "is_met": self.is_met}


@dataclass(frozen=True)
class Outcome:
    """What a part found: one line for the table, JSON values, and targets."""

    summary: str
    figures: dict[str, Any] = field(default_factory=dict)
    targets: Sequence[Target] = ()

    @property
    def missed(self) -> list[Target]:
        """The required targets that are not met."""
        return [target for target in self.targets if target.is_required and not target.is_met]
