"""Which MLflow store a run is reported to, and where its pages are."""

import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import database_uri, read_json
from transloom.pipeline.run_folder import RUN_RECORD
from transloom.pipeline.search_path import ROOT, search_environment
from transloom.pipeline.secrets import HIDDEN, redacted
from transloom.pipeline.tracking.mlflow_store import MLFLOW_ENVIRONMENT, ask_server
from transloom.pipeline.tracking.relocate import ARTIFACTS, path_of

STORES = r"(https?|file|databricks|(sqlite|postgresql|mysql|mssql)(\+\w+)?):"
ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class TrackingConfig:
    """Where the run is reported.

    Passwords belong into the environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or
    MLFLOW_TRACKING_TOKEN).

    Attributes:
        enabled: whether runs are reported to MLflow.
        uri: the address of MLflow's server or database; None: the environment's MLFLOW_TRACKING_URI, else a SQLite
            store in the output folder.
        experiment: MLflow's experiment, which has the runs.
        system_metrics: whether the use of CPU, memory, disk, network and GPU is reported, too.

    Raises:
        ValueError: naming the field.
    """

    enabled: bool = True
    uri: str | None = None
    experiment: str = "transloom"
    system_metrics: bool = True

    def __post_init__(self) -> None:
        if not self.experiment.strip():
            raise ValueError("experiment: must not be empty")
        if self.uri is not None and not re.match(STORES, self.uri):
            raise ValueError(
                f"uri: {redacted(self.uri)!r} is no address; give http(s)://host:port, sqlite:////folder/mlflow.db "
                "or another database, or null for a store in output_dir"
            )


def tracking_uri(config: TrackingConfig, output_dir: Path) -> str:
    """The absolute URI of the store. It may hold a password: print it through `redacted` only."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or local_store(output_dir)


def local_store(output_dir: Path) -> str:
    """The URI of the store in an output folder."""
    return database_uri(output_dir / "mlflow.db")


def refuse_unreachable(config: TrackingConfig, output_dir: Path) -> None:
    """Where the store is a server: whether it answers. (A training would go on without it, and its curves come late.)

    Raises:
        UserError: it does not, or not to this user.
    """
    uri = tracking_uri(config, output_dir)
    if not uri.startswith("http"):
        return
    server = redacted(uri)
    try:
        code, text = ask_server(uri, ANSWER_SECONDS)
    except Exception:  # MLflow's own; its text may hold the password
        raise UserError(
            f"tracking.uri: no MLflow answers at {server} from {socket.gethostname()}: start it, give the address of "
            "one that runs, or train without: tracking=off"
        ) from None
    if code == 401 or (code == 403 and "host" not in text.lower()):
        raise UserError(
            f"tracking.uri: MLflow at {server} asks for another login ({code}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD in the environment that Ray is started in"
        )
    if code != 200:
        hint = "; MLFLOW_SERVER_ALLOWED_HOSTS there must name this address" if code == 403 else ""
        raise UserError(f"tracking.uri: {server} answers {code} ({redacted(text.strip()[:200])}): is it MLflow?{hint}")


def artifact_location(uri: str, output_dir: Path) -> str | None:
    """Where a new experiment's artifacts go: beside a database; a server has its own place (None)."""
    return None if uri.startswith("http") else (output_dir.absolute() / ARTIFACTS).as_uri()


def recorded_uri(run_folder: Path, record: Mapping[str, Any]) -> str:
    """The URI, without its secrets, of the store that a run reports to; a store in the output folder moves with it."""
    uri, location = record["tracking_uri"], record.get("artifact_location")
    if location and uri == local_store(path_of(location).parent):
        return local_store(run_folder.absolute().parent.parent)
    return uri


def store_of(run_folder: Path, uri: str | None = None) -> str:
    """The URI of the store that a run reports to: `uri`, else the run's own, with the password that it has in
    MLFLOW_TRACKING_URI. It may hold a password.

    Raises:
        UserError: the folder is no run's, or the password is not known.
    """
    record_file = run_folder / RUN_RECORD
    if not record_file.exists():
        raise UserError(f"{run_folder} holds no {RUN_RECORD}: give the folder of a run, such as outputs/runs/<name>")
    stored, known = recorded_uri(run_folder, read_json(record_file)), os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None and HIDDEN in stored and known and redacted(known) == stored:
        return known
    if uri is None and HIDDEN in stored:
        raise UserError(f"the password for {stored} is not kept with the run: give tracking.uri=<address> again")
    return uri or stored


def run_url(server: str, experiment_id: str, run_id: str) -> str:
    """The run's page in the UI that `server` (http://host:port) serves."""
    # The UI has two faces; the parameter asks for the one that shows training.
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def ui_command(
    uri: str, artifacts: Path, host: str = "127.0.0.1", port: int = 5000
) -> tuple[list[str], dict[str, str]]:
    """The command line that serves a store's UI, and what to add to its environment. (The store's address is in the
    environment: every user of a machine can read command lines, and a database's address may hold a password.)

    Raises:
        UserError: if the store is a server, which has its own UI.
    """
    if uri.startswith("http"):
        raise UserError(f"tracking.uri is a server with a UI of its own: open {redacted(uri)} in a browser")
    options = ["--artifacts-destination", artifacts.absolute().as_uri(), "--host", host, "--port", str(port)]
    # No background jobs: they are for language model applications, and cost processes and seconds.
    environment = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "transloom", "--workers", "1", *options]
    # The server imports pipeline.tracking.pages, and looks in UVICORN_APP_DIR first, by default in the current folder.
    return command, MLFLOW_ENVIRONMENT | environment | search_environment() | {"UVICORN_APP_DIR": ROOT}
