"""What the tests of tracking share: stores, and a run with something of everything that can be reported."""

import json
import math
import socket
from pathlib import Path

from transloom.pipeline.files import read_json
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tracking.address import TrackingConfig
from transloom.pipeline.tracking.tracker import SpoolTracker
from transloom.pipeline.tracking.uploader import MlflowTracker

CANARY = "c4n4ry-p4ssw0rd"
DATASET = ("phrasebook validation", "b" * 64)


def store_of(output_dir: Path):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{output_dir}/mlflow.db")


def start(
    output_dir: Path, name: str, uri: str | None = None, metric: Metric | None = None, **settings
) -> MlflowTracker:
    config = TrackingConfig(uri=uri, **{"system_metrics": False} | settings)
    return MlflowTracker(config, output_dir, output_dir / "runs" / name, name, {"corpus": "phrasebook"}, metric=metric)


def points(client, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, key))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def report_everything(output_dir: Path, tracker: MlflowTracker, folder: Path) -> None:
    worker = SpoolTracker(folder)
    for step in range(1, 31):
        worker.log_metrics({"train/loss": 10 / step, "train/learning_rate": step * 1e-4}, step)
        if step % 10 == 0:
            worker.log_metrics({"validation/bleu": float(step)}, step, model=f"step-{step}", dataset=DATASET)
            worker.log_model(f"step-{step}", step, params={"weights": f"weights/{step}"})
            worker.log_table({"step": [step], "translation": ["ein Hund"]}, "samples")
    worker.log_metrics({"train/grad_norm": math.nan}, 30)
    worker.close()
    tracker.log_params({"model": {"d_model": 8}, "many": {f"p{i}": i for i in range(150)}})
    tracker.set_tags({"colour": "blue"})
    tracker.log_text("a: 1\n", "config.yaml")
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "curves.png").write_bytes(b"PNG")
    tracker.log_figure(folder / "figures" / "curves.png")
    tracker.log_dataset(*DATASET, str(output_dir / "corpora"), {"pairs": 500}, "validation")
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    tracker.log_model("averaged", 30, folder=folder / "model", params={"average_of": "20, 30"})
    tracker.log_metrics({"test/bleu": 31.5}, 30, model="averaged")


def check_everything_is_there_once(output_dir: Path, run_id: str, client=None) -> None:
    """In the store that `client` talks to, else in that of the output folder."""
    client = client or store_of(output_dir)
    run = client.get_run(run_id)
    assert points(client, run_id, "train/loss") == [(step, 10 / step) for step in range(1, 31)]
    assert points(client, run_id, "validation/bleu") == [(10, 10.0), (20, 20.0), (30, 30.0)]
    assert points(client, run_id, "test/bleu") == [(30, 31.5)]
    assert len(points(client, run_id, "train/grad_norm")) == 1
    assert run.data.params["model.d_model"] == "8"
    assert len(run.data.params) == 151
    assert run.data.tags["colour"] == "blue"
    assert run.data.tags["corpus"] == "phrasebook"
    assert not [key for key in run.data.tags if key.startswith("resumed.")]
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "samples.json", "type": "table"}]
    table = read_json(Path(client.download_artifacts(run_id, "samples.json")))
    assert table == {"columns": ["step", "translation"], "data": [[step, "ein Hund"] for step in (10, 20, 30)]}
    assert sorted(file.path for file in client.list_artifacts(run_id)) == ["config.yaml", "figures", "samples.json"]
    (dataset_input,) = run.inputs.dataset_inputs
    assert (dataset_input.dataset.name, dataset_input.dataset.digest) == ("phrasebook validation", "b" * 12)
    assert json.loads(dataset_input.dataset.profile) == {"pairs": 500}

    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    by_name = {model.name: model for model in models}
    assert sorted(model.name for model in models) == ["averaged", "step-10", "step-20", "step-30"]
    assert {model.status.name for model in models} == {"READY"}
    outputs = {output.model_id: output.step for output in run.outputs.model_outputs}
    assert outputs == {by_name[name].model_id: int(name[5:]) if name[5:].isdigit() else 30 for name in by_name}
    (metric,) = by_name["step-20"].metrics
    assert (metric.key, metric.value, metric.step) == ("validation/bleu", 20.0, 20)
    assert (metric.dataset_name, metric.dataset_digest) == ("phrasebook validation", "b" * 12)
    assert by_name["averaged"].params == {"average_of": "20, 30"}
    files = sorted(file.path for file in client.list_logged_model_artifacts(by_name["averaged"].model_id))
    assert files == ["MLmodel", "model.safetensors"]
