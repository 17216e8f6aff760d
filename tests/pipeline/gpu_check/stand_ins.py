"""Parts of a check that are no more than how they end: python stand_ins.py <name> <file for the record>."""

import os
import subprocess
import sys
import time
from pathlib import Path

from transloom.pipeline.errors import UserError
from transloom.pipeline.gpu_check.outcome import Outcome, Skipped, Target
from transloom.pipeline.gpu_check.runner import Part, work


def passes() -> Outcome:
    return Outcome("all well", {"answer": 42}, [Target("speed", 1.0, 2.0, is_required=False)])


def misses() -> Outcome:
    return Outcome("half well", {"answer": 41}, [Target("distance", 0.5, 0.1, at_least=False)])


def skips() -> Outcome:
    raise Skipped("no GPU")


def breaks() -> Outcome:
    raise ZeroDivisionError("a bug")


def refuses() -> Outcome:
    raise UserError("the disk is full")


def dies() -> Outcome:
    print("a last word", flush=True)
    os._exit(3)


lingers = passes  # and then does not end


def hangs() -> Outcome:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(os.getpid(), child.pid, flush=True)
    time.sleep(600)
    return Outcome("")


if __name__ == "__main__":
    name = sys.argv[1]
    work(Part(name, name), globals()[name], Path(sys.argv[2]))
    if name == "lingers":
        time.sleep(600)
