"""A run in a storage: what comes back on another machine, what is passed over, what is removed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, read_json, sha256_file, write_json
from transloom.pipeline.storage import files as storage
from transloom.pipeline.storage.mirror import Fetched, Mirror, fetch_run, fetch_stage

URL = "memory://bucket"


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("transloom.pipeline.storage.mirror.POLL_SECONDS", 0.01)
    monkeypatch.setattr("transloom.pipeline.storage.mirror.LAST_ATTEMPTS", 1)
    yield
    fsspec.filesystem("memory").store.clear()


def sealed(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").write_text(content)
    write_json(folder / MANIFEST, {"files": {"data": {"bytes": len(content), "sha256": sha256_file(folder / "data")}}})
    return folder


def make_run(root: Path, *steps: int) -> tuple[Path, list[Path]]:
    """A run with these checkpoints and snapshots, and its stages."""
    folder = root / "runs" / "mine"
    stages = [sealed(root / kind / f"{kind}-1", kind) for kind in ("corpora", "tokenizers", "shards")]
    (folder / "ray").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "lock", "progress.json", "metrics.uploaded", "ray/log"):
        (folder / name).write_text(name)
    paths = dict(zip(("corpus", "tokenizer", "shards"), map(str, stages), strict=True))
    write_json(folder / "prepared.json", {"identity": "a", **paths})
    for step in steps:
        train_to(folder, step)
    return folder, stages


def train_to(folder: Path, step: int, keep: int = 2) -> None:
    for kind in ("checkpoints", "weights"):
        sealed(folder / kind / f"step_{step:08d}", f"{kind} {step}")
    (folder / "checkpoints" / "latest").write_text(f"step_{step:08d}\n")
    for old in sorted((folder / "checkpoints").glob("step_*"))[:-keep]:
        shutil.rmtree(old)


def steps_there(kind: str = "checkpoints") -> list[int]:
    names = storage.listing(f"{URL}/runs/mine/{kind}")
    return sorted(int(name[5:13]) for name in names if name.endswith(MANIFEST))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_machine_gets_the_whole_run(tmp_path: Path) -> None:
    folder, stages = make_run(tmp_path / "a", 50, 100)
    sealed(folder / "checkpoints" / "step_00000150.tmp", "being written")
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("w")
    write_json(folder / "model" / "config.json", {"sha256": {"weights": sha256_file(folder / "model" / "weights")}})
    Mirror(URL, folder, stages).sync()

    other = tmp_path / "b" / "runs" / "mine"
    came = fetch_run(URL, other, "a")
    here, there = files(folder), files(other)
    assert (came.damaged, came.step) == ([], 100)
    brought = there.keys() - {"prepared.json"}  # which is written here
    assert (came.files, came.size_bytes) == (len(brought), sum(len(there[name]) for name in brought))
    of_this_machine = {"lock", "progress.json", "metrics.uploaded", "ray/log", "prepared.json"}
    of_this_machine |= {name for name in here if ".tmp/" in name}
    assert there.keys() - here.keys() == set()
    assert {name: there.get(name) for name in here if name not in of_this_machine} == {
        name: here[name] for name in here if name not in of_this_machine
    }
    assert not (there.keys() & of_this_machine - {"prepared.json"})
    # The stages are found where this machine has them, and can be fetched.
    assert read_json(other / "prepared.json")["shards"] == str(tmp_path / "b" / "shards" / "shards-1")
    assert fetch_stage(URL, tmp_path / "b" / "shards" / "shards-1")
    assert files(tmp_path / "b" / "shards") == files(tmp_path / "a" / "shards")
    assert not fetch_stage(URL, tmp_path / "b" / "shards" / "shards-2")


def test_a_machine_that_comes_back_goes_on_from_where_the_other_got_to(tmp_path: Path) -> None:
    first, stages = make_run(tmp_path / "a", 50, 100)
    Mirror(URL, first, stages).sync()
    second = tmp_path / "b" / "runs" / "mine"
    fetch_run(URL, second)
    assert fetch_run(URL, second) == Fetched([])
    train_to(second, 150)
    (second / "metrics.jsonl").write_text("metrics of more steps")
    Mirror(URL, second, stages).sync()

    (first / "config.yaml").write_text("its own")
    fetch_run(URL, first, "a")
    assert (first / "checkpoints" / "step_00000150").is_dir()
    assert (first / "metrics.jsonl").read_text() == "metrics of more steps"
    assert not (first / "metrics.uploaded").exists()  # it told of the file before
    assert (first / "config.yaml").read_text() == "its own"


def test_what_is_here_is_not_replaced_by_what_is_older(tmp_path: Path) -> None:
    folder, stages = make_run(tmp_path, 50)
    Mirror(URL, folder, stages).sync()
    train_to(folder, 100)
    (folder / "metrics.jsonl").write_text("newer")
    fetch_run(URL, folder)
    assert (folder / "metrics.jsonl").read_text() == "newer"


def test_checkpoints_removed_here_are_removed_there_once_the_newest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, stages = make_run(tmp_path, 50, 100)
    Mirror(URL, folder, stages).sync()
    assert steps_there() == [50, 100]
    train_to(folder, 150)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "push", lambda *_: pytest.fail("the storage is away"))
        with pytest.raises(BaseException, match="away"):
            Mirror(URL, folder, stages).sync()
    assert steps_there() == [50, 100]
    Mirror(URL, folder, stages).sync()  # another process, which knows nothing of the first
    assert steps_there() == [100, 150]
    assert steps_there("weights") == [50, 100, 150]


def test_a_step_that_is_trained_again_replaces_what_was_there(tmp_path: Path) -> None:
    folder, stages = make_run(tmp_path, 50)
    mirror = Mirror(URL, folder, stages)
    mirror.sync()
    sealed(folder / "checkpoints" / "step_00000050", "other weights")
    mirror.sync()
    assert storage.read(f"{URL}/runs/mine/checkpoints/step_00000050/data") == b"other weights"


def test_a_damaged_checkpoint_is_passed_over_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, stages = make_run(tmp_path / "a", 50, 100)
    Mirror(URL, folder, stages).sync()
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/runs/mine/checkpoints/step_00000100/data", b"Checkpoints 100")
    other = tmp_path / "b" / "runs" / "mine"
    damaged = fetch_run(URL, other).damaged
    assert damaged == ["runs/mine/checkpoints/step_00000100"]
    assert "step_00000100 is damaged: data not as written" in caplog.text
    assert sorted(path.name for path in (other / "checkpoints").iterdir()) == ["latest", "step_00000050"]
    train_to(other, 100)  # the same bytes as before: only what was found tells that they are not there
    Mirror(URL, other, stages, damaged).sync()
    assert fs.cat_file("/bucket/runs/mine/checkpoints/step_00000100/data") == b"checkpoints 100"

    for step in (50, 100):
        fs.pipe_file(f"/bucket/runs/mine/checkpoints/step_{step:08d}/data", b"x")
    with pytest.raises(UserError, match=r"no checkpoint in memory://bucket/runs/mine can be used; damaged: .*100"):
        fetch_run(URL, tmp_path / "c" / "runs" / "mine")
    assert not (tmp_path / "c" / "runs" / "mine" / "prepared.json").exists()


def test_what_is_damaged_here_does_not_replace_what_is_sound_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, stages = make_run(tmp_path, 50, 100)
    Mirror(URL, folder, stages).sync()
    (folder / "checkpoints" / "step_00000100" / "data").write_text("trunc")
    Mirror(URL, folder, stages).sync()
    assert "is damaged (data), and is not copied" in caplog.text
    assert storage.read(f"{URL}/runs/mine/checkpoints/step_00000100/data") == b"checkpoints 100"
    assert steps_there() == [50, 100]


def test_another_run_of_the_name_is_refused(tmp_path: Path) -> None:
    folder, stages = make_run(tmp_path / "a", 50)
    Mirror(URL, folder, stages).sync()
    with pytest.raises(UserError, match="name: memory://bucket/runs/mine is a run of this name that was made with"):
        fetch_run(URL, tmp_path / "b" / "runs" / "mine", "b")
    assert not (tmp_path / "b").exists()


def test_a_storage_that_is_away_stops_nothing_and_is_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, stages = make_run(tmp_path, 50)

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("nobody answers")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "put_file", refuse)  # of all instances: each thread has its own
        mirror = Mirror(URL, folder, stages)
        mirror.start()
        trouble = mirror.close()
        assert trouble and trouble.startswith("storage: memory://bucket: can't be reached or used")
        assert "Nothing waits for it" in caplog.text
    assert steps_there() == []
    mirror = Mirror(URL, folder, stages)
    mirror.start()
    assert mirror.close() is None
    assert steps_there() == [50]


def test_checkpoints_come_with_their_curves_and_before_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, stages = make_run(tmp_path, 50, 100)
    order: list[str] = []
    push, push_file = storage.push, storage.push_file
    monkeypatch.setattr(storage, "push", lambda folder, *more: order.append(folder.name) or push(folder, *more))
    monkeypatch.setattr(storage, "push_file", lambda file, url: order.append(file.name) or push_file(file, url))
    Mirror(URL, folder, stages).sync()
    assert order.index("metrics.jsonl") < order.index("step_00000100") < order.index("shards-1")
    assert order[-1] == "step_00000050"
    assert json.loads(storage.read(f"{URL}/runs/mine/prepared.json"))["identity"] == "a"


def test_a_file_of_a_run_is_never_written_outside_of_its_folder(tmp_path: Path) -> None:
    folder, stages = make_run(tmp_path / "one", 5)
    Mirror(URL, folder, stages).sync()
    fs = fsspec.filesystem("memory")
    for name in (f"/{tmp_path}/evil", f"evaluation/abc//{tmp_path}/evil"):
        fs.store[f"/bucket/runs/mine/{name}"] = fs.store["/bucket/runs/mine/config.yaml"]
    assert fetch_run(URL, tmp_path / "two" / "runs" / "mine").files
    assert not list(tmp_path.rglob("evil"))


def test_a_run_whose_stages_would_lie_outside_of_the_output_folder_is_refused(tmp_path: Path) -> None:
    folder, stages = make_run(tmp_path / "one", 5)
    Mirror(URL, folder, stages).sync()
    record = json.loads(storage.read(f"{URL}/runs/mine/prepared.json"))
    tampered = json.dumps({**record, "shards": "/somewhere/.."}).encode()
    storage._open(URL)[0].pipe_file("/bucket/runs/mine/prepared.json", tampered)
    with pytest.raises(UserError, match=r"^storage: .*'\.\.'"):
        fetch_run(URL, tmp_path / "two" / "runs" / "mine")
