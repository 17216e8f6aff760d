"""What Ray runs for each process of its workers before the worker itself, here in place of Ray's own script.

Both set the environment that the work asks for, and become the worker. Ray's imports all of Ray for it, half a second
and as much CPU time a process. It is left whatever is more than variables and a Python of the same kind.
"""

import argparse
import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context")
    parser.add_argument("--language")
    known, command = parser.parse_known_args()
    context = json.loads(known.serialized_runtime_env_context or "{}")
    variables, python = context.pop("env_vars", {}), context.pop("py_executable", sys.executable)
    is_plain = not any(context.values()) and known.language == "PYTHON" and Path(python).is_absolute()
    if is_plain and not any("$" in value for value in variables.values()):
        os.environ.update(variables)
        os.execv(python, [python, *command])
    ray = importlib.util.find_spec("ray")
    assert ray is not None and ray.origin is not None
    runpy.run_path(str(Path(ray.origin).parent / "_private" / "workers" / "setup_worker.py"), run_name="__main__")


if __name__ == "__main__":
    main()
