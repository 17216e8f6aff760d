"""What tests share: the folder of real text, which is never part of the repository, threads, and Ctrl-C."""

import os
import signal
from pathlib import Path

import pytest

# A shell that starts the tests in the background has Ctrl-C ignored, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tensors are tiny: threads would only wait for each other, and for those of the tests that run at the same time.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of real corpora: TRANSLOOM_CORPORA, else ../shared/corpora beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "corpora"
    folder = Path(os.environ.get("TRANSLOOM_CORPORA") or beside)
    if not folder.is_dir():
        pytest.skip(f"there is no real text in {folder}; set TRANSLOOM_CORPORA to a folder of corpora")
    return folder
