"""What a worker's process is before it is one: it gets its environment, without the half second of importing Ray."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import setup_worker


@pytest.mark.parametrize(
    ("value", "expected", "has_ray"),
    [("a 'b' \"c\"\n", "a 'b' \"c\"\n", False), ("<$TRANSLOOM_TEST>", "<there>", True)],  # Ray's way with variables
)
def test_the_worker_has_the_environment_that_its_work_asked_for(monkeypatch, value, expected, has_ray):
    monkeypatch.setenv("TRANSLOOM_TEST", "there")
    context = {"env_vars": {"GIVEN": value}, "py_executable": sys.executable, "command_prefix": [], "java_jars": []}
    imported = [sys.executable, "-X", "importtime", Path(setup_worker.__file__)]
    worker = ["-c", "import os, sys; print(repr(os.environ['GIVEN']), sys.argv[1:])", "--node=1", "two words"]
    words = [f"--serialized-runtime-env-context={json.dumps(context)}", "--language=PYTHON"]
    done = subprocess.run([*imported, *worker, *words], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == f"{expected!r} ['--node=1', 'two words']"
    assert ("ray._raylet" in done.stderr) == has_ray
