"""Copies in a storage: whole or not taken, verified when they come back; fsspec's memory stands in for S3."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import _registry

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, sha256_file
from transloom.pipeline.storage import files as storage

URL = "memory://bucket/prefix"


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()


def sealed(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    about = {name: {"bytes": len(content), "sha256": sha256_file(folder / name)} for name, content in files.items()}
    (folder / MANIFEST).write_text(json.dumps({"files": about}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tamper(url: str, content: bytes) -> None:
    storage._open(url)[0].pipe_file(storage._open(url)[1], content)


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "here", a=b"one", b=b"two")
    assert not storage.pull(f"{URL}/x", tmp_path / "there")
    assert not storage.is_pushed(folder, f"{URL}/x")
    storage.push(folder, f"{URL}/x")
    assert storage.is_pushed(folder, f"{URL}/x")
    assert storage.pull(f"{URL}/x", tmp_path / "there")
    assert contents(tmp_path / "there") == contents(folder)
    storage.remove(f"{URL}/x")
    assert storage.listing(URL) == {}


def test_an_upload_that_was_not_finished_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sealed(tmp_path / "here", a=b"one", b=b"two")
    storage.push(folder, f"{URL}/x")
    fs = fsspec.filesystem("memory")
    put = fs.put_file

    def broken(file: str, path: str, **more: object) -> None:
        if path.endswith("/b"):
            raise ConnectionError("the cable was pulled")
        put(file, path, **more)

    monkeypatch.setattr(fs, "put_file", broken)
    with pytest.raises(ConnectionError):
        storage.push(folder, f"{URL}/x")
    # The manifest of before is gone too: it would vouch for a mixture.
    assert not storage.pull(f"{URL}/x", tmp_path / "there") and not (tmp_path / "there").exists()


@pytest.mark.parametrize("content", [b"on", b"onE", None])
def test_what_is_truncated_tampered_with_or_missing_is_refused(tmp_path: Path, content: bytes | None) -> None:
    storage.push(sealed(tmp_path / "here", a=b"one", b=b"two"), f"{URL}/x")
    if content is None:
        fsspec.filesystem("memory").rm("/bucket/prefix/x/a")
    else:
        tamper(f"{URL}/x/a", content)
    with pytest.raises(storage.Damaged, match=r"memory://bucket/prefix/x is damaged: a not as written"):
        storage.pull(f"{URL}/x", tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_names_that_lead_out_of_the_folder_are_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage.push(sealed(tmp_path / "here", a=b"one"), f"{URL}/x")
    fs = fsspec.filesystem("memory")
    for name in ("../../evil", f"/{tmp_path}/evil", "b/../../evil"):
        fs.store[f"/bucket/prefix/x/{name}"] = fs.store["/bucket/prefix/x/a"]
    assert set(storage.listing(f"{URL}/x")) == {"a", MANIFEST}
    assert f"{tmp_path}/evil" in caplog.text
    assert storage.pull(f"{URL}/x", tmp_path / "there" / "x")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("name", ["../evil", "{folder}/evil", "link/evil"])
def test_a_marker_that_names_a_file_outside_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    """A file that is missing or damaged is fetched once more, by the name that the marker gives."""
    storage.push(sealed(tmp_path / "here", a=b"one"), f"{URL}/x")
    name = name.format(folder=tmp_path)
    if name.startswith("link"):
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "link").symlink_to(tmp_path)
        with pytest.raises(storage.Damaged, match="link/evil"):
            storage.inside(tmp_path / "there", name)
        return
    tamper(f"{URL}/x/{MANIFEST}", json.dumps({"files": {name: {"bytes": 3, "sha256": "0"}}}).encode())
    fs = fsspec.filesystem("memory")
    fs.store[f"/bucket/prefix/x/{name}"] = fs.store["/bucket/prefix/x/a"]
    with pytest.raises(storage.Damaged, match="evil"):
        storage.pull(f"{URL}/x", tmp_path / "there" / "x")
    assert not list(tmp_path.rglob("evil"))


def test_a_file_is_fetched_again_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/my.en.gz", b"first")
    copy = storage.fetch_file("memory://bucket/my.en", tmp_path, "corpus.train.source")
    assert copy.name == "my.en.gz" and copy.read_bytes() == b"first"
    monkeypatch.setattr(fs, "get_file", lambda *_, **__: pytest.fail("was fetched again"))
    assert storage.fetch_file("memory://bucket/my.en", tmp_path, "corpus.train.source") == copy
    monkeypatch.undo()
    fs.pipe_file("/bucket/my.en.gz", b"later")
    assert storage.fetch_file("memory://bucket/my.en", tmp_path, "corpus.train.source").read_bytes() == b"later"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server's address and its folder."""
    folder = tmp_path / "web"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def test_files_of_a_web_server(web: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = web
    (folder / "my.en.gz").write_bytes(b"first")
    os.utime(folder / "my.en.gz", (1e9, 1e9))
    copy = storage.fetch_file(f"{address}/my.en", tmp_path, "corpus.train.source")
    assert copy.name == "my.en.gz" and copy.read_bytes() == b"first"
    fetched_at = copy.stat().st_mtime_ns
    assert storage.fetch_file(f"{address}/my.en", tmp_path, "corpus.train.source").stat().st_mtime_ns == fetched_at
    (folder / "my.en.gz").write_bytes(b"later")
    assert storage.fetch_file(f"{address}/my.en", tmp_path, "corpus.train.source").read_bytes() == b"later"
    with pytest.raises(UserError, match=rf"corpus.train.target: no such file: {address}/my.de \(nor"):
        storage.fetch_file(f"{address}/my.de", tmp_path, "corpus.train.target")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://bucket/none", r"key: no such file: memory://bucket/none \(nor memory://bucket/none.gz\)"),
        ("nonsense://bucket/x", r"key: nonsense://bucket/x: no such protocol"),
        ("http://127.0.0.1:9/x", r"key: http://127.0.0.1:9/x: can't be reached or used"),
        ("http://me:canary@127.0.0.1:9/x?token=canary", r"key: http://\*\*\*@127.0.0.1:9/x\?token=\*\*\*:? can't be"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_by_its_key(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        storage.fetch_file(url, tmp_path, "key")
    assert "canary" not in str(caught.value)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(_registry, "s3", raising=False)  # another test may have had it
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"storage: s3://bucket/x: needs a package .* pip install s3fs"):
        storage.check("s3://bucket/x")


def test_check_leaves_nothing(tmp_path: Path) -> None:
    storage.check(URL)
    assert storage.listing(URL) == {}
    storage.check(f"file://{tmp_path}/new")
    assert not list((tmp_path / "new").iterdir())
