"""Files behind fsspec URLs (s3://, gs://, https://, file://, …): single files fetched, folders copied there and back.

A folder in a storage has a marker, the file that was written last: `manifest.json` of a stage, a checkpoint or a
snapshot. It is uploaded last and removed first: a folder without one is an upload that was not finished. What is
fetched is held against the hashes in its marker. Credentials come from the environment, as the protocol's library looks
for them; addresses are printed without what may be secret in them.
"""

import errno
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from transloom.pipeline import untrusted
from transloom.pipeline.disk import explain_full_disk
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, damaged_files, hash_of, read_json, sealed_folder, write_json
from transloom.pipeline.progress import Progress, no_progress
from transloom.pipeline.secrets import redacted

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 4, 20, 2
VERSION_KEYS = ("ETag", "etag", "md5Hash", "LastModified", "Last-Modified", "last_modified", "mtime", "created", "size")
GLOB = frozenset("*?[")

log = logging.getLogger(__name__)


class Damaged(Exception):
    """A folder in a storage whose files are not what its marker says; the argument says where and which."""


def is_url(path: str | None) -> bool:
    return path is not None and "://" in path


@contextmanager
def explained(key: str, url: str) -> Iterator[None]:
    """Turns what goes wrong with a URL into a UserError that begins with the setting's name; a full disk here and
    whatever a person was told already pass through."""
    place = f"{key}: {redacted(url)}"
    try:
        yield
    except UserError:
        raise
    except Damaged as damage:
        raise UserError(f"{key}: {damage}") from damage
    except ImportError as error:
        needs = "pip install s3fs" if url.startswith(("s3:", "s3a:")) else str(error)
        raise UserError(f"{place}: needs a package that is not installed here: {needs}") from error
    except FileNotFoundError as error:
        raise UserError(f"{place}: is not there ({_said(error)}). Check the names of bucket and folder") from error
    except Exception as error:  # every protocol's library has its own
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        if isinstance(error, ValueError) and "Protocol not known" in str(error):
            raise UserError(f"{place}: no such protocol; s3://, gs://, https:// and file:// are some") from error
        if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
            raise UserError(
                f"{place}: access is refused ({_said(error)}). Set the login in the environment "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws, for S3), and see that it may read and write"
            ) from error
        raise UserError(
            f"{place}: can't be reached or used ({_said(error)}). Check the address, the network, and for a server "
            "of your own AWS_ENDPOINT_URL"
        ) from error


def _said(error: BaseException) -> str:
    text = " ".join(redacted(str(error)).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check(url: str, key: str = "storage") -> None:
    """Whether a storage can be used: writes, reads and deletes a small object.

    Raises:
        UserError: it can't.
    """
    with explained(key, url):
        fs, root = _open(url)
        path, content = f"{root}/.transloom-check-{secrets.token_hex(4)}", b"written to see whether it can be"
        fs.pipe_file(path, content)
        found = fs.cat_file(path)
        fs.rm_file(path)
        if found != content:
            raise UserError(f"{key}: {redacted(url)}: gives back something else than what was written")


def fetch_file(url: str, folder: Path, key: str, progress: Progress = no_progress) -> Path:
    """A local copy of the file at the URL, or of the one with .gz behind its name where only that exists; fetched again
    only when it has changed there (by its ETag, date and size).

    Args:
        folder: of the copies; each lies in a folder of its own, by the hash of its URL.
        key: the setting that names the file, for messages.
    Raises:
        UserError: there is neither, or they can't be reached.
    """
    with explained(key, url), explain_full_disk(folder):
        fs, path = _open(url)
        fs.invalidate_cache()
        suffix = ""
        try:
            info = fs.info(path)
        except FileNotFoundError as error:
            _raise_what_else_it_is(error)
            suffix = ".gz"
            try:
                info = fs.info(f"{path}.gz")
            except FileNotFoundError as error:
                raise UserError(f"{key}: no such file: {redacted(url)} (nor {redacted(url)}.gz)") from error
        if info.get("type") == "directory":
            raise UserError(f"{key}: {redacted(url)} is a folder: name a file in it")
        name = f"{PurePosixPath(urlsplit(url).path).name or 'file'}{suffix}"
        copy = folder / hash_of(url)[:12] / name
        record = copy.with_name("source.json")
        version = {name: str(info[name]) for name in VERSION_KEYS if info.get(name) is not None}
        if version and copy.exists() and record.exists() and read_json(record).get("version") == version:
            return copy
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary = copy.with_name(f"{name}.tmp-{os.getpid()}")
        try:
            fs.get_file(f"{path}{suffix}", str(temporary), callback=_callback(f"fetching {name} (MB)", progress))
            if info.get("size") not in (None, temporary.stat().st_size):
                raise UserError(f"{key}: {redacted(url)} came incomplete; give the command again")
            os.replace(temporary, copy)
        finally:
            temporary.unlink(missing_ok=True)
        write_json(record, {"url": redacted(url), "version": version})
        return copy


def matching_urls(pattern: str, key: str) -> list[str]:
    """The URLs of the files that match a pattern of file names, sorted.

    Args:
        key: the setting of the pattern, for messages.
    Raises:
        UserError: nothing matches, or the storage can't be reached.
    """
    with explained(key, pattern):
        fs, path = _open(pattern)
        fs.invalidate_cache()
        matches = sorted(str(fs.unstrip_protocol(str(match))) for match in fs.glob(path))
        if not matches:
            raise UserError(f"{key}: no file matches {redacted(pattern)}")
        return matches


def _raise_what_else_it_is(error: FileNotFoundError) -> None:
    """fsspec says of web servers that a file is not there, whatever went wrong; the cause knows."""
    cause = error.__cause__
    is_other = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    if cause is not None and (is_other or getattr(cause, "status", 404) != 404):
        raise cause


def inside(folder: Path, name: str) -> Path:
    """The path of a file whose name a storage gives.

    Raises:
        Damaged: the path does not lie below `folder`: the name is absolute, climbs by "..", or passes a link.
    """
    try:
        return untrusted.inside(folder, name)
    except untrusted.NotReadable as error:
        raise Damaged(f"the name {name!r} in a storage leads out of {folder}") from error


def listing(url: str) -> dict[str, int]:
    """The files below a folder: by their names in it, their sizes in bytes. A name that leads out of the folder (an S3
    key with a double slash is an absolute path) is left out, with a warning."""
    fs, root = _open(url)
    fs.invalidate_cache()
    base = f"{root}/"
    found: dict[str, Any] = fs.find(root, detail=True)  # type: ignore[assignment]
    names = {path.removeprefix(base): info["size"] for path, info in found.items() if path.startswith(base)}
    harmless = {}
    for name, size in names.items():
        try:
            inside(Path("anywhere"), name)
            harmless[name] = size
        except Damaged:
            log.warning("%s: the file named %r leads out of its folder and is left there", redacted(url), name)
    return harmless


def read(url: str) -> bytes:
    fs, path = _open(url)
    return fs.cat_file(path)  # type: ignore[return-value]


def push_file(file: Path, url: str) -> None:
    fs, path = _open(url)
    fs.put_file(str(file), path)


def push(folder: Path, url: str, marker: str = MANIFEST, progress: Progress = no_progress) -> bytes:
    """Copies a finished folder there, its marker last; what was there under this name is replaced.

    Returns:
        the marker's bytes.
    Raises:
        FileNotFoundError: the folder, or the bucket, is gone.
        Exception: whatever the storage answers.
    """
    fs, root = _open(url)
    content = (folder / marker).read_bytes()
    _remove_file(fs, f"{root}/{marker}")
    for file in _whole_files(folder):
        name = file.relative_to(folder).as_posix()
        if name == marker:
            continue
        fs.put_file(str(file), f"{root}/{name}", callback=_callback(f"storing {folder.name}/{name} (MB)", progress))
    fs.pipe_file(f"{root}/{marker}", content)
    return content


def _whole_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and ".tmp" not in path.name)


def is_pushed(folder: Path, url: str, marker: str = MANIFEST) -> bool:
    """Whether the storage has this very folder, as far as can be told without reading its large files."""
    there = listing(url)
    here = {file.relative_to(folder).as_posix(): file.stat().st_size for file in _whole_files(folder)}
    if marker not in there or not here.items() <= there.items():
        return False
    return read(f"{url}/{marker}") == (folder / marker).read_bytes()


def pull(url: str, folder: Path, marker: str = MANIFEST, progress: Progress = no_progress) -> bool:
    """Fetches a folder that the storage has and this machine has not, verified by its marker; False where there is
    none.

    Raises:
        Damaged: a file is missing or has another SHA-256 than what the marker says, also when fetched once more.
        Exception: whatever the storage answers.
    """
    files = listing(url)
    if marker not in files:
        return False
    with explain_full_disk(folder), sealed_folder(folder, is_kept=(folder / marker).exists) as temporary:
        for name in files:
            file = inside(temporary, name)
            pull_file(f"{url}/{name}", file, f"fetching {folder.name}/{name} (MB)", progress)
        for name in trouble(temporary, marker):
            file = inside(temporary, name)  # this name is the marker's, which may be anybody's
            with suppress(FileNotFoundError):
                pull_file(f"{url}/{name}", file, f"fetching {folder.name}/{name} again (MB)", progress)
        if wrong := trouble(temporary, marker):
            raise Damaged(f"{redacted(url)} is damaged: {', '.join(wrong)} not as written")
    return True


def pull_file(url: str, file: Path, what: str = "", progress: Progress = no_progress) -> None:
    fs, path = _open(url)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.tmp-{os.getpid()}")
    try:
        fs.get_file(path, str(temporary), callback=_callback(what, progress))
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def trouble(folder: Path, marker: str) -> list[str]:
    """Files that are missing, or not what the marker says was written."""
    try:
        about = read_json(folder / marker)
        files = about.get("files")
        if files is None:  # a model's config.json
            files = {name: {"sha256": sha256} for name, sha256 in about.get("sha256", {}).items()}
        return [name for name, _ in damaged_files(folder, files)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [marker]


def remove(url: str, marker: str = MANIFEST) -> None:
    """Removes a folder from the storage, its marker first: half removed it is none."""
    fs, root = _open(url)
    _remove_file(fs, f"{root}/{marker}")
    for name in listing(url):
        _remove_file(fs, f"{root}/{name}")


def _remove_file(fs: "AbstractFileSystem", path: str) -> None:
    with suppress(FileNotFoundError):
        fs.rm_file(path)


def _open(url: str) -> "tuple[AbstractFileSystem, str]":
    from fsspec.core import url_to_fs  # a storage is rarely used, and its libraries are not small

    protocol = url.partition("://")[0]
    fs, path = url_to_fs(url, **_options(protocol))
    if protocol in ("s3", "s3a"):
        fs.retries = ATTEMPTS  # s3fs' own, each of which are as many of botocore's
    return fs, path.rstrip("/")


def _options(protocol: str) -> dict[str, Any]:
    """Limits, so that what does not answer is said in seconds; by default some wait for minutes."""
    if protocol in ("s3", "s3a"):
        limits = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"total_max_attempts": ATTEMPTS},
        }
        return {"config_kwargs": limits}
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        limits = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        return {"client_kwargs": {"timeout": limits, "trust_env": True}}
    return {"auto_mkdir": True} if protocol in ("file", "local") else {}


def _callback(what: str, progress: Progress) -> Any:
    """fsspec's progress in bytes as ours in megabytes."""
    from fsspec.callbacks import Callback

    class Megabytes(Callback):
        def call(self, *_: Any, **__: Any) -> None:
            progress(what, self.value // 1_000_000, (self.size or 0) // 1_000_000)

    return Megabytes()
