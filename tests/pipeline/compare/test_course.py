"""How a training went, out of its points."""

import pytest
from metrics import BLEU, PERPLEXITY

from transloom.pipeline.compare.course import first_reaching, training_course, validation_course
from transloom.pipeline.tracking.spool import Point


def points(*steps: int) -> list[Point]:
    """10 seconds and 1000 tokens a step."""
    return [
        Point(f"train/{name}", step, value * step, 0)
        for step in steps
        for name, value in (("loss", 0.1), ("seconds", 10.0), ("source_tokens", 1000.0), ("target_tokens", 1000.0))
    ]


VALIDATIONS = [{"step": step, "loss": 3.0, "bleu": bleu} for step, bleu in ((5, 1.0), (15, 7.0), (20, 6.0))]


def test_what_was_counted_between_two_points_grows_evenly() -> None:
    course = validation_course(points(10, 20), VALIDATIONS)
    assert [one["seconds"] for one in course] == pytest.approx([50.0, 150.0, 200.0])
    assert [one["target_tokens"] for one in course] == pytest.approx([5000.0, 15000.0, 20000.0])
    assert [one["bleu"] for one in course] == [1.0, 7.0, 6.0]


def test_a_language_model_has_tokens_of_its_text_alone() -> None:
    values = {"loss": 0.1, "seconds": 10.0, "text_tokens": 1000.0, "text_tokens_per_second": 7.0}
    logged = [Point(f"train/{name}", step, value * step, 0) for step in (10, 20) for name, value in values.items()]
    assert training_course(logged)[0] == {"step": 10, "loss": 1.0, "seconds": 100.0, "text_tokens": 10_000.0}
    (moment,) = validation_course(logged, [{"step": 15, "loss": 3.0, "bits_per_byte": 2.0}])
    assert moment == {"step": 15, "loss": 3.0, "bits_per_byte": 2.0, "seconds": 150.0, "text_tokens": 15_000.0}


def test_of_a_step_that_was_taken_twice_the_last_counts() -> None:
    again = [Point("train/loss", 10, 0.5, 1), Point("train/seconds", 10, 130.0, 1)]
    course = training_course([*points(10, 20), *again])
    assert [(one["step"], one["loss"], one["seconds"]) for one in course] == [(10, 0.5, 130.0), (20, 2.0, 200.0)]


def test_without_points_there_is_no_course() -> None:
    assert training_course([]) == []
    assert validation_course([], VALIDATIONS) == []


def test_the_first_validation_that_reaches_a_score() -> None:
    course = validation_course(points(10, 20), VALIDATIONS)
    reached = first_reaching(course, BLEU, 6.5)
    assert reached is not None and reached["step"] == 15
    assert first_reaching(course, BLEU, 7.1) is None


def test_a_score_is_reached_from_above_where_lower_is_better() -> None:
    validations = [{"step": step, "loss": 3.0, "perplexity": score} for step, score in ((5, 90.0), (15, 20.0))]
    course = validation_course(points(10, 20), validations)
    assert [point["perplexity"] for point in course] == [90.0, 20.0]
    assert first_reaching(course, PERPLEXITY, 20.0) == course[1]
    assert first_reaching(course, PERPLEXITY, 95.0) == course[0]
    assert first_reaching(course, PERPLEXITY, 19.9) is None
