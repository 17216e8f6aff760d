"""Serve MLflow's pages on the runs, on this machine only."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transloom.jobs.cli import configuration
from transloom.jobs.config.schema import Config
from transloom.jobs.runs.report import end_dead_runs
from transloom.jobs.terminal.printable import printable
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json
from transloom.pipeline.run_folder import RUN_RECORD, RUNS_FOLDER
from transloom.pipeline.secrets import redacted
from transloom.pipeline.tasks.build import selecting_metric
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tracking.address import local_store, recorded_uri, run_url, tracking_uri, ui_command
from transloom.pipeline.tracking.relocate import ARTIFACTS, settle_store
from transloom.pipeline.tracking.view import KEY, runs_url, view_key

HOST = "127.0.0.1"
PORTS = range(5000, 5020)


def main(argv: list[str]) -> int:
    """Becomes the server (so a signal to this process ends it) on the first free port from 5000."""
    config = configuration("ui", argv)
    output_dir = Path(config.output_dir).absolute()
    uri = tracking_uri(config.tracking, output_dir)
    store = output_dir / "mlflow.db"
    if uri == local_store(output_dir):
        if not store.exists():
            raise UserError(f"{store}: there are no runs yet; make one with: transloom run")
        settle_store(output_dir)
    end_dead_runs(output_dir, uri)
    port = _free_port()
    command, environment = ui_command(uri, output_dir / ARTIFACTS, HOST, port)
    server = f"http://{HOST}:{port}"
    print(f"MLflow on {server} in a few seconds; Ctrl-C ends it.", flush=True)
    if newest := _newest_run(output_dir, uri):
        experiment_id = newest["experiment_id"]
        runs = runs_url(server, experiment_id, *_arrangement(newest, config))
        print(f"The runs, best first: {runs}", flush=True)
        told = f"The newest run, {newest['run_name']}: {run_url(server, experiment_id, newest['run_id'])}"
        print(printable(told), flush=True)
    os.execvpe(command[0], command, os.environ | environment)


def _arrangement(record: Mapping[str, Any], config: Config) -> tuple[Metric, str | None]:
    """The metric that a run is chosen by, and the key of the arrangement of MLflow's list by it."""
    if "selects" in record:
        metric = Metric(**record["selects"])
        return metric, view_key(metric)
    key = KEY if record.get("is_arranged") else None  # of a run of before
    return selecting_metric(config.task, config.corpus), key


def _newest_run(output_dir: Path, uri: str) -> dict[str, Any] | None:
    """The record of the run that reported to this store last."""
    records = sorted((output_dir / RUNS_FOLDER).glob(f"*/{RUN_RECORD}"), key=lambda path: -path.stat().st_mtime)
    for path in records:
        record = read_json(path)
        if record.get("run_id") and recorded_uri(path.parent, record) == redacted(uri):
            return record
    return None


def _free_port(ports: range = PORTS) -> int:
    for port in ports:
        with socket.socket() as probe:
            # As a server does: a port whose last connections are still closing counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise UserError(f"ports {ports.start} to {ports.stop - 1} of this machine are in use; end a server first")
