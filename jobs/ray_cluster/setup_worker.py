"""What a raylet starts in a worker's place: sets the variables of the task's runtime environment, and becomes the
worker. Ray's own setup_worker.py does the same, but imports ray first, for seconds of CPU, and the worker imports ray
once more. This file needs neither the project nor any package:

`python setup_worker.py <the worker's script and its words> --serialized-runtime-env-context=<JSON> --language=PYTHON`
"""

import importlib.util
import json
import os
import re
import shlex
import sys
from pathlib import Path

SETTINGS = ("--serialized-runtime-env-context", "--language")


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words if word.partition("=")[0] in SETTINGS)
    if given.get("--language") != "PYTHON":
        _start_as_ray_does(words)
    context = json.loads(given.get("--serialized-runtime-env-context") or "{}")
    for name, value in (context.get("env_vars") or {}).items():
        # ${X} is the variable as it is now, and nothing where there is none.
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))
    script, *rest = [word for word in words if word.partition("=")[0] not in SETTINGS]
    script = context.get("override_worker_entrypoint") or script
    interpreter = context.get("py_executable") or sys.executable  # may be several words
    command = [*(context.get("command_prefix") or []), "exec", interpreter, *map(shlex.quote, (script, *rest))]
    os.execvp("bash", ["bash", "-c", " ".join(command)])


def _start_as_ray_does(words: list[str]) -> None:
    ray = importlib.util.find_spec("ray")
    assert ray and ray.origin
    own = Path(ray.origin).parent / "_private" / "workers" / "setup_worker.py"
    os.execv(sys.executable, [sys.executable, str(own), *words])


if __name__ == "__main__":
    main(sys.argv[1:])
