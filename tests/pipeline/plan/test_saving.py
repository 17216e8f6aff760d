"""How often to save and to validate: the values that a plan names bring the share below its limit, and no further."""

import pytest

from transloom.pipeline.plan.saving import LARGE_SHARE, Stops, less_often


@pytest.mark.parametrize("step", [0.02, 0.5, 300.0])
@pytest.mark.parametrize("checkpoint", [0.0, 0.3, 8.0, 500.0])
@pytest.mark.parametrize("validation", [0.05, 3.0, 60.0])
@pytest.mark.parametrize("every", [(1, 1), (100, 1000), (1000, 100), (100_000, 50_000)])
def test_the_values_named_are_just_enough(step, checkpoint, validation, every):
    stops, far = Stops(step, checkpoint, validation), 10**9
    changes = less_often(stops, *every, far, far)
    now = {"checkpoint_every": every[0], "validate_every": every[1]}
    assert (not changes) == (stops.share(*every) <= LARGE_SHARE)
    assert all(value > now[name] for name, value in changes.items())
    assert stops.share(**(now | changes)) <= LARGE_SHARE + 1e-9
    if changes:  # two digits more or less
        less = {name: max(now[name], round(value * 0.5)) for name, value in changes.items()}
        assert stops.share(**(now | less)) > LARGE_SHARE


def test_a_value_is_at_most_what_makes_sense():
    assert less_often(Stops(0.02, 8.0, 3.0), 600, 600, 5000, 1000) == {"checkpoint_every": 5000, "validate_every": 1000}
    assert less_often(Stops(0.02, 8.0, 3.0), 600, 600, 100, 100) == {}


def test_the_share_is_that_of_the_stops():
    assert Stops(1.0, 50.0, 25.0).share(100, 50) == pytest.approx(0.5)
