import errno
import json
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import NotBuilt, atomic_write, hash_of, read_json, stage, write_json


class Colour(Enum):
    red = "red"


@dataclass(frozen=True)
class Settings:
    colour: Colour
    where: Path
    size: float


def test_atomic_write_leaves_the_old_file_and_no_temporary_one_when_it_fails(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(pipe) as file:
        file.write(b"through")
    assert os.read(reader, 100) == b"through" and pipe.is_fifo()
    os.close(reader)


def test_equal_values_are_equal_files_and_hashes(tmp_path):
    settings = Settings(Colour.red, Path("/x"), 0.5)
    plain = {"size": 0.5, "where": "/x", "colour": "red"}
    assert hash_of(settings) == hash_of(plain)
    assert hash_of(settings) != hash_of(Settings(Colour.red, Path("/x"), 0.25))
    write_json(tmp_path / "a", settings)
    write_json(tmp_path / "b", plain)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_json(tmp_path / "a") == plain


def build_one(folder: Path) -> dict[str, int]:
    (folder / "inner").mkdir()
    (folder / "inner" / "data").write_bytes(b"12345")
    return {"items": 5}


def must_not_run(folder: Path) -> dict[str, int]:
    raise AssertionError("built a finished stage again")


def test_a_finished_stage_is_skipped_and_a_changed_one_is_not(tmp_path):
    built = stage(tmp_path, "x-", {"a": 1}, {"in": "1"}, build_one)
    assert not built.skipped
    assert built.folder.name.startswith("x-")
    assert built.manifest["counts"] == {"items": 5}
    assert built.manifest["files"]["inner/data"]["bytes"] == 5
    again = stage(tmp_path, "x-", {"a": 1}, {"in": "1"}, must_not_run)
    assert again.skipped
    assert (again.folder, again.manifest) == (built.folder, built.manifest)
    for config, inputs in (({"a": 2}, {"in": "1"}), ({"a": 1}, {"in": "2"})):
        assert stage(tmp_path, "x-", config, inputs, build_one).folder != built.folder


def test_a_stage_can_be_looked_for_without_being_built(tmp_path):
    with pytest.raises(NotBuilt):
        stage(tmp_path / "root", "", {}, {}, None)
    assert not (tmp_path / "root").exists()
    built = stage(tmp_path / "root", "", {}, {}, lambda folder: {})
    found = stage(tmp_path / "root", "", {}, {}, None)
    assert found.skipped and found.folder == built.folder


@pytest.mark.parametrize("damage", ["no manifest", "manifest cut", "file cut", "file gone"])
def test_a_damaged_stage_is_built_again(tmp_path, damage):
    folder = stage(tmp_path, "x-", {}, {}, build_one).folder
    manifest, data = folder / "manifest.json", folder / "inner" / "data"
    match damage:
        case "no manifest":
            manifest.unlink()
        case "manifest cut":
            manifest.write_bytes(manifest.read_bytes()[:-20])
        case "file cut":
            data.write_bytes(b"123")
        case "file gone":
            data.unlink()
    again = stage(tmp_path, "x-", {}, {}, build_one)
    assert not again.skipped
    assert data.read_bytes() == b"12345"
    assert list(tmp_path.iterdir()) == [folder]


def test_nothing_is_left_of_a_stage_that_fails(tmp_path):
    def fail(folder: Path) -> dict[str, int]:
        build_one(folder)
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        stage(tmp_path, "x-", {}, {}, fail)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_the_folder(tmp_path):
    def fill(folder: Path) -> dict[str, int]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=rf"disk is full.*{tmp_path}/x-"):
        stage(tmp_path, "x-", {}, {}, fill)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="output_dir"):
        stage(tmp_path / "file" / "corpora", "x-", {}, {}, build_one)


BUILD_WITH_ANOTHER = """
    import sys, time
    from pathlib import Path
    from transloom.pipeline.files import stage
    root, meeting, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    def build(folder):
        (folder / "data").write_bytes(b"12345")
        (meeting / name).touch()
        while len(list(meeting.iterdir())) < 2:  # goes on when both are building
            time.sleep(0.01)
        return {"items": 5}
    print(stage(root, "x-", {}, {}, build).folder)
"""


def test_two_processes_that_build_the_same_stage_both_end_well(tmp_path):
    root, meeting = tmp_path / "root", tmp_path / "meeting"
    meeting.mkdir()
    command = [sys.executable, "-c", textwrap.dedent(BUILD_WITH_ANOTHER), str(root), str(meeting)]
    builders = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    printed = [builder.communicate(timeout=300)[0].strip() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert printed[0] == printed[1]
    assert list(root.iterdir()) == [Path(printed[0])]
    assert stage(root, "x-", {}, {}, must_not_run).skipped


def test_what_a_killed_builder_left_is_neither_used_nor_kept(tmp_path):
    script = """
        import sys, time
        from pathlib import Path
        from transloom.pipeline.files import stage
        def build(folder):
            (folder / "data").write_bytes(b"half")
            time.sleep(600)
        stage(Path(sys.argv[1]), "x-", {}, {}, build)
    """
    builder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)])
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("*/data")) and time.monotonic() < deadline:
        time.sleep(0.01)
    (left,) = tmp_path.iterdir()
    builder.kill()
    builder.wait()
    assert left.exists()
    done = stage(tmp_path, "x-", {}, {}, build_one)
    assert not done.skipped
    assert list(tmp_path.iterdir()) == [done.folder]


def test_a_builder_that_still_works_is_left_alone(tmp_path):
    def build(folder: Path) -> dict[str, int]:
        stage(tmp_path, "x-", {}, {}, build_one)  # another builder of the same stage, faster
        assert folder.exists()
        return build_one(folder)

    done = stage(tmp_path, "x-", {}, {}, build)
    assert json.loads((done.folder / "manifest.json").read_bytes())["counts"] == {"items": 5}
    assert list(tmp_path.iterdir()) == [done.folder]
