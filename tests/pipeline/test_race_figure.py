"""The picture of a race is drawn from any contenders' figures, also from one who was never validated."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread
from metrics import BLEU, PERPLEXITY

from transloom.pipeline.figures.race import Course, draw_race


def test_the_picture_shows_every_contender_in_its_colour(tmp_path: Path) -> None:
    course = Course([60.0, 120.0], [1e15, 2e15], [10.0, 20.0], {8: 5000.0, 16: 6000.0})
    other = Course([60.0, 120.0], [2e15, 4e15], [5.0, 12.0], {8: 5000.0, 16: 4000.0})
    pictures = {
        number: imread(draw_race(courses, tmp_path / f"{number}.png", "title", BLEU))
        for number, courses in enumerate([{"a": course}, {"a": course, "b": other}], start=1)
    }
    orange = (213, 94, 0)  # of the second

    def pixels(picture) -> int:
        return int(((abs(picture[..., :3] * 255 - orange) < 6).all(-1)).sum())

    assert pictures[1].shape[1] == 1000
    assert pixels(pictures[1]) == 0 and pixels(pictures[2]) > 500


def test_a_contender_without_a_validation_is_drawn(tmp_path: Path) -> None:
    assert draw_race({"a": Course([], [], [], {8: 1.0})}, tmp_path / "race.png", "title", BLEU).exists()


def test_without_speeds_by_length_there_is_no_panel_of_them(tmp_path: Path) -> None:
    course = Course([60.0], [1e15], [2.5], {})
    picture = imread(draw_race({"a": course}, tmp_path / "race.png", "title", PERPLEXITY))
    assert picture.shape[:2] == (450, 1000)


def test_the_axis_says_which_score_it_is_of(tmp_path: Path, monkeypatch) -> None:
    drawn: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (drawn.append(self), savefig(self, *args, **kw)))
    course = Course([60.0, 120.0], [1e15, 2e15], [90.0, 20.0], {8: 5000.0})
    for metric in (BLEU, PERPLEXITY):
        draw_race({"a": course}, tmp_path / "race.png", "title", metric)
    labels = [figure.axes[0].get_ylabel() for figure in drawn]
    assert labels == ["validation BLEU (0 to 100)", "validation perplexity (lower is better)"]
    low, high = drawn[1].axes[0].get_ylim()
    assert 0 < low < 20 and 90 < high < 100
