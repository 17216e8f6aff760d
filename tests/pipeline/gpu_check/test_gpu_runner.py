"""Whatever becomes of a part, the others run, and what was found is kept."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.gpu_check.runner import FAILED, PASSED, SKIPPED, Part, Record, as_report, run_parts

ROOT = Path(__file__).resolve().parents[3]
STAND_INS = Path(__file__).with_name("stand_ins.py")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def command(part: Part, answer: Path) -> list[str]:
    return [sys.executable, str(STAND_INS), part.name, str(answer)]


def run(parts: list[Part], folder: Path, budget: float = 540.0) -> dict[str, Record]:
    records = run_parts(parts, command, folder, lambda *_: None, budget)
    assert [record.name for record in records] == [part.name for part in parts]
    return {record.name: record for record in records}


def parts(*names: str) -> list[Part]:
    return [Part(name, name) for name in names]


def test_no_part_ends_another(tmp_path: Path) -> None:
    found = run(parts("breaks", "dies", "misses", "refuses", "skips", "passes"), tmp_path)
    statuses = {name: record.status for name, record in found.items()}
    assert statuses == {
        "breaks": FAILED,
        "dies": FAILED,
        "misses": FAILED,
        "refuses": FAILED,
        "skips": SKIPPED,
        "passes": PASSED,
    }
    assert found["breaks"].why == "ZeroDivisionError: a bug"
    assert "Traceback" in (tmp_path / "breaks.log").read_text()
    assert found["dies"].why == "exit code 3; it said: a last word"
    assert found["refuses"].why == "the disk is full"
    assert found["skips"].why == "no GPU"


def test_a_missed_target_fails_and_keeps_its_figures_but_one_of_speed_does_not(tmp_path: Path) -> None:
    found = run(parts("misses", "passes"), tmp_path)
    assert found["misses"].why == "distance is 0.5, not at most 0.1"
    assert found["misses"].figures == {"answer": 41}
    assert found["passes"].status == PASSED
    assert [target["is_met"] for target in found["passes"].targets] == [False]


def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    found = run([Part("hangs", "", limit=2.0), *parts("passes")], tmp_path)
    assert found["hangs"].status == FAILED and "its limit" in found["hangs"].why
    assert found["passes"].status == PASSED
    grandchild = int((tmp_path / "hangs.log").read_text().split()[1])
    with suppress(psutil.NoSuchProcess):
        psutil.Process(grandchild).wait(30)
    assert not psutil.pid_exists(grandchild)


def test_what_a_part_found_counts_even_if_its_process_does_not_end(tmp_path: Path) -> None:
    found = run([Part("lingers", "", limit=1.5)], tmp_path)
    assert found["lingers"].status == PASSED and found["lingers"].figures == {"answer": 42}


def test_what_there_is_no_time_for_is_skipped_and_what_takes_less_still_runs(tmp_path: Path) -> None:
    found = run([Part("breaks", "", seconds=50.0), Part("passes", "", seconds=5.0)], tmp_path, budget=30.0)
    assert found["breaks"].status == SKIPPED and "50 s" in found["breaks"].why
    assert found["passes"].status == PASSED


def test_a_part_never_takes_more_than_is_left(tmp_path: Path) -> None:
    started_at = time.monotonic()
    found = run([Part("hangs", "", seconds=1.0, limit=600.0)], tmp_path, budget=2.0)
    assert found["hangs"].status == FAILED and time.monotonic() - started_at < 60


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    found = run([Part("passes", "", ("json", "no_such_package", "none_either.inside"))], tmp_path)
    assert found["passes"].status == SKIPPED
    assert found["passes"].why == "not installed: no_such_package, none_either.inside"


def test_a_part_is_skipped_with_the_one_that_it_needs_but_outlives_its_failure(tmp_path: Path) -> None:
    found = run(
        [*parts("skips", "breaks"), Part("passes", "", after="breaks"), Part("dies", "", after="skips")], tmp_path
    )
    assert found["passes"].status == PASSED
    assert (found["dies"].status, found["dies"].why) == (SKIPPED, "no GPU")


def test_every_record_is_told_at_once(tmp_path: Path) -> None:
    told = []

    def tell(records: list[Record], newest: Record) -> None:
        write_json(tmp_path / "report.json", as_report(records, {"device": "cpu"}))
        told.append((newest.name, len(read_json(tmp_path / "report.json")["parts"])))

    run_parts(parts("passes", "breaks"), command, tmp_path, tell)
    assert told == [("passes", 1), ("breaks", 2)]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["device"] == "cpu" and report["parts"][0]["figures"] == {"answer": 42}


def test_a_kill_loses_nothing_that_was_found(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from transloom.pipeline.files import write_json\n"
        "from transloom.pipeline.gpu_check.runner import Part, as_report, run_parts\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "tell = lambda records, newest: write_json(folder / 'report.json', as_report(records, {}))\n"
        f"command = lambda part, answer: [sys.executable, {str(STAND_INS)!r}, part.name, str(answer)]\n"
        "run_parts([Part('passes', ''), Part('hangs', '', limit=600)], command, folder, tell)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    log = tmp_path / "hangs.log"
    while not (log.exists() and log.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.killpg(int(log.read_text().split()[0]), signal.SIGKILL)  # nobody is left to end it
    assert [part["name"] for part in read_json(tmp_path / "report.json")["parts"]] == ["passes"]
