"""The search space of a sweep: its parameters as settings write them, and the points in it. No library is needed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

Value = str | int | float | bool | None
Point = dict[str, Value]  # setting → value

RANGE_KEYS = ("low", "high", "log", "step")
MOST_CORNERS = 64


@dataclass(frozen=True)
class Parameter:
    """One setting that a sweep varies: either `choices`, or the range from `low` to `high`, both included, in whole
    numbers where both ends are.

    Attributes:
        log: every factor is as likely as any other; without it every difference.
        step: the range has low, low + step, … only.
        when: it is varied where these parameters, which stand before it, have one of these values; elsewhere it stays
            as the experiment has it.
    """

    name: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return all(isinstance(end, int) for end in (self.low, self.high, self.step or 0))

    def is_active(self, values: Mapping[str, Value]) -> bool:
        """Whether it is varied at a point that has these values so far."""
        return all(parent in values and values[parent] in allowed for parent, allowed in self.when.items())

    def ends(self) -> tuple[Value, ...]:
        """The values that a configuration is tried with before anything starts."""
        return self.choices or (self.low, self.high)

    def grid(self) -> tuple[Value, ...]:
        """
        Raises:
            ValueError: a range without steps has no grid.
        """
        if self.choices:
            return self.choices
        if self.step is None:
            raise ValueError(f"space.{self.name}: a grid needs choices, or a step from low to high")
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return tuple(on_grid(self, self.low + i * self.step) for i in range(count))

    def holds(self, value: Value) -> bool:
        """Whether a value is one that this parameter can have."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


def parse_space(space: Mapping[str, Any]) -> list[Parameter]:
    """The parameters of a space in its order.

    Raises:
        ValueError: naming the parameter.
    """
    specs = dict(_flatten(space))  # of two for a name the last one counts, in the place of the first
    found: list[Parameter] = []
    for name, spec in specs.items():
        if spec is not None:
            found.append(_parse_parameter(name, spec, found))
    return found


def _flatten(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    """A file names a parameter `model.dropout`, the command line makes a section `model` with a `dropout` in it."""
    for key, value in space.items():
        name = f"{prefix}{key}"
        if value is None or (isinstance(value, Mapping) and {"choices", *RANGE_KEYS} & value.keys()):
            yield name, value
        elif isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{name}.")
        else:
            raise ValueError(f"space.{name}: {_how(value)}")


def _how(value: Any) -> str:
    return f"is written as {{choices: [a, b]}} or {{low: 1e-4, high: 1e-2, log: true}}, not {value!r}"


def _parse_parameter(name: str, spec: Mapping[str, Any], before: Sequence[Parameter]) -> Parameter:
    where = f"space.{name}"
    spec = {key: value for key, value in spec.items() if value is not None}  # null takes out what a file has
    if unknown := sorted(spec.keys() - {"choices", "when", *RANGE_KEYS}):
        raise ValueError(f"{where}: {unknown[0]}: a parameter has choices, or low, high, log and step; also when")
    when = _parse_when(where, spec.get("when") or {}, before)
    if "choices" in spec:
        choices = spec["choices"]
        if any(key in spec for key in RANGE_KEYS):
            raise ValueError(
                f"{where}: has choices and a range, one perhaps from the sweep's group; null takes one out: "
                "choices: null, or low: null and high: null"
            )
        if not isinstance(choices, list) or not choices or any(isinstance(one, list | dict) for one in choices):
            raise ValueError(f"{where}: {_how(choices)}")
        if len(set(map(repr, choices))) < len(choices):
            raise ValueError(f"{where}: has a choice twice: {choices}")
        return Parameter(name, tuple(choices), when=when)
    low, high, log, step = spec.get("low"), spec.get("high"), spec.get("log", False), spec.get("step")
    if not _is_number(low) or not _is_number(high) or low >= high:
        raise ValueError(f"{where}: low and high must be numbers, low the smaller one, not {low!r} and {high!r}")
    if not isinstance(log, bool):
        raise ValueError(f"{where}: log is true or false, not {log!r}")
    if log and (low <= 0 or step is not None):
        raise ValueError(f"{where}: with log: true low must be more than 0, and there is no step")
    if step is not None and (not _is_number(step) or step <= 0):
        raise ValueError(f"{where}: step must be a number above 0, not {step!r}")
    return Parameter(name, low=low, high=high, log=log, step=step, when=when)


def _parse_when(where: str, when: Any, before: Sequence[Parameter]) -> dict[str, tuple[Value, ...]]:
    if not isinstance(when, Mapping):
        raise ValueError(f"{where}: when is written as {{schedule.name: inverse_sqrt}}, not {when!r}")
    parents = {one.name: one for one in before}
    found: dict[str, tuple[Value, ...]] = {}
    for parent, allowed in _leaves(when):
        values = tuple(allowed) if isinstance(allowed, list) else (allowed,)
        if parent not in parents:
            raise ValueError(f"{where}: when: {parent} must be a parameter that stands before this one in the space")
        if not values or not all(value in parents[parent].choices for value in values):
            raise ValueError(f"{where}: when: {parent} must be one of its choices, {list(parents[parent].choices)}")
        found[parent] = values
    return found


def _leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def on_grid(one: Parameter, value: Value) -> Value:
    """A value that was reached in steps, as a person would write it: 0.3 and not 0.30000000000000004."""
    return float(f"{value:.12g}") if one.step is not None and isinstance(value, float) else value


def grid_points(parameters: Sequence[Parameter]) -> list[Point]:
    """All points of a grid; a parameter whose condition does not hold is left out.

    Raises:
        ValueError: naming a parameter that has no grid.
    """
    return _product(parameters, {one.name: one.grid() for one in parameters})


def corner_points(parameters: Sequence[Parameter]) -> list[Point]:
    """Points in which every end of every parameter occurs; all combinations of them where they are few."""
    ends = {one.name: one.ends() for one in parameters}
    if math.prod(len(values) for values in ends.values()) <= MOST_CORNERS:
        return _product(parameters, ends)
    corners = [_point(parameters, {one.name: one.ends()[-1] for one in parameters})]
    for one in parameters:
        corners += [_point(parameters, {one.name: value}) for value in one.ends()]
    return [point for i, point in enumerate(corners) if point not in corners[:i]]


def _product(parameters: Sequence[Parameter], values: Mapping[str, Sequence[Value]]) -> list[Point]:
    points: list[Point] = [{}]
    for one in parameters:
        longer: list[Point] = []
        for point in points:
            longer += [{**point, one.name: v} for v in values[one.name]] if one.is_active(point) else [point]
        points = longer
    return points


def _point(parameters: Sequence[Parameter], wanted: Mapping[str, Value]) -> Point:
    """The first end of every parameter but for what is wanted, and for what must be so that it is varied at all."""
    forced = dict(wanted)
    for one in reversed(parameters):
        if one.name in forced:
            for parent, allowed in one.when.items():
                if forced.get(parent) not in allowed and parent not in wanted:
                    forced[parent] = allowed[0]
    point: Point = {}
    for one in parameters:
        if one.is_active(point):
            point[one.name] = forced.get(one.name, one.ends()[0])
    return point


def check_point(parameters: Sequence[Parameter], point: Mapping[str, Any]) -> Point:
    """A starting point, flat, in the space's order.

    Raises:
        ValueError: a name or a value that the space does not have.
    """
    given = dict(_leaves(point))
    known = {one.name: one for one in parameters}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"points: {name} is none of the space's parameters: {', '.join(known)}")
        if not known[name].holds(value):
            raise ValueError(f"points: {name}: {value!r} is outside of the space")
    return {name: given[name] for name in known if name in given}
