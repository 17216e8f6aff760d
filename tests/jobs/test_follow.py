"""What is read from a log is what the job printed into it."""

import pytest

from transloom.jobs.commands.jobs import known_columns, task_of
from transloom.jobs.remote.follow import progress_of
from transloom.jobs.terminal.console import counter, is_progress, training_line
from transloom.pipeline.tasks.build import TaskName
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tasks.translation import BLEU

PERPLEXITY = Metric("perplexity", "perplexity", higher_is_better=False, digits=1)
SHOWN = {
    "step": 1200,
    "max_steps": 20_000,
    "loss": 3.21,
    "learning_rate": 1e-3,
    "source_tokens_per_second": 9000.0,
    "target_tokens_per_second": 9100.0,
    "padding_share": 0.01,
    "model_flops_per_second": 1e11,
    "validation_score": 12.34,
    "validation_step": 1000,
    "eta_seconds": 60.0,
}


def test_a_training_is_read_from_its_line_of_progress():
    log = f"Stage: prepare\nStage: train\n  starting the workers …\n{training_line(SHOWN, BLEU)}\n"
    found = progress_of(log, BLEU)
    assert (found.stage, found.step, found.score, found.mlflow) == (
        "train",
        "1,200/20,000",
        "BLEU 12.34 validation",
        "",
    )
    log += "MLflow      http://h:5000/#/experiments/1/runs/a\nStage: evaluate\ntest bleu   31.50  nrefs:1\n"
    found = progress_of(log, BLEU)
    assert (found.stage, found.score) == ("evaluate", "BLEU 31.50 test")
    assert found.mlflow == "http://h:5000/#/experiments/1/runs/a"
    assert (progress_of("", BLEU).stage, progress_of("", BLEU).score) == ("", "")


def test_a_line_of_progress_has_the_score_of_whatever_metric():
    shown = {"step": 5, "max_steps": 9, "loss": 1.0, "learning_rate": 1e-3, "text_tokens_per_second": 1234.5}
    shown |= {"padding_share": 0.0, "model_flops_per_second": 1e9, "validation_score": 31.257, "validation_step": 4}
    line = training_line(shown, PERPLEXITY)
    assert "1,234 text tok/s" in line and "validation perplexity 31.3 at 4" in line
    assert "9,000 source + 9,100 target tok/s" in training_line(SHOWN, BLEU)
    before = {key: value for key, value in SHOWN.items() if key != "validation_score"} | {"validation_bleu": 12.34}
    assert training_line(before, BLEU) == training_line(SHOWN, BLEU)


def test_the_best_trial_is_the_lowest_where_lower_is_better():
    log = "  trial 1: finished, perplexity 41.5\n  trial 2: perplexity 8.0 at 10,000 target tokens\n  trial 3: failed\n"
    assert progress_of(log, PERPLEXITY).score == "perplexity 8.0 validation"
    assert progress_of(f"{log}test perplexity   7.5\ntest accuracy   0.3\n", PERPLEXITY).score == "perplexity 7.5 test"
    assert progress_of(log, BLEU).score == ""


def test_a_job_of_before_the_setting_task_was_a_translation():
    assert task_of({"transloom_config": "task: translation\n"}) is TaskName.translation
    for config in ("seed: 1\n", "[]", "task: [", "task: other", ""):
        assert task_of({"transloom_config": config}) is TaskName.translation
    assert task_of({}) is TaskName.translation


def test_the_list_has_no_column_for_a_server_that_there_is_not():
    row = ["first-3fa2c1", "running", "run", "train", "40/100", "BLEU 12.34 validation", "2", "Nov 23 10:00"]
    columns, rows = known_columns([[*row, ""], [*row, ""]])
    assert columns[-1] == "submitted" and rows == [row, row]
    columns, rows = known_columns([[*row, ""], [*row, "http://h:5000"]])
    assert columns[-1] == "MLflow" and rows[0][-1] == "" and rows[1][-1] == "http://h:5000"


def test_a_sweep_is_read_from_its_trials():
    log = "Stage: sweep\n5 of 12 trials to go, 2 at a time, over model.dropout\n  trial 8 of 12: model.dropout=0.1\n"
    log += "  trial 8: BLEU 21.50 at 10,000 target tokens  ETA 1:15\n  trial 9: stopped, BLEU 9.75\n"
    log += "  trial 8: finished, BLEU 20.00\n  trial 10: BLEU 3.00 at 5,000 target tokens\n"
    found = progress_of(log, BLEU)
    assert (found.stage, found.step, found.score) == ("sweep", "9/12 trials", "BLEU 21.50 validation")
    resumed = log.replace("\n  trial 8 of", "\n  the best so far: trial 3, BLEU 30.25\n  trial 8 of", 1)
    assert progress_of(resumed, BLEU).score == "BLEU 30.25 validation"
    found = progress_of(f"{log}Stage: seeds of the best\n2 of 2 trials to go, 1 at a time, over seed\n", BLEU)
    assert (found.stage, found.step) == ("seeds of the best", "0/2 trials")


class Shown:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def show(self, text: str) -> None:
        self.texts.append(text)


def test_lines_of_progress_are_told_from_others():
    status = Shown()
    count = counter(status)  # type: ignore[arg-type]
    count("translating test", 5, 500)
    count("corpus", 1234, 0)
    assert all(map(is_progress, [*status.texts, training_line(SHOWN, BLEU), "  starting the workers …"]))


@pytest.mark.parametrize(
    "line",
    ["Stage: train", "  source       At 10: 40 a dog runs.", "Run          a", "  going on from step_00000050", ""],
)
def test_a_result_is_no_progress(line):
    assert not is_progress(line)
