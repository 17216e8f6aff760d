"""What can be done to one run in an MLflow store; the only module that imports mlflow.

`import mlflow` takes seconds, so it happens at the first use, which is in a thread of the driver. Everything here can
be repeated without a trace: points that the store has are ignored by it (same key, step, time and value); runs and
models are looked for before they are made; artifacts are overwritten.
"""

import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import database_file, database_uri
from transloom.pipeline.secrets import redacted
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tracking import view as runs_view

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_METRICS_PER_BATCH = 1000
MAX_PARAMS_PER_BATCH = 100
KEY_TAG = "mlflow.transloomKey"  # of the run; the UI does not show tags that begin with "mlflow."

# A call that fails is repeated from the spool, so MLflow need not (its own patience is 4 minutes a call). The time
# limit is above what a slow server takes, else no call would ever count as done.
MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print the password in the address, too
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}

_IMPORTING = threading.Lock()

log = logging.getLogger(__name__)


class MlflowStore:
    """One run in the store at `uri`. Methods raise what the store or the network answers.

    Args:
        record: what `run.json` says of the run: key, run_name, experiment, tags, started_ms, artifact_location and,
            once it is made, run_id and experiment_id; "selects" is the metric that it is chosen by, where there is one.
    """

    def __init__(self, uri: str, record: Mapping[str, Any]) -> None:
        self._uri = uri
        self._record = record
        self._models: dict[str, str] = {}
        self._lazy_client: MlflowClient | None = None
        self.run_id: str = record["run_id"] or ""
        self.experiment_id: str = record.get("experiment_id") or ""

    def find_run(self) -> bool:
        """Finds the run or makes it. True if it is one that had nothing uploaded by the record: all is to be sent."""
        if self.run_id and self._is_active():
            return False
        experiment = self._client.get_experiment_by_name(self._record["experiment"])
        if experiment is None:
            name, location = self._record["experiment"], self._record["artifact_location"]
            tags = {"mlflow.experimentKind": "custom_model_development", **self._arrangement()}
            self.experiment_id = self._client.create_experiment(name, location, tags)
        else:
            self.experiment_id = experiment.experiment_id
            if experiment.lifecycle_stage != "active":
                self._client.restore_experiment(self.experiment_id)
            for tag, view in self._arrangement().items():
                if experiment.tags.get(tag) != view:
                    self._client.set_experiment_tag(self.experiment_id, tag, view)
        # Looked for by its key first: a server may have made it, and its answer been lost.
        key = self._record["key"]
        found = self._client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        if found:
            run = found[0]
        else:
            tags = {name: redacted(text) for name, text in self._record["tags"].items()} | {KEY_TAG: key}
            started, name = self._record["started_ms"], self._record["run_name"]
            run = self._client.create_run(self.experiment_id, started, tags, name)
        self.run_id = run.info.run_id
        self._models = {}
        return True

    def _arrangement(self) -> dict[str, str]:
        """The experiment's tag for the list of runs, by the metric that this run is chosen by."""
        if "selects" not in self._record:  # a bench, a comparison, or a run of before
            return {}
        metric = Metric(**self._record["selects"])
        return {runs_view.view_tag(metric): runs_view.shared_view(metric)}

    def set_deleted(self, deleted: bool) -> bool:
        """Marks the run as deleted, which MLflow's pages hide and can restore, or takes the mark off. Returns whether
        that changed anything."""
        from mlflow.exceptions import MlflowException

        try:
            is_deleted = self._client.get_run(self.run_id).info.lifecycle_stage == "deleted"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        if is_deleted != deleted:
            (self._client.delete_run if deleted else self._client.restore_run)(self.run_id)
        return is_deleted != deleted

    def refuses(self, error: Exception) -> bool:
        """Whether the error means that the record is at fault, so that sending it again is no use."""
        from mlflow.exceptions import MlflowException

        if isinstance(error, FileNotFoundError):
            return True
        if not isinstance(error, MlflowException) or error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
            return False
        return self._is_active()  # a deleted run answers like that, too

    def log_points(self, records: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics = []
        for record in records:
            model_id = self._model_id(record["model"], record["step"]) if "model" in record else None
            dataset, digest = record.get("dataset", (None, None))
            for key, value in record["metrics"].items():
                metrics.append(Metric(key, value, record["time_ms"], record["step"], model_id, dataset, digest))
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + MAX_METRICS_PER_BATCH])

    def do(self, record: Mapping[str, Any], run_folder: Path) -> None:
        """Does what a line of a spool says that is no group of points."""
        match record.get("do"):
            case "params":
                self._log_params(record["params"])
            case "tags":
                self._set_tags(record["tags"])
            case "text":
                self._client.log_text(self.run_id, record["text"], record["name"])
            case "artifact":
                self._log_artifact(run_folder / record["path"], record["folder"])
            case "table":
                self._log_artifact(run_folder / record["path"], None)
                self._announce_table(record["name"])
            case "dataset":
                self._log_dataset(record)
            case "model":
                self._log_model(record, run_folder / record["folder"] if record["folder"] else None)
            case "status" if record["status"] == "RUNNING":
                self._client.update_run(self.run_id, status="RUNNING")
            case "status":
                self._client.set_terminated(self.run_id, record["status"], record["time_ms"])
            case other:
                log.warning("unknown record in a spool: %r", other)

    @property
    def _client(self) -> "MlflowClient":
        if self._lazy_client is None:
            _import_mlflow()
            from mlflow import MlflowClient

            if database := database_file(self._uri):
                _make_database(database)
            self._lazy_client = MlflowClient(tracking_uri=self._uri)
        return self._lazy_client

    def _is_active(self) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(self.run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _log_params(self, params: Mapping[str, str]) -> None:
        """MLflow's params never change; what a resumed run changes is told by tags."""
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        fresh = [Param(key, value) for key, value in params.items() if key not in known]
        for start in range(0, len(fresh), MAX_PARAMS_PER_BATCH):
            self._client.log_batch(self.run_id, params=fresh[start : start + MAX_PARAMS_PER_BATCH])
        self._set_tags({f"resumed.{key}": value for key, value in params.items() if known.get(key, value) != value})

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        entities = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, len(entities), MAX_PARAMS_PER_BATCH):
            self._client.log_batch(self.run_id, tags=entities[start : start + MAX_PARAMS_PER_BATCH])

    def _log_artifact(self, path: Path, folder: str | None) -> None:
        if not path.exists():
            raise FileNotFoundError(f"the file {path} to upload is gone")
        secret = urlsplit(self._uri).password
        if secret and path.is_file() and any(form.encode() in path.read_bytes() for form in (secret, unquote(secret))):
            log.warning("%s is not uploaded: the tracking server's password is in it", path)
            return
        self._client.log_artifact(self.run_id, str(path), folder)

    def _announce_table(self, name: str) -> None:
        """Sets the tag by which the UI knows that an artifact is a table, as MlflowClient.log_table does (which adds
        the rows again at every call, and so can't be repeated)."""
        tables = json.loads(self._client.get_run(self.run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        table = {"path": name, "type": "table"}
        if table not in tables:
            self._set_tags({"mlflow.loggedArtifacts": json.dumps([*tables, table])})

    def _log_dataset(self, record: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=record["name"],
            digest=record["digest"],
            source_type="local",
            source=json.dumps({"uri": record["source"]}),
            profile=json.dumps(record["counts"]),
        )
        context = [InputTag("mlflow.data.context", record["context"])]
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, context)])

    def _model_id(self, name: str, step: int) -> str:
        """The id of the run's logged model of this name, which is made where it is missing."""
        from mlflow.entities import LoggedModelOutput

        if name in self._models:
            return self._models[name]
        valid_name = re.sub(r"[/:.%\"']", "-", name)
        criteria = f"name = '{valid_name}' AND source_run_id = '{self.run_id}'"
        found = self._client.search_logged_models([self.experiment_id], criteria)
        if found:
            model_id = found[0].model_id
        else:
            kind = self._record["tags"].get("task")
            model_id = self._client.create_logged_model(
                self.experiment_id, valid_name, self.run_id, tags={"step": str(step)}, model_type=kind
            ).model_id
        outputs = self._client.get_run(self.run_id).outputs
        if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
            self._client.log_outputs(self.run_id, [LoggedModelOutput(model_id, step)])
        self._models[name] = model_id
        return model_id

    def _log_model(self, record: Mapping[str, Any], folder: Path | None) -> None:
        """A model is its folder's files (safetensors, JSON, tokenizer) and MLflow's description of it; no pickle."""
        from mlflow.models import Model

        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"the model's folder {folder} is gone")
        model_id = self._model_id(record["name"], record["step"])
        known = self._client.get_logged_model(model_id).params or {}
        if fresh := {key: value for key, value in record["params"].items() if key not in known}:
            self._client.log_model_params(model_id, fresh)
        with tempfile.TemporaryDirectory() as temporary:
            description = Model(run_id=self.run_id, model_id=model_id, model_uuid=model_id)
            description.add_flavor("transloom", step=record["step"], weights="model.safetensors")
            description.save(str(Path(temporary) / "MLmodel"))
            self._client.log_model_artifacts(model_id, temporary)
        if folder is not None:
            self._client.log_model_artifacts(model_id, str(folder))
        self._client.finalize_logged_model(model_id, "READY")


def _make_database(file: Path) -> None:
    """Makes MLflow's tables in a new database, which is whole or absent: MLflow can't go on with one whose making was
    ended by a kill or a full disk. Of two processes that make one, the first wins."""
    if file.exists():
        return
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{file.name}.tmp-", dir=file.parent, ignore_cleanup_errors=True
    ) as folder:
        made = Path(folder, file.name)
        store: Any = MlflowClient(tracking_uri=database_uri(made))._tracking_client.store
        store.engine.dispose()
        try:
            os.link(made, file)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(made, file)


def ask_server(uri: str, seconds: float) -> tuple[int, str]:
    """What the server at `uri` answers to a small question: the HTTP status and the text.

    Raises:
        MlflowException: nothing answers in time; its text may hold the address as it is.
    """
    _import_mlflow()
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(
        get_default_host_creds(uri),
        "/api/2.0/mlflow/experiments/search",
        "POST",
        json={"max_results": 1},
        max_retries=0,
        timeout=seconds,
        raise_on_status=False,
    )
    assert answer is not None  # as MLflow's annotations would have it
    return answer.status_code, answer.text


def find_runs(uri: str, experiment: str, criteria: str) -> list[tuple[str, str]]:
    """Id and name of the runs of an experiment that a filter of MLflow's finds, the oldest first.

    Raises:
        UserError: there is no such experiment, the filter is refused, or the store does not answer.
    """
    _import_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri)
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise UserError(f"tracking.experiment: there is no experiment {experiment!r} in {redacted(uri)}")
        runs = client.search_runs([found.experiment_id], criteria, order_by=["attributes.start_time ASC"])
    except MlflowException as error:
        raise UserError(f"MLflow at {redacted(uri)}: {redacted(str(error))}") from None
    return [(run.info.run_id, run.info.run_name or "") for run in runs]


def _import_mlflow() -> None:
    """Two threads that import it at once can meet modules that are half made."""
    with _IMPORTING:
        for name, value in MLFLOW_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import mlflow  # noqa: F401


def system_monitors() -> list[Any]:
    """MLflow's readers of CPU, memory, disk, network and, where there is one, GPU use."""
    _import_mlflow()
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(Exception):  # raises where there is no GPU
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        monitors.append(GPUMonitor())
    return monitors
