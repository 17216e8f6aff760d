"""What tests share: the folder of real text, which is never part of the repository, a server of S3, threads, Ctrl-C."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from s3_server import S3Server, use_environment

# A shell that starts the tests in the background has Ctrl-C ignored, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tensors are tiny: threads would only wait for each other, and for those of the tests that run at the same time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# On a busy machine an example may take seconds to draw.
settings.register_profile("busy", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("busy")

# Ray's limit of 30 s for the start of its processes is too short on a busy machine.
for limit in ("RAY_raylet_start_wait_time_s", "RAY_gcs_server_port_wait_time_s"):
    os.environ.setdefault(limit, "120")


# The longest first: a file that takes minutes and begins last would end alone, with the other process idle.
LONGEST = (
    "/test_submit",  # its workers are those of a cluster, which start anew
    "/test_pipeline",
    "/test_chaos",
    "/test_sweep",
    "/test_bench_text",
    "/test_bench",
    "/test_race",
    "/test_slurm",
    "/test_deepspeed",
    "/test_task_laws",
    "/test_tracking_faults",
    "/test_adapt",
    "/test_export",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((i for i, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file go to one process, for they share its fixtures; those of all test_pipeline*.py go to one, for
    they look at the run `whole`, which takes a minute to make; language models and classifiers have others."""
    from xdist.scheduler import LoadFileScheduling

    class OneRunInOneProcess(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            is_of_whole = "/test_pipeline" in nodeid and not re.search("language_model|classification", nodeid)
            return "whole" if is_of_whole else super()._split_scope(nodeid)

    return OneRunInOneProcess(config, log)


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of real corpora: TRANSLOOM_CORPORA, else ../shared/corpora beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "corpora"
    folder = Path(os.environ.get("TRANSLOOM_CORPORA") or beside)
    if not folder.is_dir():
        pytest.skip(f"there is no real text in {folder}; set TRANSLOOM_CORPORA to a folder of corpora")
    return folder


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Started when the first test asks for it."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    server = S3Server(port, tmp_path_factory.mktemp("s3") / "log")
    yield server
    server.kill()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with its login in the environment."""
    use_environment(s3_server, monkeypatch)
    return s3_server
