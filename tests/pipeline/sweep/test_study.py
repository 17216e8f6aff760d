"""The study goes on after a kill as if there had been none, and stops whom its rule says."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from metrics import BLEU, PERPLEXITY

from transloom.pipeline.errors import UserError
from transloom.pipeline.sweep.config import Sampler, Stopping, SweepConfig
from transloom.pipeline.sweep.space import grid_points, on_grid, parse_space
from transloom.pipeline.sweep.study import Record, State, Study, earlier_trials, importances, is_worse_than_median
from transloom.pipeline.tasks.task import Metric

SPACE = {"a": {"low": 0.0, "high": 1.0}, "b": {"choices": ["x", "y"]}, "c": {"low": 1, "high": 5, "when": {"b": "y"}}}


def study(file: Path, earlier: tuple[Record, ...] = (), metric: Metric = BLEU, **settings) -> Study:
    sweep = SweepConfig(**{"space": SPACE, "trials": 6, **settings})
    return Study(file, sweep, metric, name="sweep", prefix="s-", seed=3, tokens=1000, earlier=earlier)


def test_trials_of_a_killed_process_come_again_with_their_points_and_curves(tmp_path):
    file = tmp_path / "study.db"
    # In a process of its own, which ends without a word.
    code = f"""
import os
from pathlib import Path
from tests_study import study
one = study(Path({str(file)!r}))
first, second = one.ask(), one.ask()
one.report(first.number, 100, 5.0)
one.report(second.number, 100, 6.0)
one.close(second.number, one.records[2].state.finished, 12.5)
print(first.point, flush=True)
os.kill(os.getpid(), 9)
"""
    (tmp_path / "tests_study.py").write_bytes(Path(__file__).read_bytes())
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert found.returncode == -9, found.stderr
    again = study(file)
    left = again.ask()
    assert left is not None and (left.number, left.run) == (1, "s-001")
    assert str(left.point) == found.stdout.strip() and left.curve == [(100, 5.0)]
    done = again.records[2]
    assert (done.state, done.score, done.seconds) == (State.finished, 6.0, 12.5)
    numbers = [one.number for one in iter(again.ask, None)]
    assert numbers == [3, 4, 5, 6]
    points = [one.point for one in again.records.values()]
    assert all(("c" in point) == (point["b"] == "y") for point in points)
    assert len({point["a"] for point in points}) == 6  # the random numbers did not begin again


def test_of_a_few_choices_random_draws_none_twice(tmp_path):
    space = {"a": {"choices": [1, 2]}, "b": {"low": 0.1, "high": 0.3, "step": 0.1}}
    settings = {"space": space, "sampler": Sampler.random, "points": [{"a": 1, "b": 0.2}]}
    first = study(tmp_path / "study.db", **settings)
    assert [first.ask() for _ in range(3)]
    again = study(tmp_path / "study.db", **settings)
    points = [one.point for one in iter(again.ask, None)]
    assert sorted(tuple(one.values()) for one in points) == [(a, b) for a in (1, 2) for b in (0.1, 0.2, 0.3)]


def test_a_grid_is_walked_once_whoever_is_killed(tmp_path):
    space = {"a": {"choices": [1, 2]}, "b": {"choices": ["x", "y"]}, "c": {"choices": [0], "when": {"b": "y"}}}
    settings = {"space": space, "sampler": Sampler.grid, "trials": 100}
    first = study(tmp_path / "study.db", **settings)
    assert first.num_trials == 4
    begun = [first.ask() for _ in range(2)]
    again = study(tmp_path / "study.db", **settings)
    points = [one.point for one in iter(again.ask, None)]
    assert [one.point for one in begun if one] == points[:2] and len(points) == 4
    expected = [{"a": a} | b for a in (1, 2) for b in ({"b": "x"}, {"b": "y", "c": 0})]
    assert points == expected


def test_starting_points_come_first(tmp_path):
    one = study(tmp_path / "study.db", points=[{"a": 0.25, "b": "y", "c": 3}, {"b": "x"}])
    first, second = one.ask(), one.ask()
    assert first and second
    assert first.point == {"a": 0.25, "b": "y", "c": 3} and second.point["b"] == "x"


def test_successive_halving_goes_on_over_a_restart_with_the_rungs_it_had(tmp_path):
    settings = {"stop": Stopping.asha, "grace": 0.1, "reduction": 3, "trials": 9}
    one = study(tmp_path / "study.db", **settings)
    for score in (10.0, 9.0, 8.0):
        record = one.ask()
        assert record is not None
        assert not one.report(record.number, 50, score)  # before the first rung, at 100 tokens
        is_to_stop = one.report(record.number, 120, score)
        assert is_to_stop == (score < 10.0)
        one.close(record.number, State.stopped if is_to_stop else State.finished, 1.0)
    again = study(tmp_path / "study.db", **settings)
    for score, stops in ((9.5, True), (11.0, False)):
        record = again.ask()
        assert record is not None
        assert again.report(record.number, 110, score) == stops
    assert [one.state.value for one in again.records.values()][:3] == ["finished", "stopped", "stopped"]


def test_successive_halving_stops_the_highest_of_a_metric_that_is_the_better_the_lower(tmp_path):
    settings = {"stop": Stopping.asha, "grace": 0.1, "reduction": 3, "trials": 9}
    one = study(tmp_path / "study.db", metric=PERPLEXITY, **settings)
    for score, stops in ((20.0, False), (30.0, True), (19.0, False), (25.0, True)):
        record = one.ask()
        assert record is not None and one.report(record.number, 110, score) == stops, score
    again = study(tmp_path / "study.db", metric=PERPLEXITY, **settings)
    record = again.records[1]
    assert not again.report(record.number, 310, 12.0) and again.report(3, 310, 13.0)  # the next rung
    assert [one.score for one in again.records.values()] == [12.0, 30.0, 13.0, 25.0]


def test_the_median_stops_the_highest_of_a_metric_that_is_the_better_the_lower(tmp_path):
    one = study(tmp_path / "study.db", metric=PERPLEXITY, stop=Stopping.median, grace=0.1, trials=5)
    for score, stops in ((20.0, False), (30.0, False), (40.0, False), (29.0, False), (31.0, True)):
        record = one.ask()
        assert record is not None
        assert not one.report(record.number, 50, 1000.0)  # before `grace`
        assert one.report(record.number, 200, score) == stops, score


def test_who_learns_of_a_metric_that_is_the_better_the_lower_goes_to_its_low_end(tmp_path):
    def tried(metric: Metric) -> list[float]:
        settings = {"space": {"a": {"low": 0.0, "high": 1.0}}, "trials": 24}
        one = study(tmp_path / f"{metric.name}.db", metric=metric, **settings)
        for record in iter(one.ask, None):
            one.report(record.number, 1000, 10 + 80 * float(record.point["a"]))
            one.close(record.number, State.finished, 1.0)
        return [float(record.point["a"]) for record in one.records.values()]

    low, high = tried(PERPLEXITY), tried(BLEU)
    assert low[:6] == high[:6]  # at random
    assert statistics.mean(low[6:]) < 0.3 and statistics.mean(high[6:]) > 0.7


def test_the_best_of_a_trial_goes_by_the_metric():
    curve = [(100, 9.0), (200, 5.0), (300, 7.0)]
    trials = [Record(1, "s-1", {}, metric, State.finished, curve) for metric in (BLEU, PERPLEXITY)]
    assert [record.score for record in trials] == [9.0, 5.0]
    member = Record(2, "s-2", {}, PERPLEXITY, State.finished, curve, generation=1)
    assert member.score == 7.0  # the next one goes on from the end
    records = [Record(3, "s-3", {}, PERPLEXITY), member, trials[1]]
    assert [record.number for record in sorted(records, key=lambda record: record.sort_key)] == [1, 2, 3]


def test_a_sweep_of_before_there_were_metrics_goes_on(tmp_path):
    """As versions before wrote it: a study that is maximised, with values, curves and attributes."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    before = optuna.create_study(storage=storage, study_name="sweep", direction="maximize")
    for name, value in (("learned", 0), ("queued", True)):
        before.set_user_attr(name, value)
    trial = before.ask()
    trial.suggest_float("a", 0.0, 1.0)
    trial.suggest_categorical("b", ["x"])
    trial.report(21.5, 1000)
    trial.set_user_attr("seconds", 12.5)
    before.tell(trial, 21.5)
    now = study(tmp_path / "study.db", space={"a": {"low": 0.0, "high": 1.0}, "b": {"choices": ["x"]}})
    record = now.records[1]
    assert (record.state, record.score, record.curve, record.seconds) == (State.finished, 21.5, [(1000, 21.5)], 12.5)
    assert now.ask() is now.records[2]


def test_without_a_rule_none_is_stopped(tmp_path):
    one = study(tmp_path / "study.db", trials=8)  # from the sixth on Optuna's own default would
    for score in range(8, 0, -1):
        record = one.ask()
        assert record is not None and not one.report(record.number, 100, float(score))
        one.close(record.number, State.finished, 1.0)


def test_a_validation_that_is_known_decides_nothing(tmp_path):
    one = study(tmp_path / "study.db", stop=Stopping.asha, trials=4)
    first, second = one.ask(), one.ask()
    assert first and second
    one.report(first.number, 100, 10.0)
    assert one.report(second.number, 100, 1.0)
    assert not one.report(second.number, 100, 1.0) and second.curve == [(100, 1.0)]


def test_the_median_rule_compares_at_equal_numbers_of_tokens():
    others = [[(100, 10.0), (200, 20.0)], [(90, 8.0), (210, 30.0)], [(100, 9.0), (200, 25.0)], [(100, 99.0)]]
    assert is_worse_than_median([(100, 7.0), (200, 19.0)], others, BLEU)
    assert not is_worse_than_median([(100, 7.0), (200, 21.0)], others, BLEU)
    # Those that had no validation by then have nothing to compare.
    late = [*others[:2], [(300, 90.0)]]
    assert not is_worse_than_median([(100, 7.0), (200, 19.0)], late, BLEU)
    assert not is_worse_than_median([(100, 1.0)], others[:2], BLEU)  # too few to have a median worth the name


def test_a_trial_that_was_never_validated_has_failed(tmp_path):
    one = study(tmp_path / "study.db")
    record = one.ask()
    assert record is not None
    one.close(record.number, State.finished, 0.0)
    assert (record.state, record.failure) == (State.failed, "it ended before its first validation")
    assert study(tmp_path / "study.db").records[1].failure == record.failure


def test_a_sweep_learns_from_the_finished_trials_of_another(tmp_path):
    before = study(tmp_path / "before.db")
    for i in range(4):
        record = before.ask()
        assert record is not None
        before.report(record.number, 1000, float(i))
        before.close(record.number, State.finished if i else State.failed, 1.0)
    found = earlier_trials(tmp_path / "before.db", "sweep", parse_space(SPACE), BLEU)
    assert [one.score for one in found] == [1.0, 2.0, 3.0]
    narrower = parse_space(SPACE | {"b": {"choices": ["x"]}, "c": None})
    assert all(
        one.point.keys() == {"a", "b"} for one in earlier_trials(tmp_path / "before.db", "sweep", narrower, BLEU)
    )

    now = study(tmp_path / "now.db", earlier=tuple(found))
    assert not now.records and now.num_trials == 6  # they count as known, not as tried
    record = now.ask()
    assert record is not None and (record.number, record.run) == (1, "s-001")
    assert list(study(tmp_path / "now.db", earlier=tuple(found)).records) == [1]
    with pytest.raises(UserError, match="there is no sweep"):
        earlier_trials(tmp_path / "nowhere.db", "sweep", parse_space(SPACE), BLEU)


def test_importance_finds_the_parameter_that_matters_at_tokens_that_all_have_seen():
    parameters = parse_space({"a": {"low": 0.0, "high": 1.0}, "b": {"low": 0.0, "high": 1.0}})
    records = []
    for i in range(30):
        a, b = (i * 0.37) % 1, (i * 0.61) % 1
        curve = [(100, 10 * a)] + ([(900, 50 * b)] if i % 2 else [])
        records.append(Record(i + 1, f"s-{i}", {"a": a, "b": b}, BLEU, State.finished, curve))
    shares, tokens = importances(records, parameters, BLEU)
    assert tokens == 100 and next(iter(shares)) == "a" and shares["a"] > 0.8
    assert importances(records[:3], parameters, BLEU) == ({}, 0)


def test_a_value_reached_in_steps_is_written_as_a_person_would():
    stepped, free = parse_space({"a.b": {"low": 0.0, "high": 0.4, "step": 0.1}, "a.c": {"low": 0.0, "high": 0.4}})
    assert str(on_grid(stepped, 3 * 0.1)) == "0.3" and 3 * 0.1 != 0.3
    assert on_grid(free, 3 * 0.1) == 3 * 0.1
    grid = grid_points(parse_space({"a": {"low": 0.1, "high": 0.3, "step": 0.1}}))
    assert [point["a"] for point in grid] == [0.1, 0.2, 0.3]
