"""The pictures of a sweep are drawn from any trials, and what is said of chance follows from the scores."""

from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from metrics import BLEU, PERPLEXITY

from transloom.pipeline.sweep.figures import (
    draw_cost,
    draw_importance,
    draw_parallel,
    draw_population,
    draw_seeds,
    place,
    ticks,
)
from transloom.pipeline.sweep.seeds import chance_of
from transloom.pipeline.sweep.space import parse_space
from transloom.pipeline.sweep.study import Record, State

SPACE = {
    "schedule.peak_learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.dropout": {"low": 0.0, "high": 0.4, "step": 0.1},
    "model.norm": {"choices": ["pre", "post"]},
    "model.d_ff": {"low": 1, "high": 3, "when": {"model.norm": "post"}},
}
RECORDS = [
    Record(1, "s-001", {"schedule.peak_learning_rate": 1e-3, "model.dropout": 0.1, "model.norm": "pre"}, BLEU),
    Record(
        2,
        "s-002",
        {"schedule.peak_learning_rate": 5e-3, "model.dropout": 0.4, "model.norm": "post", "model.d_ff": 2},
        BLEU,
        State.finished,
        [(100_000, 10.0), (200_000, 20.0)],
    ),
    Record(
        3,
        "s-003",
        {"schedule.peak_learning_rate": 1e-4, "model.dropout": 0.0, "model.norm": "pre"},
        BLEU,
        State.stopped,
        [(100_000, 4.0)],
    ),
    Record(
        4, "s-004", {"schedule.peak_learning_rate": 1e-2, "model.dropout": 0.0}, BLEU, State.failed, failure="diverged"
    ),
]


def test_pictures_are_drawn_of_trials_that_ended_in_all_ways(tmp_path):
    parameters = parse_space(SPACE)
    chance = chance_of([20.0, 19.0, 20.5], second=18.0)
    pictures = [
        draw_parallel(RECORDS, parameters, RECORDS[1], tmp_path / "a" / "parallel.png", "title"),
        draw_cost(RECORDS, RECORDS[1], tmp_path / "cost.png", "title", 50_000),
        draw_importance({"model.dropout": 0.7, "model.norm": 0.3}, 100_000, tmp_path / "importance.png", "title", BLEU),
        draw_seeds(chance, tmp_path / "seeds.png", "title", BLEU),
    ]
    for picture in pictures:
        assert imread(picture).shape[1] == 1000
    single = draw_parallel(RECORDS[1:2], parameters, RECORDS[1], tmp_path / "single.png", "title")
    assert imread(single).shape[1] == 1000


def test_a_population_is_drawn_from_its_first_generation_on(tmp_path):
    rate, dropout = "schedule.peak_learning_rate", "model.dropout"
    records = {
        1: Record(
            1, "s-1", {rate: 1e-3, dropout: 0.1}, BLEU, State.finished, [(50_000, 4.0), (100_000, 9.0)], generation=1
        ),
        2: Record(
            2, "s-2", {rate: 1e-4, dropout: 0.4}, BLEU, State.finished, [(50_000, 1.0), (100_000, 2.0)], generation=1
        ),
        3: Record(
            3, "s-3", {rate: 1e-3, dropout: 0.1}, BLEU, State.finished, [(200_000, 16.0)], generation=2, parent=1
        ),
        4: Record(
            4, "s-4", {rate: 2e-3, dropout: 0.0}, BLEU, State.finished, [(200_000, 17.0)], generation=2, parent=1
        ),
        5: Record(5, "s-5", {rate: 2e-3, dropout: 0.0}, BLEU, State.failed, generation=3, parent=4),
    }
    parameters = parse_space(SPACE)[:2]
    picture = draw_population(records, parameters, records[4], tmp_path / "population.png", "title")
    assert imread(picture).shape[1] == 1000


def test_a_value_stands_on_its_axis_where_its_scale_says():
    rate, dropout, norm, _ = parse_space(SPACE)
    assert place(rate, 1e-3) == pytest.approx(0.5)
    assert place(dropout, 0.1) == pytest.approx(0.25)
    assert (place(norm, "pre"), place(norm, "post"), place(norm, None)) == (0.0, 1.0, None)
    assert [label for _, label in ticks(norm)] == ["pre", "post"]
    assert [height for height, _ in ticks(rate)] == pytest.approx([0.0, 0.5, 1.0])


def test_a_lead_within_the_spread_of_the_seeds_is_called_noise():
    noisy = chance_of([30.0, 29.0, 28.0], second=29.2)
    assert (noisy.mean, noisy.deviation) == (29.0, 1.0)
    assert noisy.is_within_noise(BLEU) and "not told apart" in noisy.verdict(BLEU)
    clear = chance_of([30.0, 29.9, 30.1], second=29.0)
    assert not clear.is_within_noise(BLEU) and "Its lead over the second, 1.00, is more than" in clear.verdict(BLEU)
    assert "lead" not in chance_of([30.0, 29.9], second=None).verdict(BLEU)


def test_a_lead_of_a_metric_that_is_the_better_the_lower_is_how_much_lower():
    noisy = chance_of([28.0, 29.0, 30.0], second=28.8)
    assert noisy.lead(PERPLEXITY) == pytest.approx(0.8) and noisy.is_within_noise(PERPLEXITY)
    clear = chance_of([28.0, 28.1, 27.9], second=29.0)
    verdict = clear.verdict(PERPLEXITY)
    assert verdict.startswith("Validation perplexity of the best over 3 seeds: mean 28.0, standard deviation 0.1.")
    assert "Its lead over the second, 1.0, is more than" in verdict
    untrained = replace(PERPLEXITY, trivial=1000.0)
    assert "Above 1000 perplexity" in chance_of([1200.0, 1300.0], second=1500.0).verdict(untrained)
    assert "can't be told" not in chance_of([900.0, 1300.0], second=1500.0).verdict(untrained)


@pytest.mark.parametrize(("metric", "best", "scale"), [(BLEU, 1, "(0 to 100)"), (PERPLEXITY, 2, "(lower is better)")])
def test_the_best_is_on_top_and_the_axes_say_what_they_are_of(tmp_path, monkeypatch, metric, best, scale):
    drawn: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (drawn.append(self), savefig(self, *args, **kw)))
    parameters = parse_space(SPACE)
    records = [replace(record, metric=metric) for record in RECORDS]
    assert min(records, key=lambda record: record.sort_key) is records[best]
    draw_parallel(records, parameters, records[best], tmp_path / "parallel.png", "title")
    draw_cost(records, records[best], tmp_path / "cost.png", "title", 50_000)
    by_number = {record.number: record for record in records[1:3]}
    draw_population(by_number, parameters[:2], records[best], tmp_path / "population.png", "title")
    draw_importance({"model.dropout": 0.7}, 100_000, tmp_path / "importance.png", "title", metric)
    draw_seeds(chance_of([20.0, 19.0], second=18.0), tmp_path / "seeds.png", "title", metric)
    parallel, cost, population, importance, seeds = [figure.axes for figure in drawn]

    lines = [line for line in parallel[0].get_lines() if len(line.get_xdata()) == len(parameters) + 1]
    tops = {line.get_linewidth(): line.get_ydata()[-1] for line in lines}
    assert tops == {3.5: 1.0, 1.4: 0.0}  # the best is thick
    assert parallel[0].get_xticklabels()[-1].get_text() == f"validation\n{metric.title}"
    assert parallel[1].get_ylabel() == f"best validation {metric.title}"
    assert parallel[1].yaxis_inverted() != metric.higher_is_better
    label = f"validation {metric.title} {scale}"
    assert cost[0].get_ylabel() == population[0].get_ylabel() == seeds[0].get_xlabel() == label
    assert importance[0].get_xlabel().startswith(f"share of the variance of {metric.title} after")
    assert (cost[0].get_ylim()[0] == 0.0) == (metric is BLEU)
