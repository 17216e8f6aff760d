"""The harness itself: what it decides, that it can fail, and two faults for real."""

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from command import ROOT

from chaos import cases
from chaos.__main__ import main, parse
from chaos.cases import CASES, run_case, times_of, verdict_of_tests
from chaos.faults import NotPossible
from chaos.report import (
    CaseResult,
    Injection,
    doubled_or_missing,
    exit_code,
    markdown,
    random_steps,
    stalls,
    write_results,
)
from chaos.soak import sizes
from chaos.stall import summary, write_stall
from chaos.training import WORDS, NotStarted, Place, end_commands, make_reference, samples, start, train
from transloom.jobs.config.compose import load_config


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, random.Random(1))


def test_random_steps_reach_all_parts_of_a_training():
    steps = random_steps(random.Random(3), 10, 1, 90)
    assert [(step - 1) // 9 for step in sorted(steps)] == list(range(10))
    assert steps != sorted(steps)
    assert steps == random_steps(random.Random(3), 10, 1, 90) != random_steps(random.Random(4), 10, 1, 90)
    assert set(random_steps(random.Random(5), 30, 1, 3)) == {1, 2, 3}
    with pytest.raises(ValueError):
        random_steps(random.Random(), 0, 1, 3)


@pytest.mark.parametrize(
    ("result", "survived"),
    [
        (CaseResult(1, "", 2, [Injection(), Injection()]), True),
        (CaseResult(1, "", 2, [Injection(), Injection("lost")]), False),
        (CaseResult(1, "", 2, [Injection()]), False),
        (CaseResult(1, "", 1, [], "no root"), False),
        (CaseResult(1, "", 0, []), False),
    ],
)
def test_a_case_survives_only_if_every_injection_wanted_did(result, survived):
    assert result.survived is survived
    assert exit_code([CaseResult(2, "", 1, [Injection()]), result]) == (0 if survived else 1)


def test_no_case_at_all_is_no_success():
    assert exit_code([]) == 1


def test_the_table_has_medians_and_what_was_not_survived(tmp_path):
    injections = [Injection("", lost, seconds, {"exit": 2.0}) for lost, seconds in ((1, 4.0), (3, 6.0), (19, 30.0))]
    results = [
        CaseResult(5, "the driver", 4, [*injections, Injection("two\nruns")]),
        CaseResult(1, "a worker", 1, [Injection()]),
        CaseResult(11, "the disk", 1, [], "no root"),
    ]
    write_results(tmp_path / "new", results, 42, "2 CPUs")
    text = (tmp_path / "new" / "chaos.md").read_text()
    assert text == markdown(results, 42, "2 CPUs")
    rows = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    assert rows == [
        "| 1 | a worker | 1 | 1 | – | – | – |",
        "| 5 | the driver | 4 | 3 | 3 (19) | 6.0 (30.0) | exit 2 (max 2) |",
        "| 11 | the disk | 0 of 1 | 0 | – | – | – |",
    ]
    assert "- case 5, injection 4: two runs" in text and "- case 11: not run: no root" in text
    record = json.loads((tmp_path / "new" / "chaos.json").read_text())
    assert record["seed"] == 42 and [one["survived"] for one in record["cases"]] == [False, True, False]


@pytest.mark.parametrize(
    ("found", "difference"),
    [
        ([(2, 0.5), (1, 1.0)], ""),
        ([(1, 1.0)], "missing at steps [2]"),
        ([(1, 1.0), (2, 0.5), (2, 0.5)], "doubled at steps [2]"),
        ([(1, 1.0), (2, 0.25)], "of another value at steps [2]"),
        ([(1, 1.0), (2, 0.5), (3, 0.5)], "unexpected at steps [3]"),
    ],
)
def test_points_that_are_not_there_once_are_told(found, difference):
    assert doubled_or_missing([(1, 1.0), (2, 0.5)], found) == difference


def test_a_stall_is_what_a_step_does_not_account_for():
    # Steps of 1 s and of 2 s in turn, 0.01 s beside each, and 0.3 s more after every third.
    points, wall, seconds = [], 100.0, 0.0
    for step in range(1, 11):
        took = 1.0 + step % 2
        wall, seconds = wall + took + 0.01 + (0.3 if step > 1 and (step - 1) % 3 == 0 else 0.0), seconds + took
        points.append((step, wall, seconds))
    assert stalls(points, 3) == pytest.approx([0.3, 0.3, 0.3])


def test_a_stall_as_a_share_of_a_minute(tmp_path):
    found = summary([0.5, 0.6, 0.7], 0.8, 72.0)
    assert found["median_seconds"] == 0.6 and found["share_at_one_a_minute"] == pytest.approx(0.01)
    assert "| 0.60 (0.50 to 0.70) | 1.00% (0.83% to 1.17%) |" in write_stall(tmp_path, found, "2 CPUs")


def test_a_soak_fills_its_minutes_and_gets_on_between_two_kills():
    assert sizes(10, 0.05) == (7200, 100)
    assert sizes(2, 1.5) == (48, 3)
    assert sizes(0.1, 10.0) == (4, 1)


def test_every_case_has_an_injection_or_tests_that_there_are():
    assert list(CASES) == list(range(1, 36))
    for number, case in CASES.items():
        assert bool(case.inject) != bool(case.tests), number
        for test in case.tests:
            file, _, name = test.partition("::")
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), test
    assert [number for number in CASES if times_of(number, 7) == 7] == [1, 2, 3, 4, 5, 6, 8, 9, 13, 27, 28, 29, 32]


def test_the_trainings_words_compose():
    config = load_config(WORDS)
    assert config.batch.micro_batches == 4 and config.cluster.num_workers == 2


def test_a_word_of_a_case_replaces_that_of_all(place, monkeypatch):
    given = []
    monkeypatch.setattr("chaos.training.Command", lambda folder, *words, added: given.append((words, added)))
    start(place, "one", "model=small_pre_norm", "cluster.num_workers=1", steps=40, faults={"nan": [1, 2]})
    ((job, *words), added) = given[0]
    assert job == "train" and load_config(words).cluster.num_workers == 1
    assert load_config(words).train.max_steps == 40 and not load_config(words).tracking.enabled
    assert json.loads(added["TRANSLOOM_CHAOS"]) == {"nan": [1, 2]} and "hooks" in added["PYTHONPATH"]
    start(place, "two", "tracking.uri=sqlite:////x.db")
    assert load_config(given[1][0][1:]).tracking.enabled


def test_an_undisturbed_training_that_fails_is_told(tmp_path, monkeypatch, capsys):
    def fail(place):
        raise AssertionError("exit code 2, not 0")

    monkeypatch.setattr("chaos.__main__.make_reference", fail)
    assert main(["cases=1", f"out={tmp_path}"]) == 1
    assert "undisturbed training failed: exit code 2" in capsys.readouterr().err


def test_a_fault_that_is_not_survived_is_told_and_the_others_are_still_injected(place, monkeypatch):
    def inject(place, i, step):
        if i == 1:
            raise AssertionError("weights differ")
        if i == 2:
            raise FileNotFoundError("training.json")
        return Injection(steps_lost=i)

    monkeypatch.setitem(cases.CASES, 1, cases.Case("made up", inject, 0))
    told = []
    result = run_case(place, 1, 4, told.append)
    assert [one.reason.strip() for one in result.injections] == [
        "",
        "weights differ",
        "FileNotFoundError training.json",
        "",
    ]
    assert not result.survived and [len(one.injections) for one in told] == [1, 2, 3, 4]


def test_where_ray_did_not_start_the_fault_is_injected_once_more(place, monkeypatch):
    asked = []

    def inject(place, i, step):
        asked.append(i)
        if len(asked) < 3 or i == 1:
            raise NotStarted("Ray did not start")
        return Injection()

    monkeypatch.setitem(cases.CASES, 1, cases.Case("made up", inject, 0))
    result = run_case(place, 1, 2, lambda _: None)
    assert asked == [0, 0, 0, 1, 1, 1]
    assert [one.survived for one in result.injections] == [True, False]


def test_an_undisturbed_training_is_begun_again_where_ray_did_not_start(place, monkeypatch):
    asked = []

    def finish(command):
        asked.append(command)
        raise AssertionError("exit code 2, not 0: " + ("Ray did not start" if len(asked) < 2 else "a full disk"))

    monkeypatch.setattr("chaos.training.finish", finish)
    monkeypatch.setattr("chaos.training.start", lambda place, name, **more: name)
    with pytest.raises(AssertionError, match="full disk"):
        train(place, "one")
    assert asked == ["one", "one"]


def test_a_fault_that_can_not_be_injected_is_told(place, monkeypatch):
    def inject(place, i, step):
        raise NotPossible("no root")

    monkeypatch.setitem(cases.CASES, 11, cases.Case("made up", inject))
    result = run_case(place, 11, 4, lambda _: None)
    assert result.not_run == "no root" and not result.survived


@pytest.mark.parametrize(
    ("code", "said", "survived"),
    [
        (0, ".. [100%]\n2 passed in 1.2s", True),
        (0, "s [100%]\n1 skipped in 1.2s", False),
        (0, ".s [100%]\n1 passed, 1 skipped in 1.2s", False),
        (1, ".F\n1 failed, 1 passed in 1.2s", False),
        (5, "no tests ran in 0.1s", False),
        (4, "", False),
    ],
)
def test_tests_of_the_suite_count_only_when_all_of_them_passed(code, said, survived):
    assert verdict_of_tests(code, said).survived is survived


def test_results_of_finished_injections_are_kept_when_it_is_interrupted(tmp_path, monkeypatch, capsys):
    def inject(place, i, step):
        if i == 2:
            raise KeyboardInterrupt
        return Injection(steps_lost=i)

    monkeypatch.setitem(cases.CASES, 1, cases.Case("made up", inject, 0))
    monkeypatch.setattr("chaos.__main__.make_reference", lambda place: None)
    assert main(["cases=1", "times=5", "seed=9", f"out={tmp_path}"]) == 130
    record = json.loads((tmp_path / "chaos.json").read_text())
    assert record["seed"] == 9 and [one["steps_lost"] for one in record["cases"][0]["injections"]] == [0, 1]
    assert not record["cases"][0]["survived"]
    said = capsys.readouterr().out
    assert "Seed 9" in said and "[2/5] case 1, 2 of 5, made up: survived; " in said


@pytest.mark.parametrize(
    "words", [["case=1"], ["cases=99"], ["cases=one"], ["soak", "stall"], ["times=0"], ["sook"], ["minutes=0"]]
)
def test_a_word_that_is_not_understood_is_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2 and "make chaos: error:" in capsys.readouterr().err


def test_options():
    options = parse(["cases=1,5,27", "times=3", "seed=8"])
    assert (options.what, options.cases, options.times, options.seed) == ("cases", (1, 5, 27), 3, 8)
    assert parse(["soak", "minutes=2.5"]).minutes == 2.5 and len(parse([]).cases) == 35 and parse([]).times == 10


def test_micro_batches_are_counted(tmp_path):
    (tmp_path / "1.jsonl").write_text('[0, 1, "a"]\n[0, 1, "b"]\n')
    (tmp_path / "2.jsonl").write_text('[0, 1, "a"]\n')
    assert samples(tmp_path) == {(0, 1, "a"): 2, (0, 1, "b"): 1}


def in_hooked_process(program: str, faults: dict) -> str:
    """What a program prints in a process with these faults."""
    folder = Path(__file__).parent / "hooks"
    environment = {"PYTHONPATH": f"{ROOT}:{folder}", "TRANSLOOM_CHAOS": json.dumps(faults), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_clock_that_is_shifted(tmp_path):
    (tmp_path / "shift").write_text("-3600")
    shifted = float(in_hooked_process("import time; print(time.time())", {"clock": str(tmp_path / "shift")}))
    assert -3700 < shifted - time.time() < -3500


def test_a_gradient_that_is_spoilt():
    program = """
from dataclasses import dataclass
from types import SimpleNamespace
import torch
from transloom.pipeline.train import loop
scales = []
def forward_backward(batch, scale, last):
    scales.append(scale)
    return SimpleNamespace(total=torch.zeros(()))
engine = SimpleNamespace(device=torch.device("cpu"), forward_backward=forward_backward)
from transloom.pipeline.data.batches import Step
for index in range(4):
    loop.add_gradients(engine, Step(0, index, None, [None], [None], [1.0], [0], {}, 2))
print(scales)
"""
    assert in_hooked_process(program, {"nan": [2, 3]}) == "[0.5, nan, nan, 0.5]\n"
    assert in_hooked_process(program, {"clock": "/nowhere"}) == "[0.5, 0.5, 0.5, 0.5]\n"


@pytest.mark.slow
def test_faults_in_a_real_training_are_survived(tmp_path):
    place = Place(tmp_path, random.Random(6), steps=30, every=10)
    make_reference(place)
    try:
        results = [run_case(place, number, 1, lambda _: None) for number in (1, 9)]
    finally:
        end_commands(place)
    for result in results:
        assert result.survived, [one.reason for one in result.injections]
    worker, byte = (result.injections[0] for result in results)
    assert worker.steps_lost is not None and worker.steps_lost <= 10
    assert worker.recovery_seconds is not None and worker.recovery_seconds > 0
    assert byte.steps_lost == 10


@pytest.mark.slow
def test_what_was_started_is_ended(place):
    command = start(place, "left")
    while not command.processes():
        time.sleep(0.01)
    end_commands(place)
    assert not [one for one in command.processes() if one.status() != psutil.STATUS_ZOMBIE]
