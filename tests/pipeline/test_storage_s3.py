"""The same on a real S3 server: folders there and back, and what is said where it refuses or does not answer."""

import time
from pathlib import Path

import pytest
from s3_server import BUCKET, S3Server

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, sha256_file, write_json
from transloom.pipeline.storage import files as storage
from transloom.pipeline.storage.mirror import Mirror, fetch_run, fetch_stage

SIZE = 6_000_000  # more than one of S3's parts


def sealed(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(content)
    write_json(folder / MANIFEST, {"files": {"data": {"bytes": len(content), "sha256": sha256_file(folder / "data")}}})
    return folder


def test_a_folder_comes_back_and_a_tampered_one_does_not(s3: S3Server, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/there-and-back/x"
    folder = sealed(tmp_path / "here", b"shards " * (SIZE // 7))
    storage.push(folder, url)
    assert storage.is_pushed(folder, url)
    assert storage.pull(url, tmp_path / "back")
    assert (tmp_path / "back" / "data").read_bytes() == (folder / "data").read_bytes()
    for content in (b"shards", b"Shards " * (SIZE // 7)):
        s3.fs().pipe_file(f"{url}/data", content)
        with pytest.raises(storage.Damaged, match="data not as written"):
            storage.pull(url, tmp_path / "again")
    storage.remove(url)
    assert storage.listing(url) == {}
    assert not fetch_stage(f"s3://{BUCKET}/there-and-back", tmp_path / "runs" / "x")


def test_a_run_is_mirrored_by_a_thread(s3: S3Server, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/mirrored"
    folder = tmp_path / "a" / "runs" / "mine"
    stages = [sealed(tmp_path / "a" / kind / "1", kind.encode()) for kind in ("corpora", "tokenizers", "shards")]
    for step in (50, 100):
        sealed(folder / "checkpoints" / f"step_{step:08d}", f"checkpoint {step}".encode())
    paths = dict(zip(("corpus", "tokenizer", "shards"), map(str, stages), strict=True))
    write_json(folder / "prepared.json", {"identity": "a", **paths})
    mirror = Mirror(url, folder, stages)
    mirror.start()
    assert mirror.close() is None
    other = tmp_path / "b" / "runs" / "mine"
    assert fetch_run(url, other, "a").damaged == []
    assert (other / "checkpoints" / "step_00000100" / "data").read_bytes() == b"checkpoint 100"
    assert fetch_stage(url, tmp_path / "b" / "shards" / "1")


def test_a_bucket_that_is_not_there(s3: S3Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^storage: s3://no-such-bucket/x: is not there"):
        storage.check("s3://no-such-bucket/x")
    with pytest.raises(UserError, match=r"^key: no such file: s3://no-such-bucket/my.en \(nor"):
        storage.fetch_file("s3://no-such-bucket/my.en", tmp_path, "key")
    assert not s3.fs().exists("no-such-bucket")  # fsspec would make it


def test_a_login_that_is_wrong_or_missing(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.ask_for_login(True)
    try:
        with pytest.raises(
            UserError, match=rf"^storage: s3://{BUCKET}/x: access is refused .*AWS_ACCESS_KEY_ID"
        ) as said:
            storage.check(f"s3://{BUCKET}/x")
    finally:
        s3.ask_for_login(False)
    assert "canary-secret" not in str(said.value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"access is refused \(NoCredentialsError"):
        storage.check(f"s3://{BUCKET}/x")


def test_a_server_that_does_not_answer_is_said_in_seconds(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started_at = time.monotonic()
    with pytest.raises(UserError, match=rf"^storage: s3://{BUCKET}/x: can't be reached or used"):
        storage.check(f"s3://{BUCKET}/x")
    assert time.monotonic() - started_at < 60
