"""A command's process: streams that take any character, and servers of this machine without the environment's proxy."""

import io
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import requests
from command import ROOT

from transloom.jobs.runs.environment import LOOPBACK, PROXIES, reach_loopback_directly, take_any_character
from transloom.pipeline.data.lines import stream_lines


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "https_proxy"])
def test_servers_of_this_machine_are_asked_without_the_proxy(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("NO_PROXY", "intern.example, 10.0.0.1")
    reach_loopback_directly()
    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for host in ("127.0.0.1", "localhost"):
            assert requests.get(f"http://{host}:{server.server_port}", timeout=10).status_code == 200
    finally:
        server.shutdown()
        server.server_close()
    for name in ("no_proxy", "NO_PROXY"):
        assert os.environ[name].split(",") == ["intern.example", "10.0.0.1", *LOOPBACK]
    reach_loopback_directly()
    assert os.environ["no_proxy"].split(",") == ["intern.example", "10.0.0.1", *LOOPBACK], "it is added once"


@pytest.mark.usefixtures("no_proxies")
def test_without_a_proxy_or_with_none_for_all_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    reach_loopback_directly()
    assert "no_proxy" not in os.environ
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "*")
    reach_loopback_directly()
    assert os.environ["no_proxy"] == "*"


def test_a_character_that_the_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    take_any_character()
    print("für 猫")
    out.flush()
    assert out.buffer.getvalue() == b"f\\xfcr \\u732b\n"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_command_prints_any_name_in_any_encoding(encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "transloom.jobs", "run", "--cfg", "job", "output_dir=/tmp/\u732b"]
    found = subprocess.run(words, env=environment, capture_output=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert b"output_dir: /tmp/\\u732b" in found.stdout


def test_standard_input_is_read_as_a_file_is() -> None:
    stream = [b"\xef\xbb\xbfone\r\n", b"\xef\xbb\xbftwo\n", b"\r\r\n", b"\n", b"last"]
    assert list(stream_lines(stream)) == [b"one", b"\xef\xbb\xbftwo", b"\r", b"", b"last"]
    assert list(stream_lines([b"\xef\xbb\xbf"])) == [b""]
    assert list(stream_lines([])) == []
