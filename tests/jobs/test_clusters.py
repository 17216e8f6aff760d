"""The user's clusters: what their file may say, who may read a token, and what stays when an entry is written."""

import os
from pathlib import Path

import pytest

from transloom.jobs.remote.clusters import (
    choose_cluster,
    clusters_file,
    keep_ray_token_private,
    load_clusters,
    write_entry,
    write_private,
)
from transloom.pipeline.errors import UserError


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "transloom"
    folder.mkdir()
    return folder


def write(text: str) -> None:
    clusters_file().write_bytes(text.encode())


def test_an_entry_is_read(settings):
    write_private(settings / "lab.token", "secret\n")
    write(f"lab:\n  address: https://ray.lab:8265\n  token_file: {settings}/lab.token\n  output_dir: /shared\n")
    cluster = choose_cluster(None)
    assert (cluster.name, cluster.address, cluster.output_dir) == ("lab", "https://ray.lab:8265", "/shared")
    assert cluster.token() == "secret"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lab:\n  adress: http://127.0.0.1:1\n", "lab.adress: no such key. Did you mean address?"),
        ("lab:\n  address: 1\n", "lab.address: must be text, not 1"),
        ("lab:\n  output_dir: /shared\n", "lab.address: is missing"),
        ("lab: http://127.0.0.1:1\n", "lab: must have the keys of a cluster: address, token_file"),
        ("lab:\n  address: 127.0.0.1:8265\n", "lab.address: must be http"),
        ("lab:\n  address: http://ray.lab:8265\n", "lab.token_file: is missing. Without a token"),
        ("lab:\n  address: http://u:pw1@127.0.0.1:1\n", "lab.address: http://***@127.0.0.1:1 has a password in it"),
        ("lab:\n  address: http://localhost:1\n  tracking_uri: http://a:pw1@b\n", "lab.tracking_uri: http://***@b has"),
        ("lab:\n  address: http://localhost:1\n  output_dir: out\n", "lab.output_dir: must be absolute"),
        ("lab:\n  address: http://localhost:1\n  token_file: lab.token\n", "lab.token_file: must be absolute"),
        ("lab: [\n", "while parsing"),
        ("- lab\n", "must have names of clusters"),
    ],
)
def test_a_mistake_is_told_with_file_and_key(text, message):
    write(text)
    with pytest.raises(UserError) as refusal:
        load_clusters()
    said = str(refusal.value)
    assert said.startswith(f"{clusters_file()}: ") and message in said and "pw1" not in said


def test_a_token_that_others_can_read_is_refused(settings):
    file = settings / "lab.token"
    write_private(file, "secret")
    assert os.stat(file).st_mode & 0o777 == 0o600
    write(f"lab:\n  address: http://127.0.0.1:1\n  token_file: {file}\n")
    file.chmod(0o640)
    with pytest.raises(UserError, match=f"chmod 600 {file}"):
        choose_cluster("lab").token()
    file.unlink()
    with pytest.raises(UserError, match="can't be read: No such file"):
        choose_cluster("lab").token()


def test_which_cluster_is_said_where_there_are_several():
    with pytest.raises(UserError, match="transloom cluster up"):
        choose_cluster(None)
    write("a:\n  address: http://127.0.0.1:1\nb:\n  address: http://127.0.0.1:2\n")
    assert choose_cluster("b").address == "http://127.0.0.1:2"
    with pytest.raises(UserError, match="to=: say which cluster: a, b"):
        choose_cluster(None)
    with pytest.raises(UserError, match=r"to=c: no such cluster .* there are a, b"):
        choose_cluster("c")


def test_writing_an_entry_keeps_all_else():
    mine = "# mine\nlab:\n  address: http://127.0.0.1:1  # by a tunnel\n"
    write(mine)
    for address in ("http://127.0.0.1:2", "http://127.0.0.1:3"):
        write_entry("local", {"address": address})
        assert choose_cluster("local").address == address
        assert clusters_file().read_bytes().decode().startswith(mine)
    write_entry("local", None)
    assert clusters_file().read_bytes().decode() == mine


def test_the_token_that_ray_would_show_to_everybody_is_private(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / ".ray" / "auth_token"
    keep_ray_token_private()
    token = file.read_text()
    assert len(token) == 64 and file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    keep_ray_token_private()
    assert file.read_text() == token and file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.iterdir()) == [file]
