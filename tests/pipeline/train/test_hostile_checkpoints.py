"""Checkpoints and snapshots from elsewhere: refused by name, running nothing, also where their manifest fits."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import sha256_file
from transloom.pipeline.train.checkpoint import (
    MANIFEST,
    TRAINER,
    WEIGHTS,
    _sealed_manifest,
    average_weights,
    load_weights,
    newest_checkpoint,
    read_manifest,
    save_weights,
)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    return save_weights(tmp_path / "weights", 1, {"a": torch.zeros(2, 3)}, keep_last=1)


class Payload:
    def __reduce__(self) -> Any:
        return (os.mkdir, (os.environ["CANARY_FOLDER"],))


def seal(folder: Path, **changes: Any) -> None:
    """A manifest that fits what is in the folder, but for the changes."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        for file in folder.iterdir()
        if file.is_file() and file.name != MANIFEST
    }
    (folder / MANIFEST).write_bytes(_sealed_manifest({"files": files, "step": 1} | changes))


def weights(content: bytes) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(content)
        seal(folder)

    return do


def manifest(content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / MANIFEST).write_bytes(content)


def listed(name: str) -> Callable[[Path], None]:
    return lambda folder: seal(folder, files={name: {"bytes": 1, "sha256": "0"}})


def instead(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return do


def linked(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
    (folder / WEIGHTS).symlink_to(folder.parent / WEIGHTS)


VARIANTS: dict[str, Callable[[Path], Any]] = {
    "a pickle for weights": lambda folder: weights(pickle.dumps(Payload()))(folder),
    "no weights": weights(b""),
    "a header of 2**63 bytes": weights(struct.pack("<Q", 2**63)),
    "a header that is no JSON": weights(struct.pack("<Q", 4) + b"[[[["),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "an empty manifest": manifest(b""),
    "YAML": manifest(b"files: {}\n"),
    "a list": manifest(b"[]"),
    "not UTF-8": manifest(b"\xff\xfe"),
    "deep nesting": manifest(b"[" * 1_000_000),
    "a manifest of 100 MB": lambda folder: os.truncate(folder / MANIFEST, 100_000_000),
    "no files": lambda folder: seal(folder, files=None),
    "files in a list": lambda folder: seal(folder, files=["a"]),
    "a file without its hash": lambda folder: seal(folder, files={WEIGHTS: {"bytes": 1}}),
    "a file in a number": lambda folder: seal(folder, files={WEIGHTS: 5}),
    "a path out of the folder": listed("../../../../etc/passwd"),
    "an absolute path": listed("/etc/passwd"),
    "a name with a NUL": listed("a\0b"),
    "the folder above": listed(".."),
    "a hole of 4 TiB": lambda folder: os.truncate(folder / WEIGHTS, 2**42),
    "a pipe for weights": instead(WEIGHTS, os.mkfifo),
    "a folder for weights": instead(WEIGHTS, Path.mkdir),
    "a device": instead(WEIGHTS, lambda file: file.symlink_to("/dev/zero")),
    "a link out of the folder": linked,
    "a pipe for the manifest": instead(MANIFEST, os.mkfifo),
    "a folder for the manifest": instead(MANIFEST, Path.mkdir),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_hostile_snapshot_is_refused(
    snapshot: Path, variant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CANARY_FOLDER", str(tmp_path / "canary"))
    VARIANTS[variant](snapshot)
    for load in (load_weights, lambda path: average_weights([path])):
        with pytest.raises(UserError, match=str(snapshot)):
            load(snapshot)
    assert not (tmp_path / "canary").exists()


def test_a_hostile_checkpoint_is_passed_over_and_named(snapshot: Path) -> None:
    listed("../../x")(snapshot)
    with pytest.raises(UserError, match="step_00000001"):
        newest_checkpoint(snapshot.parent)


def test_a_manifest_of_a_pickle_is_no_manifest(snapshot: Path) -> None:
    (snapshot / MANIFEST).write_bytes(pickle.dumps(json.loads((snapshot / MANIFEST).read_bytes())))
    (snapshot / TRAINER).write_bytes(b"")
    with pytest.raises(UserError, match=MANIFEST):
        read_manifest(snapshot)
