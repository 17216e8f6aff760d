"""The picture of a run: drawn from what there is, at the promised size."""

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from metrics import BLEU, PERPLEXITY

from transloom.pipeline.figures import curves as figures
from transloom.pipeline.figures.curves import draw_curves
from transloom.pipeline.tasks.build import TaskName, selecting_metric
from transloom.pipeline.tracking.spool import Point


def run_points(steps: int = 3000, every: int = 10) -> list[Point]:
    points = []
    for step in range(every, steps + 1, every):
        values = {
            "train/loss": 2 + 6 * math.exp(-step / 400) + 0.1 * math.sin(step),
            "train/learning_rate": 1e-3 * min(step / 500, (500 / step) ** 0.5),
            "train/target_tokens_per_second": 8000 + 300 * math.cos(step),
            "train/source_tokens_per_second": 7000 + 300 * math.sin(step),
        }
        if step % 500 == 0:
            values |= {
                "validation/loss": 2.1 + 5 * math.exp(-step / 400),
                "validation/bleu": 30 - (step - 2000) ** 2 / 2e5,
            }
        points += [Point(key, step, value, step) for key, value in values.items()]
    return points


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, to look into."""
    saved: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (saved.append(self), savefig(self, *args, **kw)))
    return saved


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]


def test_the_whole_picture(tmp_path: Path, drawn: list[Figure]):
    points = [*run_points(), Point("averaged/validation_bleu", 3000, 31.5, 0)]
    path = draw_curves(points, tmp_path / "figures" / "curves.png", "demo (phrasebook)", BLEU)
    assert imread(path).shape[1] == figures.WIDTH_PIXELS
    (figure,) = drawn
    assert figure.get_suptitle() == "demo (phrasebook)"
    assert labels(figure) == [
        "training loss",
        "validation loss",
        "learning rate (right)",
        "validation BLEU",
        "best: 30.00 at step 2,000",
        "averaged weights: 31.50",
        "target tokens",
        "source tokens",
    ]
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "loss (nats per target token)",
        "BLEU (0 to 100)",
        "tokens per second\n(without padding)",
        "learning rate",
    ]
    assert figure.axes[2].get_xlabel() == "training step"
    bleu = next(line for line in figure.axes[1].get_lines() if line.get_label() == "validation BLEU")
    assert list(bleu.get_xdata()) == [500, 1000, 1500, 2000, 2500, 3000]
    low, high = figure.axes[0].get_ylim()
    assert low < 2.1 < high < 9


@pytest.mark.parametrize(
    ("kept", "panels"),
    [
        (["train/loss"], ["loss (nats per target token)"]),
        (["validation/bleu"], ["BLEU (0 to 100)"]),
        (["train/loss", "validation/bleu"], ["loss (nats per target token)", "BLEU (0 to 100)"]),
    ],
)
def test_panels_without_points_are_left_out(tmp_path: Path, drawn: list[Figure], kept: list[str], panels: list[str]):
    draw_curves([point for point in run_points() if point.key in kept], tmp_path / "a.png", "t", BLEU)
    assert [axes.get_ylabel() for axes in drawn[0].axes] == panels


def test_scores_that_are_the_better_the_lower(tmp_path: Path, drawn: list[Figure]):
    scores = [Point("validation/perplexity", step, value, 0) for step, value in ((1, 90.0), (2, 20.25), (3, 21.0))]
    draw_curves([*scores, Point("averaged/validation_perplexity", 3, 19.0, 0)], tmp_path / "a.png", "t", PERPLEXITY)
    (axes,) = drawn[0].axes
    assert axes.get_ylabel() == "perplexity (lower is better)"
    assert labels(drawn[0]) == ["validation perplexity", "best: 20.2 at step 2", "averaged weights: 19.0"]
    low, high = axes.get_ylim()
    assert 0 < low < 19 and 90 < high < 100


def test_a_language_model_is_drawn_beside_what_a_simple_model_comes_to(tmp_path: Path, drawn: list[Figure]):
    metric = selecting_metric(TaskName.language_model)
    keys = {"train/loss": 5.0, "train/text_tokens_per_second": 9.0, "validation/bits_per_byte": 3.0}
    points = [Point(key, step, value, 0) for key, value in keys.items() for step in (1, 2)]
    draw_curves(points, tmp_path / "a.png", "t", metric, ("text",), {"5-gram of bytes": 1.9877})
    assert [axes.get_ylabel().partition("\n")[0] for axes in drawn[0].axes] == [
        *("loss (nats per text token)", "bits per byte (lower is better)", "tokens per second")
    ]
    scores = drawn[0].axes[1]
    assert [text.get_text() for text in scores.texts] == ["5-gram of bytes: 1.9877"]
    assert [1.9877, 1.9877] in [list(line.get_ydata()) for line in scores.get_lines()]
    assert scores.get_ylim()[0] < 1.9877 and scores.get_ylim()[1] > 3.0


@pytest.mark.parametrize("value", [0.0, 2.5, 100.0])
def test_a_run_of_one_point_can_be_drawn(tmp_path: Path, value: float):
    keys = ("train/loss", "validation/loss", "validation/bleu", "train/target_tokens_per_second", "train/learning_rate")
    assert draw_curves([Point(key, 1, value, 0) for key in keys], tmp_path / "a.png", "t", BLEU).stat().st_size > 1000


def test_a_value_that_is_no_number_is_passed_over_and_the_last_of_a_step_counts(tmp_path: Path, drawn: list[Figure]):
    values = [(1, 5.0), (2, math.nan), (3, math.inf), (4, 1.0), (4, 2.0)]
    draw_curves([Point("validation/bleu", step, value, 0) for step, value in values], tmp_path / "a.png", "t", BLEU)
    assert list(drawn[0].axes[0].get_lines()[0].get_ydata()) == [5.0, 2.0]


def test_nothing_to_draw_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_curves([Point("test/bleu", 1, 1.0, 0)], tmp_path / "a.png", "t", BLEU)


def test_a_smoothed_line_keeps_a_straight_one(tmp_path: Path, drawn: list[Figure]):
    points = [Point("train/target_tokens_per_second", step, 3.0 * step, 0) for step in range(100)]
    draw_curves(points, tmp_path / "a.png", "t", BLEU)
    smooth = next(line for line in drawn[0].axes[0].get_lines() if line.get_label() == "target tokens")
    assert list(smooth.get_ydata()) == pytest.approx([3.0 * step for step in range(100)])
