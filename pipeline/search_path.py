"""Where Python looks for the project's packages: not in the current folder, which may have a model.py of the user's."""

import os
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)  # the folder that jobs/, pipeline/ and model/ lie in


def search_environment() -> dict[str, str]:
    """Environment variables that make a Python process look in ROOT first, and not in its current folder."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != ROOT]
    return {"PYTHONPATH": os.pathsep.join([ROOT, *others]), "PYTHONSAFEPATH": "1"}
