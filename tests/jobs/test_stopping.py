"""SIGTERM in a process of its own: what it ends, and what it only asks for."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

WAITING = """
import time
from jobs.stopping import Terminated, ended_by_sigterm, on_sigterm

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


def test_the_first_sigterm_asks_and_the_second_ends():
    assert ended(ASKED, signal.SIGTERM, signal.SIGTERM) == "terminated [1]\n"
