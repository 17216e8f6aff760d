"""A population's next generation is its best quarter's, within the space, and the same after any kill."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics import BLEU, PERPLEXITY

from transloom.pipeline.sweep.config import Sampler, Stopping, SweepConfig
from transloom.pipeline.sweep.population import explore, next_generation, place_of
from transloom.pipeline.sweep.space import parse_space
from transloom.pipeline.sweep.study import Record, State, Study, lineage

SPACE = {
    "schedule.peak_learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "schedule.warmup_steps": {"low": 1, "high": 9},
    "model.dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
    "train.label_smoothing": {"choices": [0.0, 0.1, 0.2]},
}
PARAMETERS = parse_space(SPACE)
points = st.fixed_dictionaries(
    {
        "schedule.peak_learning_rate": st.floats(1e-4, 1e-2),
        "schedule.warmup_steps": st.integers(1, 9),
        "model.dropout": st.sampled_from([0.0, 0.1, 0.2, 0.3]),
        "train.label_smoothing": st.sampled_from([0.0, 0.1, 0.2]),
    }
)
members = st.lists(st.tuples(st.none() | st.floats(0, 100), points), min_size=2, max_size=20)


@given(points, st.integers())
def test_what_is_explored_lies_in_the_space_and_near(point, seed):
    found = explore(point, PARAMETERS, random.Random(seed))
    assert all(one.holds(found[one.name]) for one in PARAMETERS)
    rate = found["schedule.peak_learning_rate"] / point["schedule.peak_learning_rate"]
    assert 0.8 - 1e-9 <= rate <= 1.25 + 1e-9
    warmup = found["schedule.warmup_steps"]
    assert isinstance(warmup, int) and abs(warmup - point["schedule.warmup_steps"]) <= 2
    assert found["model.dropout"] in (0.0, 0.1, 0.2, 0.3)
    assert abs(found["train.label_smoothing"] - point["train.label_smoothing"]) < 0.11


def test_a_number_is_multiplied_and_moves_by_a_step_at_least():
    found = {
        name: {explore(point, PARAMETERS, random.Random(seed))[name] for seed in range(50)}
        for name in SPACE
        for point in [dict(zip(SPACE, (4e-3, 2, 0.1, 0.0), strict=True))]
    }
    assert found["schedule.peak_learning_rate"] == {4e-3 * 0.8, 4e-3 * 1.25}
    assert found["schedule.warmup_steps"] == {1, 3}
    assert found["model.dropout"] == {0.0, 0.2}
    assert found["train.label_smoothing"] == {0.0, 0.1}
    (dropout,) = parse_space({"model.dropout": {"low": 0.0, "high": 0.4}})
    anew = explore({"model.dropout": 0.0}, [dropout], random.Random(1))["model.dropout"]
    assert isinstance(anew, float) and 0.0 < anew <= 0.4


@given(members, st.integers(), st.sampled_from([BLEU, PERPLEXITY]))
def test_the_worst_quarter_and_all_that_failed_go_on_from_the_best_quarter(population, seed, metric):
    scores, points = [score for score, _ in population], [point for _, point in population]
    heirs = next_generation(scores, metric, points, PARAMETERS, seed)
    assert heirs == next_generation(scores, metric, points, PARAMETERS, seed)
    scored = [score for score in scores if score is not None]
    if not scored:
        assert heirs == []
        return
    quarter = max(1, len(scores) // 4)
    replaced = [i for i, one in enumerate(heirs) if one.parent != i]
    assert len(replaced) == max(quarter, len(scores) - len(scored))
    assert all(scores[i] is None for i in replaced) or scores.count(None) <= quarter
    for i, one in enumerate(heirs):
        if i in replaced:
            better = sum(metric.is_better(score, scores[one.parent]) for score in scored)
            assert better < quarter and (scores[i] is None or not metric.is_better(scores[i], scores[one.parent]))
        else:
            assert one.point == points[i]


def study(file: Path, **settings) -> Study:
    sweep = SweepConfig(**{"space": SPACE, "sampler": Sampler.pbt, "population": 4, "generations": 3, **settings})
    return Study(file, sweep, BLEU, name="sweep", prefix="s-", seed=3, tokens=1000)


def end(one: Study, record: Record | None, score: float | None) -> None:
    assert record is not None
    if score is not None:
        # The best that it had on the way does not count, for the next one goes on from the end.
        one.report(record.number, record.generation * 100 - 50, 99.0 - score)
        one.report(record.number, record.generation * 100, score)
    state = State.failed if score is None else State.finished
    one.close(record.number, state, 1.0, "diverged" if score is None else None)


def test_a_population_goes_on_after_a_kill_as_if_there_had_been_none(tmp_path):
    def run(file: Path, is_killed: bool) -> Study:
        """Each generation two at a time; killed after each asking and each end."""
        one = study(file, points=[{"model.dropout": 0.3}])
        for generation in (1, 2, 3):
            for pair in (0, 1):
                for _ in range(2):
                    one.ask()
                    if is_killed:
                        one = study(file)
                        assert all(one.records[number] is one.ask() for number in one.left)
                running = [record for record in one.records.values() if record.state is State.running]
                assert [record.member for record in running] == [2 * pair + 1, 2 * pair + 2]
                if pair:  # nobody begins before a generation has ended
                    assert one.ask() is None and one.must_wait == (generation < 3)
                for record in running:
                    end(one, record, None if record.number == 2 else 10.0 * generation + record.member)
                    one = study(file) if is_killed else one
        assert one.ask() is None and not one.must_wait
        return one

    found, killed = [run(tmp_path / f"{name}.db", name == "killed") for name in ("whole", "killed")]
    assert killed.records == found.records and len(found.records) == found.num_trials == 12
    records = found.records
    assert [(one.generation, one.member) for one in records.values()] == [place_of(n, 4) for n in range(1, 13)]
    # Of four the worst is replaced: the second, which failed, then the first.
    assert [records[number].parent for number in range(5, 13)] == [1, 4, 3, 4, 8, 6, 7, 8]
    for one in records.values():
        parent = records.get(one.parent or 0)
        if parent is not None:
            assert (one.point == parent.point) == (one.member == parent.member), one
    assert records[1].point["model.dropout"] == 0.3
    assert [one.number for one in found.finalists()] == [9, 10, 11, 12]
    assert [one.number for one in lineage(records, 9)] == [4, 8, 9]


def test_the_best_is_of_the_last_generation_that_ended(tmp_path):
    one = study(tmp_path / "study.db", population=2, generations=2)
    end(one, one.ask(), 20.0)
    assert [record.number for record in one.finalists()] == [1]
    end(one, one.ask(), 10.0)
    end(one, one.ask(), 5.0)
    assert one.ask() is not None
    assert [record.number for record in one.finalists()] == [1, 2]  # one of the second generation is under way


def test_the_best_quarter_of_a_metric_that_is_the_better_the_lower_has_the_lowest():
    points = [{**dict(zip(SPACE, (4e-3, 2, 0.1, 0.0), strict=True)), "schedule.warmup_steps": i} for i in range(4)]
    parents = {
        metric: [child.parent for child in next_generation([0.0, 9.0, 5.0, None], metric, points, PARAMETERS, 1)]
        for metric in (BLEU, PERPLEXITY)
    }
    assert parents == {BLEU: [0, 1, 2, 1], PERPLEXITY: [0, 1, 2, 0]}
    parents = [child.parent for child in next_generation([0.0, 9.0, 5.0, 7.0], PERPLEXITY, points, PARAMETERS, 1)]
    assert parents == [0, 0, 2, 3]


def test_a_population_that_failed_has_no_heirs(tmp_path):
    one = study(tmp_path / "study.db", population=2, generations=2)
    for _ in range(2):
        end(one, one.ask(), None)
    assert one.ask() is None and not one.finalists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": {"model.d_model": {"choices": [32, 64]}}}, r"^space\.model\.d_model: can't change in the midst"),
        ({"space": {"batch.tokens": {"choices": [32, 64]}}}, r"^space\.batch\.tokens: can't change in the midst"),
        ({"space": {"seed": {"choices": [1, 2]}}}, r"^space\.seed: can't change in the midst"),
        (
            {
                "space": {
                    "schedule.name": {"choices": ["noam", "inverse_sqrt"]},
                    "schedule.scale": {"low": 0.5, "high": 2.0, "when": {"schedule.name": "noam"}},
                }
            },
            r"^space\.schedule\.scale: when: sampler: pbt knows no conditions",
        ),
        ({"stop": Stopping.asha}, r"^stop: sampler: pbt ends none early"),
        ({"seeds": 3}, r"^seeds: the best of sampler: pbt"),
        ({"warm_start": ["before"]}, r"^warm_start: only sampler: tpe learns"),
        ({"population": 1}, r"^population: must be at least 2"),
        ({"generations": 1}, r"^generations: must be at least 2"),
        ({"population": 2, "points": [{}, {}, {}]}, r"^points: are 3, more than the population of 2"),
    ],
)
def test_what_does_not_go_with_a_population_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SweepConfig(**{"space": SPACE, "sampler": Sampler.pbt, **settings})
