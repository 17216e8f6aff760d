"""The spool: what a run reports survives kills, full disks and resumes, once each."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json
from transloom.pipeline.secrets import redacted
from transloom.pipeline.tracking.spool import TRAINING_SPOOL, MetricLog, SpoolReader, read_points
from transloom.pipeline.tracking.tracker import MAX_PARAM_CHARS, SpoolTracker, as_params


def keys_and_steps(run_folder: Path) -> list[tuple[str, int]]:
    return [(point.key, point.step) for point in read_points(run_folder)]


def test_points_come_back_in_order_with_their_values(tmp_path: Path):
    log = MetricLog(tmp_path / "metrics.jsonl")
    before = time.time_ns() // 1_000_000
    log.append({"train/loss": 4.5, "train/grad_norm": 1.25}, 10)
    log.append({"train/loss": float("nan")}, 20)
    points = read_points(tmp_path)
    assert [(point.key, point.step) for point in points] == [
        ("train/loss", 10),
        ("train/grad_norm", 10),
        ("train/loss", 20),
    ]
    assert [point.value for point in points[:2]] == [4.5, 1.25]
    assert points[2].value != points[2].value
    assert before <= points[0].time_ms <= time.time_ns() // 1_000_000


def test_a_step_that_is_repeated_after_a_resume_is_logged_once(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    MetricLog(path).append({"train/loss": 4.0}, 1)
    resumed = MetricLog(path)
    resumed.append({"train/loss": 4.1, "validation/bleu": 10.0}, 1)
    resumed.append({"train/loss": 3.9}, 2)
    resumed.append({"train/loss": 3.9}, 2)
    assert [(p.key, p.step, p.value) for p in read_points(tmp_path)] == [
        ("train/loss", 1, 4.0),
        ("validation/bleu", 1, 10.0),
        ("train/loss", 2, 3.9),
    ]


def test_a_score_measured_anew_is_logged_where_it_differs(tmp_path: Path):
    for score in (30.0, 30.0, 31.0):
        MetricLog(tmp_path / "driver.jsonl", keep_changes=True).append({"test/bleu": score}, 5)
    assert [point.value for point in read_points(tmp_path)] == [30.0, 31.0]


def test_a_torn_last_line_is_left_out_and_does_not_spoil_the_next(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    MetricLog(path).append({"train/loss": 4.0}, 1)
    MetricLog(path).append({"train/loss": 3.0}, 2)
    path.write_bytes(path.read_bytes()[:-7])
    assert keys_and_steps(tmp_path) == [("train/loss", 1)]
    MetricLog(path).append({"train/loss": 3.0}, 2)
    assert keys_and_steps(tmp_path) == [("train/loss", 1), ("train/loss", 2)]


def test_sigkill_loses_no_line_that_was_written(tmp_path: Path):
    program = (
        "import sys, itertools; from pathlib import Path; from transloom.pipeline.tracking.spool import MetricLog\n"
        f"log = MetricLog(Path({str(tmp_path / 'metrics.jsonl')!r}))\n"
        "for step in itertools.count():\n"
        "    log.append({'train/loss': 1.0 / (step + 1), 'train/learning_rate': 0.1}, step)\n"
        "    print(step, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = -1
    while acknowledged < 200:
        acknowledged = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    acknowledged = max([acknowledged, *map(int, writer.stdout.read().split("\n")[:-1])])
    writer.wait()
    steps = sorted({point.step for point in read_points(tmp_path)})
    assert steps == list(range(len(steps)))
    assert acknowledged in (len(steps) - 1, len(steps) - 2)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_does_not_take_is_kept_and_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.append({"train/loss": 1.0}, 1)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with limited(len(before) + 20):  # in a line's midst
        for step in (2, 3, 4):
            log.append({"train/loss": 1.0}, step)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
        with pytest.raises(UserError, match=r"metrics\.jsonl can't be written"):
            log.flush()
    assert len(caplog.records) == 1
    assert "metrics.jsonl" in caplog.text
    log.append({"train/loss": 1.0}, 5)
    assert keys_and_steps(tmp_path) == [("train/loss", step) for step in (1, 2, 3, 4, 5)]
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_a_line_that_lacks_nothing_but_its_end_is_not_written_twice(tmp_path: Path):
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.append({"train/loss": 1.0}, 1)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with limited(2 * size - 1):
        log.append({"train/loss": 1.0}, 2)
    log.close()
    assert keys_and_steps(tmp_path) == [("train/loss", 1), ("train/loss", 2)]


def test_closing_on_a_full_disk_says_so(tmp_path: Path):
    tracker = SpoolTracker(tmp_path)
    with limited(20):
        tracker.log_metrics({"train/loss": 1.0}, 1)
        tracker.log_table({"step": [1]}, "samples")
        with pytest.raises(UserError, match="can't be written"):
            tracker.flush()
    tracker.close()
    assert keys_and_steps(tmp_path) == [("train/loss", 1)]
    assert read_json(tmp_path / "tables" / "samples.json")["data"] == [[1]]


def test_a_reader_goes_on_where_it_acknowledged(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    log.append({"a": 1.0}, 1)
    log.append({"a": 2.0}, 2)
    first, offset = next(SpoolReader(path).pending())
    assert first["step"] == 1
    SpoolReader(path).acknowledge(offset)
    assert [record["step"] for record, _ in SpoolReader(path).pending()] == [2]
    (tmp_path / "metrics.uploaded").write_text("torn{")
    assert [record["step"] for record, _ in SpoolReader(path).pending()] == [1, 2]


def test_a_reader_waits_for_the_end_of_a_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "metrics": {"a": 1}}\n{"step": 2, "met')
    reader = SpoolReader(path)
    assert [record["step"] for record, _ in reader.pending()] == [1]
    path.write_bytes(path.read_bytes() + b'rics": {"a": 2}}\n')
    assert [record["step"] for record, _ in reader.pending()] == [1, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:canary@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://user:can/a@ry@host/db", "postgresql://***@host/db"),
        ("https://canary@host", "https://***@host"),
        ("failed: postgresql+psycopg://u:canary@h/db, again", "failed: postgresql+psycopg://***@h/db, again"),
        ("http://host/?token=canary&page=2", "http://host/?token=***&page=2"),
        ("s3://bucket/?X-Amz-Signature=canary", "s3://bucket/?X-Amz-Signature=***"),
        ("http://host:5000/a", "http://host:5000/a"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("write to me@example.org", "write to me@example.org"),
    ],
)
def test_secrets_are_taken_out_of_addresses(text: str, expected: str):
    assert redacted(text) == expected


def test_what_is_written_to_the_spool_holds_no_secret(tmp_path: Path):
    tracker = SpoolTracker(tmp_path)
    secret = "http://user:canary@host"
    tracker.log_params({"tracking": {"uri": secret}, "list": [secret]})
    tracker.set_tags({"uri": secret})
    tracker.log_table({"uri": [secret]}, "table")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert not [path for path in files if b"canary" in path.read_bytes()]
    assert redacted({"a": [1, None, secret]}) == {"a": [1, None, "http://***@host"]}


def test_params_are_flattened_and_long_ones_cut_with_a_note():
    flat = as_params({"model": {"d_model": 512, "empty": {}}, "name": None, "long": "x" * 600})
    assert flat["model.d_model"] == "512"
    assert flat["model.empty"] == "{}"
    assert flat["name"] == "None"
    assert len(flat["long"]) == MAX_PARAM_CHARS
    assert flat["long"].endswith("(cut, 600 characters)")


@pytest.mark.parametrize("record", ['{"metrics": 5}', '{"metrics": {"a": 1}}', '{"metrics": {"a": 1}, "step": [1]}'])
def test_a_spool_with_records_that_are_none_is_gone_on_with(tmp_path: Path, record: str) -> None:
    (tmp_path / TRAINING_SPOOL).write_text(f"{record}\n")
    spool = MetricLog(tmp_path / TRAINING_SPOOL)
    assert spool.append({"b": 2.0}, step=1)
    spool.close()
    assert [(point.key, point.value) for point in read_points(tmp_path)] == [("b", 2.0)]


def test_a_secret_at_the_place_of_the_cut_is_no_param() -> None:
    assert "canary" not in as_params({"long": f"{'x' * 450} http://u:{'canary' * 20}@host"})["long"]


def test_rows_of_a_table_are_added_once(tmp_path: Path):
    for step in (100, 200, 200):
        SpoolTracker(tmp_path).log_table({"step": [step, step], "translation": ["ein Hund", "zwei Hunde"]}, "samples")
    table = json.loads((tmp_path / "tables" / "samples.json").read_bytes())
    assert table["columns"] == ["step", "translation"]
    assert table["data"] == [[step, text] for step in (100, 200) for text in ("ein Hund", "zwei Hunde")]
    with pytest.raises(ValueError, match="columns"):
        SpoolTracker(tmp_path).log_table({"other": [1]}, "samples")


def test_paths_in_the_run_folder_are_kept_relative_so_that_it_can_be_moved(tmp_path: Path):
    (tmp_path / "run").mkdir()
    SpoolTracker(tmp_path / "run").log_artifact(tmp_path / "run" / "config.yaml")
    SpoolTracker(tmp_path / "run").log_artifact(tmp_path / "elsewhere.txt")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["config.yaml", str(tmp_path / "elsewhere.txt")]


def test_spool_and_tracker_need_no_mlflow():
    check = "import sys, pipeline.tracking.tracker, pipeline.tracking.uploader; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], env=os.environ | {"PYTHONPATH": os.getcwd()}).returncode == 0
