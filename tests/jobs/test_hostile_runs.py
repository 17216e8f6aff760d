"""A run's folder from elsewhere whose files are not what a run writes: refused, without a traceback or a wait."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transloom.jobs.compare.systems import _find
from transloom.jobs.config.compose import load_config, to_yaml
from transloom.jobs.runs.model import find_model
from transloom.pipeline.errors import UserError


def written(name: str, content: bytes | Any) -> Callable[[Path], Any]:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda run: (run / name).write_bytes(data)


def instead(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def do(run: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return do


VARIANTS: dict[str, Callable[[Path], Any]] = {
    "training.json: a list": written("training.json", []),
    "training.json: a text": written("training.json", "x"),
    "training.json: nothing in it": written("training.json", {}),
    "training.json: validations of a number": written("training.json", {"validations": 5}),
    "training.json: steps of text": written("training.json", {"validations": [{"step": "x", "bleu": 1}]}),
    "training.json: scores of text": written(
        "training.json", {"validations": [{"step": 1, "bleu": []}, {"step": 2, "bleu": "x"}]}
    ),
    "training.json: deep": written("training.json", b"[" * 1_000_000),
    "training.json: not UTF-8": written("training.json", b"\xff\xfe\xff"),
    "training.json: empty": written("training.json", b""),
    "training.json: a pipe": instead("training.json", os.mkfifo),
    "training.json: a folder": instead("training.json", Path.mkdir),
    "config.json: null": written("model/config.json", None),
    "config.json: a list": written("model/config.json", []),
    "config.json: deep": written("model/config.json", b"[" * 1_000_000),
    "config.json: a pipe": instead("model/config.json", os.mkfifo),
    "config.yaml: a list": written("config.yaml", b"- a\n"),
    "config.yaml: a pipe": instead("config.yaml", os.mkfifo),
    "config.yaml: no settings of ours": written("config.yaml", b"model: {layers: 3}\n"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_hostile_run_is_refused(variant: str, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    (run / "model").mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(load_config([])))
    (run / "prepared.json").write_text(json.dumps({"identity": "x", "shards": "/nowhere"}))
    (run / "training.json").write_text(json.dumps({"validations": [{"step": 1, "bleu": 1.0}], "step": 1}))
    (run / "model" / "config.json").write_text(json.dumps({"steps": [1], "snapshots": {}}))
    assert find_model("mine", tmp_path) == run / "model"
    VARIANTS[variant](run)
    with pytest.raises(UserError, match="mine") as refused:
        find_model("mine", tmp_path)
    assert len(str(refused.value)) < 1500
    with pytest.raises(UserError, match="mine"):
        _find("mine", tmp_path)


def test_a_spool_of_garbage_is_passed_over(tmp_path: Path) -> None:
    from transloom.pipeline.tracking.spool import last_status, read_points

    lines = [
        b"[" * 100_000,
        b"\xff",
        b'{"metrics": 5}',
        b'{"metrics": {"a": 1}}',
        b'{"step": "x", "time_ms": 1, "metrics": {"a": 1}}',
        b'{"step": 1, "time_ms": 2, "metrics": {"a": "x", "b": 2}}',
        b'{"do": "status"}',
    ]
    (tmp_path / "driver.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert [(point.key, point.value) for point in read_points(tmp_path)] == [("b", 2)]
    assert last_status(tmp_path) is None
