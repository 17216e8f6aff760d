"""A real S3 server on loopback (moto's), in a process of its own: it can be killed, and then it has forgotten all."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import fsspec
import pytest

BUCKET = "bucket"
SECONDS_TO_START = 300.0  # a quiet machine needs a fiftieth of it


class S3Server:
    def __init__(self, port: int, log: Path) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self._log = log
        self.start()

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/moto-api/data.json", timeout=30).close()
                break
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"moto did not start:\n{self._log.read_text()}") from None
                time.sleep(0.1)
        self.fs().mkdir(BUCKET)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def ask_for_login(self, does: bool) -> None:
        """Whether keys are looked at; those of `environment` are of nobody."""
        first = b"0" if does else b"inf"
        request = urllib.request.Request(f"{self.address}/moto-api/reset-auth", first, {"Content-Type": "text/plain"})
        urllib.request.urlopen(request, timeout=30).close()

    def environment(self) -> dict[str, str]:
        """What a user sets for a server of their own."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "canary-id",
            "AWS_SECRET_ACCESS_KEY": "canary-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CONFIG_FILE": os.devnull,
        }

    def fs(self) -> fsspec.AbstractFileSystem:
        """The server's content, as the tests look at it."""
        given = {"key": "k", "secret": "s", "endpoint_url": self.address, "skip_instance_cache": True}
        return fsspec.filesystem("s3", use_listings_cache=False, **given)


def use_environment(server: S3Server, patch: pytest.MonkeyPatch) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # they keep the login that they began with
    for name, value in server.environment().items():
        patch.setenv(name, value)
