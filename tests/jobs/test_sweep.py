"""A sweep is refused by name, goes on after a kill, and leaves nothing running and an experiment that composes."""

import json
import re
import sys
import time
from types import SimpleNamespace

import pytest
from command import TINY, Command, transloom_here
from metrics import BLEU, PERPLEXITY
from runs import folder_of, mlflow_runs

from transloom.jobs.__main__ import main
from transloom.jobs.config.compose import chosen_options, load_config, to_yaml
from transloom.jobs.runs.workspace import Run
from transloom.jobs.sweep.report import print_sweep, report_sweep, spent, write_best
from transloom.jobs.sweep.search import _best, _study
from transloom.jobs.sweep.settings import at_point, refuse_impossible, sweep_settings
from transloom.jobs.sweep.table import Board
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.significance import LEAST_BLEU
from transloom.pipeline.files import write_json
from transloom.pipeline.sweep.config import Sampler, SweepConfig
from transloom.pipeline.sweep.seeds import chance_of
from transloom.pipeline.sweep.space import Point, parse_space
from transloom.pipeline.sweep.study import Record, State, Study

SPACE = "sweep.space={model.dropout: {choices: [0.1, 0.2]}}"


def refuse(*words: str) -> None:
    refuse_impossible(load_config(["sweep.sampler=random", *words]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"^sweep\.space: is empty: take one of conf/sweep, as in sweep=tpe_asha"),
        (
            ["sweep.space={model.dropuot: {choices: [0.1]}}"],
            r"^sweep\.space: model\.dropuot: no such setting\. Did you mean model\.dropout\?",
        ),
        (["sweep.space={modle: {choices: [0.1]}}"], r"^sweep\.space: modle: no such setting"),
        (
            ["sweep.space.model.dropout={low: 0.1, high: 1.5}"],
            r"^sweep\.space: model\.dropout: .*tried: model\.dropout=",
        ),
        (["sweep.space.model.dropout={choices: [much]}"], r"^sweep\.space: model\.dropout: .*'much'"),
        (["sweep.space.model.num_heads={choices: [2, 3]}"], r"^sweep\.space: model\..*tried: model\.num_heads=3"),
        (["sweep.space.tokenizer.vocab_size={low: 100, high: 200}"], r"vocab_size can't vary: the trials share one"),
        (["storage=s3://bucket/folder"], r"storage: sweeps and their trials are not copied there"),
        (["sweep.space.task={choices: [translation]}"], r"^sweep\.space: task can't vary: the trials share one"),
        (["sweep.space.train.max_steps={low: 100, high: 200}"], r"max_steps can't vary: it is the budget"),
        (["sweep.space.model.dropout={low: 1}"], r"^sweep\.space\.model\.dropout: low and high must be numbers"),
        ([SPACE, "sweep.points=[{model.dropout: 0.3}]"], r"^sweep\.points: model\.dropout: 0\.3 is outside"),
    ],
)
def test_a_space_is_refused_by_name_before_anything_starts(words, message):
    with pytest.raises(UserError, match=message):
        refuse(*words)


def test_a_trial_is_the_experiment_with_its_points_values():
    config = load_config(["experiment=multi30k_sweep", "name=mine"])
    refuse_impossible(config)
    trial = at_point(config, {"schedule.peak_learning_rate": 0.005, "model.dropout": 0.15, "cluster.num_workers": 2})
    assert (trial.schedule.peak_learning_rate, trial.model.dropout, trial.cluster.num_workers) == (0.005, 0.15, 2)
    assert trial.batch == config.batch and trial.name is None and not trial.sweep.space
    names = [one.name for one in parse_space(config.sweep.space)]
    assert names == ["schedule.peak_learning_rate", "model.dropout", "train.label_smoothing"]


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=multi30k_sweep"],
        ["experiment=demo", "model=lstm", "tokenizer=bpe_8k"],
        ["experiment=language_model/demo"],
    ],
)
def test_the_best_is_an_experiment_that_gives_the_same_training(tmp_path, words):
    config = at_point(load_config(words), {"model.dropout": 0.25, "train.label_smoothing": 0.05})
    best = Record(3, "mine-003", {"model.dropout": 0.25}, BLEU, State.finished, [(1000, 21.5)])
    file = tmp_path / "the best.yaml"
    write_best(file, config, chosen_options(words), "mine", best)
    again = load_config([f"experiment={file}"])
    assert at_point(again, {}) == config
    assert load_config([f"experiment={file}", "model.dropout=0.5", "decode=greedy"]).model.dropout == 0.5
    assert chosen_options([f"experiment={file}"])["model"] == chosen_options(words)["model"]
    with pytest.raises(UserError, match=r"^experiment=.*nothing.yaml: No such file"):
        load_config([f"experiment={tmp_path}/nothing.yaml"])
    file.write_text("# @package _global_\nmodel: {dropuot: 0.1}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.dropuot: no such setting"):
        load_config([f"experiment={file}"])


def test_what_early_stopping_saved_counts_every_trial_to_its_end():
    config = load_config(["cluster.num_workers=2"])
    best = Record(1, "a-1", {}, BLEU, State.finished, [(500, 1.0), (1000, 2.0)], seconds=3600.0)
    stopped = Record(2, "a-2", {}, BLEU, State.stopped, [(250, 1.0)], seconds=900.0)
    failed = Record(3, "a-3", {}, BLEU, State.failed)
    assert spent([best, stopped, failed], best, config) == {
        "target_tokens": 1250,
        "full_target_tokens": 2000,
        "device_hours": 2.5,
        "full_device_hours": 4.0,
    }


def test_only_a_sweep_that_is_there_is_resumed(tmp_path):
    with pytest.raises(UserError, match=r"^resume: there is no sweep 'mine' in .*/sweeps; there: none yet"):
        sweep_settings(["resume=mine", f"output_dir={tmp_path}"])


def test_tokens_of_a_validation_between_two_reports_are_estimated(tmp_path):
    from transloom.jobs.sweep.tune import validation_curve
    from transloom.jobs.training.worker import logged_seconds
    from transloom.pipeline.tracking.tracker import SpoolTracker

    tracker = SpoolTracker(tmp_path)
    tracker.log_metrics({"validation/bleu": 1.0}, 5)  # before any report: not known
    for step in (20, 40):
        tracker.log_metrics({"train/target_tokens": 100.0 * step, "train/seconds": step / 10}, step)
    tracker.log_metrics({"validation/bleu": 10.0}, 30)
    tracker.log_metrics({"validation/bleu": 20.0}, 40)
    tracker.close()
    assert validation_curve(tmp_path, BLEU, "target") == [(30, 3000, 10.0), (40, 4000, 20.0)]
    assert validation_curve(tmp_path, BLEU, "text") == []
    assert logged_seconds(tmp_path) == 4.0


def test_a_lead_among_scores_that_are_too_low_is_none():
    low = chance_of([0.30, 0.11, 0.10], second=0.01)
    assert "Below 1 BLEU" in low.verdict(BLEU) and "mean 0.17" in low.verdict(BLEU)
    assert "Its lead" not in low.verdict(BLEU)
    assert "Its lead" in chance_of([30.0, 29.9], second=29.9).verdict(BLEU)
    assert BLEU.trivial == LEAST_BLEU


def test_the_table_has_the_trials_under_way_and_the_best_of_the_others(tmp_path, capsys):
    names = ["model.dropout", "schedule.peak_learning_rate"]
    records = [
        Record(i, f"a-{i}", {"model.dropout": i / 10}, BLEU, State.stopped, [(1000 * i, 1.0 * i)]) for i in range(1, 13)
    ]
    board = Board("mine", names, 20, 600, records, BLEU)
    point: Point = {"model.dropout": 0.2, "schedule.peak_learning_rate": 0.0012345}
    running = Record(13, "a-13", point, BLEU, curve=[(10, 1.5)])
    write_json(tmp_path / "progress.json", {"step": 120, "eta_seconds": 75.0})
    with board:
        board.began(running, Run("a-13", tmp_path, load_config([])))
        lines = board._render().plain.split("\n")
        assert lines[0] == "mine: 12 of 20 trials ended, the best with BLEU 12.00"
        assert lines[1].split() == ["trial", "dropout", "peak_learning_rate", "step", "BLEU", "state", "ETA"]
        assert lines[2].split() == ["13", "0.2", "0.001234", "120/600", "1.50", "running", "1:15"]
        assert [line.split()[0] for line in lines[3:]] == [str(number) for number in range(12, 4, -1)]
        board.reported(running)
        running.state, running.failure = State.failed, "it diverged"
        board.ended(running)
    said = capsys.readouterr().out
    assert "trial 13 of 20: model.dropout=0.2, schedule.peak_learning_rate=0.001234, going on at 10 tokens" in said
    assert "trial 13: BLEU 1.50 at 10 tokens  ETA 1:15" in said
    assert "trial 13: failed, BLEU 1.50: it diverged" in said


def test_a_score_that_is_no_number_counts_for_nothing(tmp_path):
    from transloom.jobs.sweep.tune import validation_curve
    from transloom.pipeline.tracking.tracker import SpoolTracker

    tracker = SpoolTracker(tmp_path)
    for step, score in ((20, 30.0), (40, float("nan")), (60, float("inf")), (80, 25.0)):
        tracker.log_metrics({"train/target_tokens": 100.0 * step, "validation/perplexity": score}, step)
    tracker.close()
    assert validation_curve(tmp_path, PERPLEXITY, "target") == [(20, 2000, 30.0), (80, 8000, 25.0)]


def test_tune_is_told_which_way_is_better(tmp_path):
    from transloom.jobs.sweep.tune import StudySearcher

    modes = []
    for metric in (BLEU, PERPLEXITY):
        trials = SimpleNamespace(study=SimpleNamespace(metric=metric))
        searcher = StudySearcher(trials, tmp_path / "stop")
        modes.append((searcher.metric, searcher.mode))
    assert modes == [("score", "max"), ("score", "min")]


def test_the_process_of_a_trial_that_ended_drives_the_next_once_its_workers_have_stopped(tmp_path, monkeypatch):
    from transloom.jobs.sweep.tune import TrialActor

    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        (folder / "config.yaml").write_text(to_yaml(load_config([])), encoding="utf-8")
    trained = []

    def train(actor):
        folder = actor._run.folder
        while not (folder / "stop").read_bytes():
            time.sleep(0.01)
        trained.append(folder)

    monkeypatch.setattr(TrialActor, "_train", train)
    actor = object.__new__(TrialActor)
    actor.setup({"folder": str(folders[0]), "stop": str(tmp_path / "stop")})
    assert actor.reset_config({"folder": str(folders[1]), "stop": str(tmp_path / "stop")})
    assert trained == folders[:1] and actor._thread.is_alive()
    actor.cleanup()
    assert trained == folders and not actor._thread.is_alive()


class Page(dict):
    """What is told to a sweep's page in MLflow."""

    def log_metrics(self, metrics, step):
        self["metrics"] = metrics

    def set_tags(self, tags):
        self |= tags

    def log_table(self, columns, name):
        self["table"] = columns

    def log_figure(self, path):
        self.setdefault("figures", []).append(path.name)

    def log_artifact(self, path):
        """Nothing."""


def reported(folder, metric, monkeypatch, capsys, splits=("test", "validation")):
    """A sweep of three trials and two seeds: its result, its page, and what is printed."""
    config = load_config(["sweep.seeds=3"])
    monkeypatch.setattr("transloom.jobs.sweep.report.selecting_metric", lambda task, corpus: metric)
    sweep = Run("mine", folder, config)
    space = {"model.dropout": {"choices": [0.1, 0.2, 0.3]}}
    settings = SweepConfig(space=space, sampler=Sampler.grid, trials=3)
    study = Study(folder / "study.db", settings, metric, name="sweep", prefix="mine-", seed=1, tokens=1000)
    for score in (20.0, 12.0, 16.0):
        record = study.ask()
        assert record is not None
        study.report(record.number, 1000, score)
        study.close(record.number, State.finished, 60.0)
    best = _best(study)
    seeds = [Record(i, f"mine-seed{i}", {"seed": i}, metric, State.finished, [(1000, 14.0 + i)]) for i in (1, 2)]
    score = {"value": 13.0, "signature": "", "details": ""}
    tests = {name: {split: {metric.name: score} for split in splits} for name in (best.run, "mine-seed1")}
    page = Page()
    result = report_sweep(sweep, study, best, seeds, tests, page)
    print_sweep(sweep, result)
    return json.loads(json.dumps(result)), page, capsys.readouterr().out


def test_a_sweep_by_a_metric_that_is_the_better_the_lower_is_reported_by_it(tmp_path, monkeypatch, capsys):
    result, page, out = reported(tmp_path, PERPLEXITY, monkeypatch, capsys)
    assert [(one["trial"], one["perplexity"]) for one in result["trials"]] == [(2, 12.0), (3, 16.0), (1, 20.0)]
    assert result["best"]["trial"] == 2 and result["chance"]["second"] == 16.0
    metrics = {
        name: page["metrics"][f"sweep/{name}"] for name in ("best_validation_perplexity", "best_test_perplexity")
    }
    assert list(metrics.values()) == [12.0, 13.0]
    assert page["metrics"]["sweep/seeds_mean_perplexity"] == pytest.approx((12.0 + 15.0 + 16.0) / 3)
    assert page["table"]["perplexity"] == [12.0, 16.0, 20.0]
    assert "validation perplexity 12.0, test perplexity 13.0.\n" in page["mlflow.note.content"]
    assert "validation perplexity 12.0; of its averaged model 13.0, and test perplexity 13.0\n" in out
    assert "Its lead over the second, 4.0, is" in out and "BLEU" not in out
    assert page["figures"] == ["parallel.png", "cost.png", "seeds.png"]


def test_a_sweep_without_a_test_set_says_so(tmp_path, monkeypatch, capsys):
    result, page, out = reported(tmp_path, PERPLEXITY, monkeypatch, capsys, splits=["validation"])
    assert result["best"]["test"] is None and result["best"]["averaged"]["perplexity"]["value"] == 13.0
    assert "sweep/best_test_perplexity" not in page["metrics"]
    assert "validation perplexity 12.0.\n" in page["mlflow.note.content"]
    assert "validation perplexity 12.0; of its averaged model 13.0\nNothing is held out for a test: " in out
    assert "test perplexity" not in out


def test_a_translations_sweep_has_the_names_that_it_had(tmp_path, monkeypatch, capsys):
    result, page, _ = reported(tmp_path, BLEU, monkeypatch, capsys)
    assert [(one["trial"], one["bleu"]) for one in result["trials"]] == [(1, 20.0), (3, 16.0), (2, 12.0)]
    names = {"sweep/best_validation_bleu", "sweep/best_test_bleu", "sweep/seeds_mean_bleu", "sweep/seeds_deviation"}
    assert names <= page["metrics"].keys() and page["table"]["bleu"] == [20.0, 16.0, 12.0]


def test_a_sweep_learns_from_no_sweep_of_another_task(tmp_path, monkeypatch):
    folder = tmp_path / "sweeps" / "before"
    folder.mkdir(parents=True)
    config = load_config(["sweep=tpe", "sweep.warm_start=[before]", f"output_dir={tmp_path}"])
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    write_json(folder / "sweep.json", {"shards": "these"})
    other = SimpleNamespace(task=SimpleNamespace(value="another"), sweep=config.sweep)
    monkeypatch.setattr("transloom.jobs.sweep.search.read_config", lambda file: other)
    with pytest.raises(UserError, match=r"^sweep\.warm_start: before was of the task another"):
        _study(Run("next", folder.with_name("next"), config), "these")


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_leaves_nothing_running(place, monkeypatch, capsys):
    words = [word for word in TINY if not word.startswith(("cluster.", "schedule.peak", "train.max", "train.validate"))]
    words += ["train.max_steps=200", "train.validate_every=40", "cluster.num_workers=1", "name=swept"]
    words += ["sweep.space={schedule.peak_learning_rate: {choices: [0.02, 0.01, 1e-6]}}"]
    words += ["sweep.sampler=grid", "sweep.stop=asha", "sweep.grace=0.3", "sweep.at_once=2"]
    command = Command(place, "sweep", *words)
    command.wait_for(folder_of(place, "swept-003") / "config.yaml")  # begins when one of the two before has ended
    said = command.kill().out
    ended = [f"swept-00{number}" for number in (1, 2) if re.search(rf"trial {number}: (finished|stopped)", said)]
    assert ended and "trial 3: " not in said, said
    before = {name: (folder_of(place, name) / "metrics.jsonl").read_bytes() for name in ended}

    outcome = transloom_here(place, "sweep", "resume=swept")
    for name, metrics in before.items():
        assert (folder_of(place, name) / "metrics.jsonl").read_bytes() == metrics, f"{name} was trained again"
    folder = place / "outputs" / "sweeps" / "swept"
    result = json.loads((folder / "result.json").read_bytes())
    states = {one["trial"]: one["state"] for one in result["trials"]}
    # The second may be stopped by the first, which learns faster, where that comes to the rung before it. The third,
    # which learns nothing, is stopped by the rungs of before the kill.
    assert states[1] == "finished" and states[3] == "stopped" and len(states) == 3
    assert result["best"]["run"] in ("swept-001", "swept-002") and result["best"]["test"]["bleu"]["value"] > 0
    assert result["spent"]["target_tokens"] < result["spent"]["full_target_tokens"]
    for picture in ("parallel", "cost"):
        assert (folder / "figures" / f"{picture}.png").read_bytes()[:4] == b"\x89PNG"
    assert f"transloom run experiment={folder}/best.yaml" in outcome.out
    assert "Traceback" not in outcome.out + outcome.err

    runs = {run.info.run_name: run for run in mlflow_runs(place) if run.info.run_name.startswith("swept")}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}, runs
    parent = runs.pop("swept")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert len(runs) == 3 and runs["swept-003"].data.tags["sweep.stopped"].startswith("asha at ")
    assert "test/bleu" in runs[result["best"]["run"]].data.metrics
    assert "test/bleu" not in runs["swept-003"].data.metrics  # the test set is the best one's alone

    best = load_config([f"experiment={folder}/best.yaml"])
    assert best.schedule.peak_learning_rate == result["best"]["point"]["schedule.peak_learning_rate"]
    # A sweep with nothing left to do starts neither Ray nor MLflow.
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("ray", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["sweep", "resume=swept"]) == 0
    again = capsys.readouterr().out
    assert "Stage:" not in again and result["best"]["run"] in again


def test_a_space_on_the_command_line_is_the_whole_space():
    words = ["sweep=tpe", "sweep.space={model.dropout: {choices: [0.1, 0.2]}}", "sweep.space.seed={choices: [1, 2]}"]
    space = load_config(words).sweep.space
    assert [one.name for one in parse_space(space)] == ["model.dropout", "seed"]
    assert space["model.dropout"] == {"choices": [0.1, 0.2]}, "nothing of the group's"
