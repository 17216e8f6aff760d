"""Where Python looks for the package transloom: not in the current folder, which may have a module of that name."""

import os
from pathlib import Path

import transloom

ROOT = str(Path(transloom.__file__ or "").absolute().parents[1])  # the folder that transloom/ lies in


def search_environment() -> dict[str, str]:
    """Environment variables that make a Python process look in ROOT first, and not in its current folder."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != ROOT]
    return {"PYTHONPATH": os.pathsep.join([ROOT, *others]), "PYTHONSAFEPATH": "1"}
