"""SIGTERM in a process of its own: what it ends, and what it only asks for."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from transloom.jobs.config.schema import Config
from transloom.jobs.runs.stopping import Terminated
from transloom.jobs.runs.workspace import Run
from transloom.jobs.training import attempts, train
from transloom.pipeline.run_folder import STOP_FILE
from transloom.pipeline.train.optimizer import Precision, PrecisionConfig

ROOT = Path(__file__).resolve().parents[2]

WAITING = """
import time
from transloom.jobs.runs.stopping import Terminated, ended_by_sigterm, on_sigterm

def wait():
    print("ready", flush=True)
    time.sleep(600)
"""


def ended(code: str, *signals: signal.Signals) -> str:
    """What a process says that runs the code, and gets a signal each time it says "ready"."""
    command = [sys.executable, "-c", WAITING + code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number in signals:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
        said = process.stdout.read()
        assert process.wait(120) == 0
    return said


BLOCK = """
try:
    with ended_by_sigterm():
        wait()
except Terminated:
    print("terminated")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, "terminated\n"), (signal.SIGINT, "interrupted\n")])
def test_sigterm_is_told_from_ctrl_c(number, said):
    assert ended(BLOCK, number) == said


ASKED = """
asked = []
try:
    with ended_by_sigterm():
        with on_sigterm(lambda: asked.append(1)):
            print("ready", flush=True)
            while not asked:
                time.sleep(0.01)
            wait()
except Terminated:
    print("terminated", asked)
"""


@pytest.mark.parametrize("seconds", [0.0, 600.0])
def test_the_first_sigterm_asks_and_only_a_later_one_ends(seconds):
    """Within the time in which a second one is the same, only the limit ends the block."""
    code = f"import transloom.jobs.runs.stopping as s; s.SAME_SECONDS = {seconds}\n"
    said = ended(code + ASKED.replace("1))", "1), limit=4.0)"), signal.SIGTERM, signal.SIGTERM)
    assert said == "terminated [1]\n"


SWALLOWED = """
try:
    with ended_by_sigterm() as came:
        try:
            wait()
        except BaseException:
            print(came())
            raise ImportError("partially initialized module")
except Terminated:
    print("terminated")
"""


def test_an_interrupted_import_is_no_missing_module():
    assert ended(SWALLOWED, signal.SIGTERM) == "True\nterminated\n"


STARTING = """
import threading, os, signal
from transloom.jobs.config.schema import ClusterConfig
from transloom.jobs.ray_cluster.session import ray_session

def send():
    time.sleep({seconds})
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=send, daemon=True).start()
try:
    with ray_session(ClusterConfig()):
        wait()
except Terminated:
    print("terminated")
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [4, 6, 7, 8, 9, 12])
def test_sigterm_while_ray_starts(seconds):
    assert ended(STARTING.replace("{seconds}", str(seconds))).removeprefix("ready\n") == "terminated\n"


HUNG = """
try:
    with ended_by_sigterm():
        with on_sigterm(lambda: print("asked", flush=True), limit=0.5):
            wait()
except Terminated:
    print("terminated")
"""


def test_what_does_not_end_within_the_limit_is_ended():
    assert ended(HUNG, signal.SIGTERM) == "asked\nterminated\n"


def test_a_sigterm_while_the_workers_start_is_not_lost(tmp_path, monkeypatch):
    """It comes between the handler's arming and the workers' start, where the file that tells them was emptied once."""
    for check in ("refuse_too_long", "refuse_unspaced_targets"):
        monkeypatch.setattr(train, check, lambda run: None)

    class Trainer:
        def fit(self):
            os.kill(os.getpid(), signal.SIGTERM)
            assert (tmp_path / STOP_FILE).read_bytes() == b"SIGTERM\n"
            return SimpleNamespace(return_value={"reason": "stopped"})

    monkeypatch.setattr(attempts, "spare_cpus", lambda cluster: 0)
    monkeypatch.setattr(attempts, "_workers_for_now", lambda run, room_by: 1)
    monkeypatch.setattr(attempts, "make_trainer", lambda *_, **__: Trainer())
    (tmp_path / STOP_FILE).write_bytes(b"SIGTERM\n")  # of an attempt before, which does not count
    with pytest.raises(Terminated, match="before its first step"):
        train.train_stage(Run("mine", tmp_path, Config(precision=PrecisionConfig(Precision.fp32))))


def test_sigterm_ends_a_command_while_ray_starts(tmp_path):
    """Ray is started by what stands here in its place, as long as it is not up."""
    code = """
import sys
from transloom.jobs.ray_cluster import session as cluster
from transloom.jobs.config.schema import ClusterConfig
cluster._start_ray = lambda *_: wait()
try:
    with cluster.ray_session(ClusterConfig()):
        pass
except Terminated:
    print("terminated")
"""
    assert ended(code, signal.SIGTERM) == "terminated\n"
