"""The table of faults, and what injects each: a function of faults.py, or a test of the suite that does so for real."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from command import ROOT

from chaos import faults
from chaos.report import CaseResult, Injection, random_steps
from chaos.training import NotStarted, Place, end_commands

TEST_SECONDS = 1200.0


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        inject: a function of faults.py; None where `tests` do it.
        times: how often; 0: as often as asked for, since it depends on the moment.
        tests: pytest's names of tests, which count as one injection.
    """

    fault: str
    inject: faults.Inject | None = None
    times: int = 1
    tests: Sequence[str] = ()


CHECKPOINT, TRACKING = "tests/pipeline/train/test_checkpoint.py", "tests/pipeline/test_tracking_faults.py"
PREPARE, CORPUS = "tests/pipeline/data/test_prepare.py", "tests/pipeline/data/test_corpus.py"
WORKSPACE, SUBMIT = "tests/jobs/test_workspace.py", "tests/jobs/test_submit.py"

CASES = {
    1: Case("SIGKILL to a worker in a step", faults.kill_worker, 0),
    2: Case("SIGKILL to a worker while a checkpoint is written", faults.kill_in_checkpoint, 0),
    3: Case("SIGKILL between a checkpoint's name and the pointer", faults.kill_before_pointer, 0),
    4: Case("SIGKILL to a node's raylet", faults.kill_node, 0),
    5: Case("SIGKILL to the command itself", faults.kill_driver, 0),
    6: Case("SIGKILL to the head node", faults.kill_head, 0),
    7: Case("Workers killed until no retry is left", faults.kill_until_spent),
    8: Case("A checkpoint's file truncated", faults.truncate, 0),
    9: Case("A byte of a checkpoint's file flipped", faults.flip, 0),
    10: Case(
        "The pointer `latest` deleted or emptied",
        tests=[
            f"{CHECKPOINT}::test_the_pointer_is_not_trusted",
            f"{CHECKPOINT}::test_a_pointer_without_checkpoints_is_refused",
        ],
    ),
    11: Case("The disk full at a checkpoint", faults.fill_disk),
    12: Case(
        "The disk full while shards are written",
        tests=[f"{PREPARE}::test_a_full_disk_leaves_nothing_half_done_and_a_rerun_is_identical"],
    ),
    13: Case("MLflow down for 30 s in a training", faults.stop_mlflow, 0),
    14: Case("MLflow down at the start, or from then to the end", faults.mlflow_away, 2),
    15: Case("MLflow answers 500, or after 30 s", faults.mlflow_fails, 2),
    16: Case("NaN in a gradient, once and for ever", faults.spoil_gradient),
    17: Case(
        "fp16 overflows",
        tests=["tests/pipeline/train/test_engine.py::test_fp16_overflow_halves_the_scale_until_it_can_not"],
    ),
    18: Case(
        "Sides of unequal numbers of lines",
        tests=[
            f"{PREPARE}::test_unequal_sides_are_refused_before_anything_is_written",
            f"{CORPUS}::test_unequal_line_counts_are_refused_with_both_counts",
        ],
    ),
    19: Case(
        "Invalid UTF-8, NUL bytes",
        tests=[
            f"{PREPARE}::test_lines_that_are_no_text_stop_it_or_are_dropped_and_counted",
            f"{CORPUS}::test_what_is_no_text_is_refused_with_file_and_line",
        ],
    ),
    20: Case(
        "U+2028, U+0085, VT, FF and lone CR in lines",
        tests=[f"{PREPARE}::test_one_line_is_one_line_feed_through_all_stages"],
    ),
    21: Case(
        "CRLF on one side, a byte order mark",
        tests=[f"{PREPARE}::test_carriage_returns_and_a_byte_order_mark_change_no_shard"],
    ),
    22: Case(
        "Empty lines, lines of 10 MB",
        tests=[
            f"{PREPARE}::test_empty_and_huge_lines_are_dropped_from_train_and_counted",
            f"{CORPUS}::test_long_lines_are_never_held_in_memory",
        ],
    ),
    23: Case(
        "Another tokenizer than the checkpoint's",
        tests=[f"{WORKSPACE}::test_a_tokenizer_that_was_exchanged_is_refused"],
    ),
    24: Case(
        "A typo or a wrong type in the settings",
        tests=[
            "tests/jobs/test_config.py::test_a_mistake_is_refused_by_its_full_name",
            "tests/jobs/test_config.py::test_mistakes_are_refused_in_seconds_before_ray_is_imported",
        ],
    ),
    25: Case(
        "Other settings at a resume",
        tests=[
            f"{WORKSPACE}::test_what_would_make_another_run_is_refused_by_key",
            f"{WORKSPACE}::test_a_resumed_run_keeps_its_settings_but_for_what_may_change",
        ],
    ),
    26: Case("Two commands on one run", tests=[f"{WORKSPACE}::test_only_its_owner_changes_a_runs_settings"]),
    27: Case("SIGSTOP to a worker", faults.hang_worker, 0),
    28: Case("SIGTERM to the command", faults.terminate, 0),
    29: Case("A node drains", faults.drain_node, 0),
    30: Case("A worker takes 8 GB of memory more", faults.balloon),
    31: Case("The clock jumps an hour ahead, then behind", faults.jump_clock),
    32: Case("2, then 1, then 3 workers", faults.change_workers, 0),
    33: Case(
        "A password in an address, a token",
        tests=[
            f"{TRACKING}::test_no_password_is_in_the_run_the_log_or_the_store",
            f"{SUBMIT}::test_no_secret_is_anywhere",
        ],
    ),
    34: Case(
        "A checkpoint with a malicious pickle", tests=[f"{CHECKPOINT}::test_a_pickle_is_refused_and_does_not_run"]
    ),
    35: Case(
        "A request to the cluster without its token, or with another",
        tests=[
            f"{SUBMIT}::test_only_loopback_listens_and_only_with_a_token",
            "tests/jobs/test_client.py::test_another_token_is_explained",
        ],
    ),
}


def times_of(number: int, times: int) -> int:
    """How often a case is injected where `times` are asked for."""
    return CASES[number].times or times


def run_case(place: Place, number: int, times: int, tell: Callable[[CaseResult], None]) -> CaseResult:
    """Injects a case as often as asked for; `tell` is called after each injection."""
    case, wanted = CASES[number], times_of(number, times)
    injections: list[Injection] = []
    not_run = ""
    last = place.steps - place.steps // 10  # a later fault would find the training at its end
    steps = random_steps(place.rng, wanted, 1, last)
    for i in range(wanted):
        try:
            injections.append(_inject(case, place, i, steps[i]))
        except faults.NotPossible as error:
            not_run = str(error)
            break
        except Exception as error:
            injections.append(Injection(f"{'' if isinstance(error, AssertionError) else type(error).__name__} {error}"))
        finally:
            end_commands(place)
        tell(CaseResult(number, case.fault, wanted, tuple(injections)))
    return CaseResult(number, case.fault, wanted, tuple(injections), not_run)


def _inject(case: Case, place: Place, i: int, step: int) -> Injection:
    """Once more, up to twice, where Ray did not come up before the fault: a busy machine is none."""
    if case.inject is None:
        return run_tests(case.tests)
    for _ in range(2):
        try:
            return case.inject(place, i, step)
        except NotStarted:
            end_commands(place)
    return case.inject(place, i, step)


def run_tests(tests: Sequence[str]) -> Injection:
    """Runs tests of the suite; one that is skipped injects nothing, and so is not survived."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=TEST_SECONDS)
        except BaseException:
            process.send_signal(signal.SIGINT)  # so that the tests end what they started
            time.sleep(0.1)
            try:
                process.wait(120)
            finally:
                process.kill()
            raise
    return verdict_of_tests(process.returncode, said)


def verdict_of_tests(code: int, said: str) -> Injection:
    """What pytest's exit code and last line come to."""
    lines = said.strip().splitlines() or [""]
    if code or not re.search(r"\b[1-9]\d* passed", lines[-1]) or re.search(r"skipped|deselected|xfailed", lines[-1]):
        return Injection(f"pytest ended with {code}: {' '.join(lines[-3:])}")
    return Injection()
