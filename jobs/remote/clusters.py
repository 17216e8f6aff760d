"""The user's clusters by name: ~/.config/transloom/clusters.yaml, and the files with their tokens.

lab:
  address: http://127.0.0.1:8265             # Ray's dashboard, as this machine reaches it
  token_file: ~/.config/transloom/lab.token  # readable by its owner alone
  output_dir: /shared/transloom              # as all machines of the cluster see it
  tracking_uri: http://mlflow:5000           # likewise
"""

import difflib
import ipaddress
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import atomic_write
from transloom.pipeline.secrets import redacted
from transloom.pipeline.untrusted import read_yaml

LOCAL = "local"  # the entry of the cluster that `transloom cluster up` starts


@dataclass(frozen=True)
class Cluster:
    """A cluster to submit jobs to.

    Attributes:
        address: of Ray's dashboard: http(s)://host:port.
        token_file: a file with the cluster's token; may be missing on this machine's own address only.
        output_dir, tracking_uri: as the cluster sees them, where a command does not say; None: as this machine does.
    """

    name: str
    address: str
    token_file: Path | None = None
    output_dir: str | None = None
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"address: must be http(s)://host:port, that of Ray's dashboard, not {self.address!r}")
        for key in ("address", "tracking_uri"):
            value = getattr(self, key)
            if value and redacted(value) != value:
                raise ValueError(
                    f"{key}: {redacted(value)} has a password in it, which is not to lie in this file; see "
                    "docs/clusters.md for where it belongs"
                )
        if self.output_dir is not None and not Path(self.output_dir).is_absolute():
            raise ValueError(f"output_dir: must be absolute, as the cluster's machines see it, not {self.output_dir!r}")
        if self.token_file is None and not is_loopback(parts.hostname):
            raise ValueError(
                "token_file: is missing. Without a token whoever reaches the address can run anything there: start the "
                "cluster's Ray with RAY_AUTH_MODE=token, and name a file with its token here"
            )

    def token(self) -> str | None:
        """The cluster's token; None where it has none.

        Raises:
            UserError: there is no such file, or others can read it.
        """
        return None if self.token_file is None else read_token(self.token_file)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(file: Path) -> str:
    """
    Raises:
        UserError: there is no such file, it is empty, or others than its owner can read it.
    """
    try:
        if file.stat().st_mode & 0o077:
            raise UserError(f"{file}: others can read this token; take that from them: chmod 600 {file}")
        token = file.read_bytes().decode().strip()
    except OSError as error:
        raise UserError(f"{file}: the cluster's token can't be read: {error.strerror}") from error
    if not token:
        raise UserError(f"{file}: has no token in it")
    return token


def config_folder() -> Path:
    """Where the user's own settings are."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "transloom"


def clusters_file() -> Path:
    return config_folder() / "clusters.yaml"


def load_clusters() -> dict[str, Cluster]:
    """The clusters that are known, by name.

    Raises:
        UserError: the file is no such list; names the key.
    """
    file = clusters_file()
    try:
        entries = read_yaml(file)
    except FileNotFoundError:
        return {}
    if entries is None:
        return {}
    if not isinstance(entries, dict):
        raise UserError(f"{file}: must have names of clusters, each with its address; see docs/clusters.md")
    return {str(name): _read_entry(f"{file}: {name}", str(name), entry) for name, entry in entries.items()}


def _read_entry(where: str, name: str, entry: Any) -> Cluster:
    known = [field.name for field in fields(Cluster) if field.name != "name"]
    if not isinstance(entry, dict):
        raise UserError(f"{where}: must have the keys of a cluster: {', '.join(known)}")
    for key, value in entry.items():
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {nearest[0]}?" if nearest else f"There are {', '.join(known)}."
            raise UserError(f"{where}.{key}: no such key. {hint}")
        if not isinstance(value, str):
            raise UserError(f"{where}.{key}: must be text, not {value!r}")
    if "address" not in entry:
        raise UserError(f"{where}.address: is missing; that of Ray's dashboard, such as http://127.0.0.1:8265")
    token_file = Path(entry["token_file"]).expanduser() if "token_file" in entry else None
    if token_file is not None and not token_file.is_absolute():
        raise UserError(f"{where}.token_file: must be absolute or begin with ~, not {entry['token_file']!r}")
    try:
        return Cluster(name, entry["address"], token_file, entry.get("output_dir"), entry.get("tracking_uri"))
    except ValueError as error:
        raise UserError(f"{where}.{error}") from error


def choose_cluster(name: str | None) -> Cluster:
    """The cluster of that name; without a name the only one.

    Raises:
        UserError: there is none of that name, or no single one.
    """
    clusters = load_clusters()
    if not clusters:
        raise UserError(
            f"{clusters_file()} names no cluster yet. Start one on this machine with: transloom cluster up; or write "
            "its entry (docs/clusters.md)"
        )
    if name is None:
        if len(clusters) > 1:
            raise UserError(f"to=: say which cluster: {', '.join(clusters)} ({clusters_file()})")
        return next(iter(clusters.values()))
    if name not in clusters:
        raise UserError(f"to={name}: no such cluster in {clusters_file()}; there are {', '.join(clusters)}")
    return clusters[name]


def write_entry(name: str, entry: dict[str, str] | None) -> None:
    """Puts the entry in the place of the one of that name (None: removes it); all else in the file, such as its
    owner's comments, stays as it is."""
    file = clusters_file()
    text = file.read_bytes().decode() if file.exists() else ""
    # The name's line, and those that are indented under it.
    text = re.sub(rf"(?m)^{re.escape(name)}:.*\n?(?:[ \t]+\S.*\n?)*", "", text)
    if entry is not None:
        text += "" if not text or text.endswith("\n") else "\n"
        text += yaml.safe_dump({name: entry}, sort_keys=False)
    make_private_folder(file.parent)
    with atomic_write(file) as opened:
        opened.write(text.encode())


def write_private(file: Path, text: str) -> None:
    """Writes a file that only its owner can read, at no moment others."""
    make_private_folder(file.parent)
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as opened:
        opened.write(text.encode())


def keep_ray_token_private() -> None:
    """Ray makes a token of its own for the clusters that it starts by itself, in a file that everybody can read. Here
    it is made first, or taken from others."""
    file = Path.home() / ".ray" / "auth_token"
    with suppress(PermissionError):  # Ray says what it lacks
        if file.exists():
            file.chmod(0o600)
            return
        fresh = file.with_name(f"{file.name}-{secrets.token_hex(4)}")
        write_private(fresh, secrets.token_hex(32))
        with suppress(FileExistsError):  # another command was faster: its token counts
            os.link(fresh, file)
        fresh.unlink()


def make_private_folder(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
