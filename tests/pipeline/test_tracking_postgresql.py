"""Tracking through a real `mlflow server` on a real PostgreSQL, as deploy/ sets them up: by password, on loopback."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from stores import CANARY, check_everything_is_there_once, free_port, report_everything, start

from transloom.pipeline.tracking.address import ui_command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_server_from_the_environment")]

SECONDS_TO_START = 300.0  # a quiet machine needs a twentieth of it


@dataclass(frozen=True)
class Database:
    port: int

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg://mlflow@127.0.0.1:{self.port}/mlflow"


def _programs() -> Path:
    """Where PostgreSQL's server is; distributions leave it out of the PATH."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders or not (folders[-1] / "initdb").exists():
        pytest.skip("PostgreSQL is not installed; Debian's package is called postgresql")
    return folders[-1]


def _user() -> str | None:
    """PostgreSQL refuses to run as root: then it runs as the user that its package brings."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")


@contextmanager
def _running(command: list[str], log: Path, is_up: Callable[[], bool], **how) -> Iterator[None]:
    """A server, from when it answers until the block ends."""
    with open(log, "ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, **how)
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not is_up():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[postgres]'")
    programs, user, port = _programs(), _user(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="transloom-postgresql-"))  # not pytest's: the user postgres must get into it
    try:
        password = folder / "password"
        password.write_text(CANARY)
        if user:
            for path in (folder, password):
                shutil.chown(path, user)
        data = folder / "data"
        initdb = [programs / "initdb", f"--pgdata={data}", "--username=mlflow", f"--pwfile={password}"]
        initdb += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
        made = subprocess.run(initdb, user=user, cwd=folder, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        options = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "fsync": "off",
        }
        command = [str(programs / "postgres"), "-D", str(data), *(f"--{key}={value}" for key, value in options.items())]

        def is_up() -> bool:
            try:
                _connection(port, "postgres").close()
            except psycopg.OperationalError:
                return False
            return True

        with _running(command, folder / "log", is_up, user=user, cwd=folder):
            with _connection(port, "postgres") as connection:
                connection.execute("CREATE DATABASE mlflow")
            yield Database(port)
    finally:
        shutil.rmtree(folder)


def _connection(port: int, database: str, password: str = CANARY):
    import psycopg

    return psycopg.connect(
        host="127.0.0.1", port=port, user="mlflow", dbname=database, password=password, autocommit=True
    )


@pytest.fixture(scope="module")
def server(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The server's address and its folder, with its log and its artifacts."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    command, environment = ui_command(database.uri, folder / "artifacts", port=port)

    def is_up() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30).close()
        except OSError:
            return False
        return True

    # As the manifests give the password to it.
    with _running(command, folder / "log", is_up, env=os.environ | environment | {"PGPASSWORD": CANARY}):
        yield f"http://127.0.0.1:{port}", folder


def test_everything_reaches_postgresql_through_the_server(
    server: tuple[str, Path], database: Database, output_dir: Path
):
    from mlflow import MlflowClient

    uri, folder = server
    tracker = start(output_dir, "postgresql", uri)
    report_everything(output_dir, tracker, tracker.run_folder)
    assert tracker.close(timeout=300)
    run_id = tracker.run_id()
    assert run_id is not None
    client = MlflowClient(tracking_uri=uri)
    check_everything_is_there_once(output_dir, run_id, client)
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("postgresql", "FINISHED")
    assert list((folder / "artifacts").rglob("curves.png")), "artifacts go through the server to its own folder"

    with _connection(database.port, "mlflow") as connection:
        rows = connection.execute(
            "SELECT step, value FROM metrics WHERE run_uuid = %s AND key = 'train/loss' ORDER BY step", (run_id,)
        ).fetchall()
    assert rows == [(step, 10 / step) for step in range(1, 31)]


def test_the_database_asks_for_its_password_which_is_nowhere_to_be_read(
    server: tuple[str, Path], database: Database, output_dir: Path
):
    import psycopg

    with pytest.raises(psycopg.OperationalError, match="password"):
        _connection(database.port, "mlflow", password="wrong")
    files = [path for folder in (server[1], output_dir) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
