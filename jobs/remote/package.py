"""What goes to the cluster with a job: the project's code, the job's resolved configuration, and nothing else."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transloom.jobs.config.compose import to_yaml
from transloom.jobs.config.schema import Config
from transloom.pipeline.files import read_json
from transloom.pipeline.run_folder import CONFIG_FILE
from transloom.pipeline.search_path import ROOT as SEARCH_ROOT

ROOT = Path(__file__).resolve().parents[2]
# A list of what goes along, not of what stays behind: so no .env, token, corpus or output can slip through.
# In a checkout transloom/ has links to these folders, which stand beside it there.
CONTENTS = {"conf": ".yaml", "jobs": ".py", "model": ".py", "pipeline": ".py"}
SUBMISSION_FILE = "submission.json"


@contextmanager
def packed(config: Config, about: Mapping[str, Any]) -> Iterator[Path]:
    """A folder with all that a job needs, as long as the block runs.

    Args:
        about: what the job is told of its submission; `submission` finds it there.
    """
    with TemporaryDirectory(prefix="transloom-job-") as name:
        folder = Path(name)
        for part, suffix in CONTENTS.items():
            for file in sorted((ROOT / part).rglob(f"*{suffix}")):
                if file.is_file() and not any(one.startswith(".") for one in file.relative_to(ROOT).parts):
                    target = folder / "transloom" / file.relative_to(ROOT)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
        for name in ("__init__.py", "__main__.py"):
            shutil.copyfile(Path(SEARCH_ROOT, "transloom", name), folder / "transloom" / name)
        (folder / CONFIG_FILE).write_bytes(to_yaml(config).encode())
        (folder / SUBMISSION_FILE).write_bytes(json.dumps(dict(about), indent=2).encode())
        yield folder


def submission() -> dict[str, Any]:
    """What `packed` was told, in a job that was submitted; else nothing."""
    file = Path(SEARCH_ROOT) / SUBMISSION_FILE
    return read_json(file) if file.exists() else {}
