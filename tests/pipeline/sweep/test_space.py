"""A space is read as people write it, and refused by the parameter's name."""

import pytest

from transloom.pipeline.sweep.config import SweepConfig
from transloom.pipeline.sweep.space import check_point, corner_points, grid_points, parse_space

CONDITIONAL = {
    "schedule.name": {"choices": ["noam", "inverse_sqrt"]},
    "schedule.scale": {"low": 0.5, "high": 2.0, "when": {"schedule.name": "noam"}},
    "schedule.peak_learning_rate": {"low": 1e-4, "high": 1e-2, "log": True, "when": {"schedule.name": "inverse_sqrt"}},
}


def test_a_parameter_of_a_file_is_changed_or_taken_out_by_the_command_lines_sections():
    space = {"model.dropout": {"choices": [0.1]}, "seed": {"choices": [1, 2]}}
    space |= {"model": {"dropout": {"low": 0.0, "high": 0.3}}}
    space["seed"]["low"] = None
    (dropout, seed) = parse_space(space)
    assert (seed.name, dropout.name, dropout.choices, dropout.high) == ("seed", "model.dropout", (), 0.3)
    assert [one.name for one in parse_space({**space, "seed": None})] == ["model.dropout"]


def test_whole_numbers_stay_whole():
    whole, broken = parse_space({"a.b": {"low": 1, "high": 9, "step": 4}, "a.c": {"low": 1, "high": 2.0}})
    assert whole.is_whole and whole.grid() == (1, 5, 9)
    assert not broken.is_whole
    (third,) = parse_space({"a.b": {"low": 0.0, "high": 0.3, "step": 0.1}})
    assert third.grid() == pytest.approx((0.0, 0.1, 0.2, 0.3))


def test_a_grid_leaves_out_what_its_condition_does_not_ask_for():
    space = {
        "a": {"choices": ["x", "y"]},
        "b": {"choices": [1, 2], "when": {"a": "y"}},
        "c": {"choices": [True], "when": {"b": [2]}},
    }
    points = [{"a": "x"}, {"a": "y", "b": 1}, {"a": "y", "b": 2, "c": True}]
    assert grid_points(parse_space(space)) == points


def test_corners_have_every_end_of_every_parameter():
    parameters = parse_space(CONDITIONAL)
    corners = corner_points(parameters)
    assert {"schedule.name": "noam", "schedule.scale": 2.0} in corners
    assert {"schedule.name": "inverse_sqrt", "schedule.peak_learning_rate": 1e-4} in corners
    assert all(len(point) == 2 for point in corners) and len(corners) == 4


def test_corners_of_a_large_space_are_few_and_still_have_every_end():
    space = {f"a.{i}": {"choices": list(range(5))} for i in range(6)}
    space["z"] = {"choices": ["one", "two"], "when": {"a.3": 4}}
    corners = corner_points(parse_space(space))
    assert len(corners) < 40
    for name, spec in space.items():
        assert {point[name] for point in corners if name in point} == set(spec["choices"])


def test_starting_points_lie_in_the_space():
    parameters = parse_space(CONDITIONAL)
    given = {"schedule": {"scale": 1.0, "name": "noam"}}
    assert check_point(parameters, given) == {"schedule.name": "noam", "schedule.scale": 1.0}
    for point, message in (
        ({"model.dropout": 0.1}, "points: model.dropout is none of the space's"),
        ({"schedule.scale": 3.0}, "points: schedule.scale: 3.0 is outside"),
    ):
        with pytest.raises(ValueError, match=message):
            check_point(parameters, point)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"model.dropout": 0.1}, r"^space\.model\.dropout: is written as \{choices: \[a, b\]\}"),
        ({"model.dropout": {"choices": []}}, r"^space\.model\.dropout: is written as"),
        ({"a": {"choices": [1, 1]}}, "^space.a: has a choice twice"),
        ({"a": {"choices": [1], "low": 0}}, "^space.a: has choices and a range"),
        ({"a": {"low": 2, "high": 1}}, "^space.a: low and high must be numbers, low the smaller"),
        ({"a": {"low": 0.0, "high": 1.0, "log": True}}, "^space.a: with log: true low must be more than 0"),
        ({"a": {"low": 0, "high": 1, "hihg": 2}}, "^space.a: hihg: a parameter has choices, or"),
        ({"a": {"choices": [1], "when": {"b": 1}}}, "^space.a: when: b must be a parameter that stands before"),
        (
            {"b": {"choices": [1, 2]}, "a": {"choices": [1], "when": {"b": 3}}},
            r"^space\.a: when: b must be one of its choices, \[1, 2\]",
        ),
    ],
)
def test_what_makes_no_space_is_refused_by_name(space, message):
    with pytest.raises(ValueError, match=message):
        SweepConfig(space=space)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "grid", "space": {"a": {"low": 0.0, "high": 1.0}}}, "^space.a: a grid needs choices"),
        ({"trials": 0}, "^trials: must be at least 1"),
        ({"seeds": 1}, "^seeds: one seed says nothing"),
        ({"grace": 0.0}, "^grace: must be above 0"),
        ({"reduction": 1}, "^reduction: must be at least 2"),
        ({"sampler": "random", "warm_start": ["a"]}, "^warm_start: only sampler: tpe learns"),
        ({"warm_start": ["../a"]}, "^warm_start: takes names of sweeps"),
    ],
)
def test_settings_that_make_no_sweep_are_refused_by_name(settings, message):
    from transloom.pipeline.sweep.config import Sampler

    if "sampler" in settings:
        settings["sampler"] = Sampler[settings["sampler"]]
    with pytest.raises(ValueError, match=message):
        SweepConfig(**settings)
