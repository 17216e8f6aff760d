"""`transloom ui` for real: a server on loopback that answers, and ends with its process."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from transloom.jobs.commands import ui
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import write_json

ROOT = Path(__file__).resolve().parents[2]


def test_without_runs_it_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="there are no runs yet"):
        ui.main([f"output_dir={tmp_path}"])


def test_a_port_in_use_is_passed_over():
    with socket.socket() as taken:
        taken.bind((ui.HOST, 0))
        taken.listen()
        first = taken.getsockname()[1]
        assert ui._free_port(range(first, first + 10)) > first
        with pytest.raises(UserError, match="in use"):
            ui._free_port(range(first, first + 1))


def test_the_newest_run_of_the_store_is_named(tmp_path):
    for i, (name, uri) in enumerate((("old", "sqlite:////a"), ("new", "sqlite:////a"), ("elsewhere", "sqlite:////b"))):
        file = tmp_path / "runs" / name / "run.json"
        file.parent.mkdir(parents=True)
        write_json(file, {"run_name": name, "run_id": f"id-{name}", "experiment_id": "1", "tracking_uri": uri})
        os.utime(file, (i, i))
    assert (ui._newest_run(tmp_path, "sqlite:////a") or {})["run_id"] == "id-new"
    assert ui._newest_run(tmp_path / "nowhere", "sqlite:////a") is None


@pytest.mark.slow
def test_it_serves_on_loopback_until_it_is_ended(tmp_path):
    sqlite3.connect(tmp_path / "mlflow.db").close()  # an empty store: MLflow makes its tables
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "transloom.jobs", "ui", f"output_dir={tmp_path}"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[2]
            assert address.startswith("http://127.0.0.1:")
            assert _answer(f"{address}/health", seconds=300) == b"OK"
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=120) in (0, -signal.SIGTERM)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{address}/health", timeout=2)


def _answer(url: str, seconds: float) -> bytes:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(url, timeout=30).read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
