"""What a cluster's client says where the cluster does not answer, or refuses; a small server stands for it."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from transloom.jobs.remote import client as client_module
from transloom.jobs.remote.client import Client
from transloom.jobs.remote.clusters import Cluster, write_private
from transloom.pipeline.errors import UserError

TOKEN = "7o2en"


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """Answers as Ray's dashboard does with a token set: /api/version and one list of nodes."""
    answers = {
        "/api/version": {"version": "4", "ray_version": "2.60.0"},
        "/api/v0/nodes": {
            "data": {
                "result": {
                    "result": [
                        {"state": "ALIVE", "resources_total": {"CPU": 4.0}},
                        {"state": "DEAD", "resources_total": {"CPU": 64.0}},
                    ]
                }
            }
        },
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            code = 401 if given is None else 200 if given == f"Bearer {TOKEN}" else 403
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(answers[self.path.partition("?")[0]]).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def cluster(address: str, folder: Path, token: str | None) -> Cluster:
    if token is None:
        return Cluster("lab", address)
    write_private(folder / "token", token)
    return Cluster("lab", address, folder / "token")


def test_the_right_token_opens_it(dashboard, tmp_path, monkeypatch):
    # Addresses and proxies of the environment are not meant.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert Client(cluster(dashboard, tmp_path, TOKEN)).nodes() == [{"CPU": 4.0}]


def test_another_token_is_explained(dashboard, tmp_path):
    with pytest.raises(UserError, match=r"lab: the cluster refuses the token of .*403") as refusal:
        Client(cluster(dashboard, tmp_path, "other"))
    assert "other" not in str(refusal.value).replace("another", "")


def test_a_missing_token_is_explained(dashboard):
    """In a process of its own: Ray keeps a token for as long as the process in which it found one."""
    code = f"""
from transloom.jobs.remote.client import Client
from transloom.jobs.remote.clusters import Cluster
from transloom.pipeline.errors import UserError
try:
    Client(Cluster("lab", {dashboard!r}))
except UserError as error:
    print(error)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    asked = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert asked.stdout.startswith("lab: the cluster asks for a token (401)"), asked.stderr


def test_where_nobody_answers(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(UserError, match=r"nothing answers at http://127.0.0.1:\d+ \(Connection refused\)"):
            Client(cluster(f"http://127.0.0.1:{taken.getsockname()[1]}", tmp_path, TOKEN))


def test_what_accepts_and_never_answers_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "ANSWER_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UserError, match="does not answer within"):
            Client(cluster(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, TOKEN))
