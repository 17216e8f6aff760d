"""A run in a storage: what is finished is copied there in the background, what is missing here is fetched from there.

    <storage>/corpora/<name>-<hash>/  tokenizers/<hash>/  shards/<hash>/     finished stages
    <storage>/runs/<run>/                                                    as in the output folder

The storage mirrors the run's folder: checkpoints and snapshots that are removed here are removed there, once a newer
one is there. Nothing waits for it but the end of a command.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from transloom.pipeline.disk import explain_full_disk
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, read_json, write_json
from transloom.pipeline.progress import Progress, no_progress
from transloom.pipeline.run_folder import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    EVALUATION_FOLDER,
    INITIAL_FOLDER,
    LOCK_FILE,
    MODEL_CONFIG,
    MODEL_FOLDER,
    PREPARED_FILE,
    PROGRESS_FILE,
    RAY_FOLDER,
    RESULT_FILE,
    RUNS_FOLDER,
    STAGES,
    STOP_FILE,
    WEIGHTS_FOLDER,
    WORKERS_FOLDER,
)
from transloom.pipeline.secrets import redacted
from transloom.pipeline.storage import files as storage
from transloom.pipeline.storage.files import Damaged
from transloom.pipeline.tracking.spool import SPOOLS

# What is copied as a whole, and the file in it that was written last.
MARKERS = {
    CHECKPOINTS_FOLDER: MANIFEST,
    WEIGHTS_FOLDER: MANIFEST,
    INITIAL_FOLDER: MANIFEST,
    MODEL_FOLDER: MODEL_CONFIG,
    EVALUATION_FOLDER: RESULT_FILE,
}
UNIT = re.compile(
    rf"(({CHECKPOINTS_FOLDER}|{WEIGHTS_FOLDER}|{INITIAL_FOLDER})/step_\d+|({MODEL_FOLDER})|({EVALUATION_FOLDER})/[\w.-]+)/.+"
)
# Of this machine alone: locks, Ray's own files, how far the upload to MLflow has come; and what is still being written.
NOT_STORED = re.compile(
    rf"{RAY_FOLDER}/.*|{WORKERS_FOLDER}/.*|{LOCK_FILE}|{STOP_FILE}|{re.escape(PROGRESS_FILE)}|.*\.uploaded|.*\.tmp\b.*"
)
POLL_SECONDS = 2.0
SECONDS_BETWEEN_FILES = 60.0  # uploads of files that grow, such as the curves, where no checkpoint asks for them
MAX_BACKOFF_SECONDS = 60.0
LAST_ATTEMPTS = 3

log = logging.getLogger(__name__)


class Unit(NamedTuple):
    """A folder that is copied as a whole: where it is, its name in the storage, the file that was written last."""

    folder: Path
    name: str
    marker: str

    @property
    def kind(self) -> str:
        """checkpoints or weights; "" where it is no step."""
        return self.folder.parent.name if self.folder.name.startswith("step_") else ""

    @property
    def step(self) -> int:
        return int(self.folder.name.removeprefix("step_")) if self.kind else -1

    @property
    def is_here(self) -> bool:
        return (self.folder / self.marker).exists()


class Fetched(NamedTuple):
    """What came of a run from its storage.

    Attributes:
        damaged: names of what is damaged there and was passed over.
        step: of the newest checkpoint that came; -1: none did.
    """

    damaged: list[str]
    files: int = 0
    size_bytes: int = 0
    step: int = -1


def fetch_stage(url: str, folder: Path, progress: Progress = no_progress) -> bool:
    """Fetches a finished stage; False where the storage has none, or a damaged one, so that it is to be made.

    Raises:
        UserError: the storage can't be read.
    """
    with storage.explained("storage", url):
        try:
            return storage.pull(f"{url}/{folder.parent.name}/{folder.name}", folder, progress=progress)
        except Damaged as damage:
            log.warning("%s. It is made again", damage)
            return False


def push_stages(url: str, folders: Sequence[Path], progress: Progress = no_progress) -> None:
    """Copies finished stages that are not in the storage yet.

    Raises:
        UserError: the storage can't be written.
    """
    with storage.explained("storage", url):
        for folder in folders:
            place = f"{url}/{folder.parent.name}/{folder.name}"
            if not storage.is_pushed(folder, place):
                storage.push(folder, place, progress=progress)


def fetch_run(url: str, folder: Path, identity: str | None = None, progress: Progress = no_progress) -> Fetched:
    """Fetches what the storage has of a run and its folder has not. Where the storage has a later checkpoint, the files
    beside the checkpoints come from there too, for another machine has gone on with the run.

    Args:
        folder: <output folder>/runs/<name>.
        identity: what the run must be, where it is not here yet; None: anything.
    Raises:
        UserError: the storage can't be read, it holds another run of this name, or checkpoints none of which verifies.
    """
    place = f"{url}/{RUNS_FOLDER}/{folder.name}"
    with storage.explained("storage", url), explain_full_disk(folder):
        names = storage.listing(place)
        if PREPARED_FILE not in names:
            return Fetched([])
        there = json.loads(storage.read(f"{place}/{PREPARED_FILE}"))
        record = folder / PREPARED_FILE
        is_here = record.exists()
        expected = read_json(record)["identity"] if is_here else identity
        if expected not in (None, there["identity"]):
            raise UserError(
                f"name: {redacted(place)} is a run of this name that was made with other settings or data; choose "
                "another name, or another storage"
            )
        units = _units(folder, names)
        came: list[str] = []
        if not is_here or _newest(units) > _newest(_units(folder, _files(folder))):
            came += _fetch_files(place, folder, [name for name in names if not UNIT.fullmatch(name)], is_here)
        damaged, new = [], []
        # The newest checkpoint comes last: until it is here, all of this is done again.
        for unit in sorted(units, key=lambda unit: (unit.kind == CHECKPOINTS_FOLDER, unit.step)):
            if not unit.is_here:
                try:
                    storage.pull(f"{url}/{unit.name}", unit.folder, unit.marker, progress)
                    new.append(unit)
                    within = f"{unit.folder.relative_to(folder).as_posix()}/"
                    came += [name for name in names if name.startswith(within)]
                except Damaged as damage:
                    log.warning("%s. It is passed over", damage)
                    damaged.append(unit.name)
        if _newest(units) >= 0 and _newest(_units(folder, _files(folder))) < 0:
            raise UserError(
                f"storage: no checkpoint in {redacted(place)} can be used; damaged: {', '.join(damaged)}. Restore "
                "one from a copy, or remove the run there to start again from step 0"
            )
        if not is_here:  # last, for with it the run is here
            root = folder.parent.parent
            stages = {stage: str(storage.inside(root / of, Path(there[stage]).name)) for stage, of in STAGES.items()}
            write_json(record, {**there, **stages})
    return Fetched(damaged, len(came), sum(names[name] for name in came), _newest(new))


def _fetch_files(place: str, folder: Path, names: Sequence[str], is_here: bool) -> list[str]:
    own = (PREPARED_FILE, CONFIG_FILE) if is_here else (PREPARED_FILE,)
    wanted = [name for name in names if name not in own and not NOT_STORED.fullmatch(name)]
    for name in wanted:
        storage.pull_file(f"{place}/{name}", storage.inside(folder, name))
    for name in SPOOLS:  # how far it was uploaded to MLflow, is told of the file that is replaced
        (folder / name).with_suffix(".uploaded").unlink(missing_ok=True)
    return wanted


class Mirror:
    """Copies what is finished of a run into the storage, in a thread (`start`) or at once (`sync`). What is there is
    seen from the storage itself, so that after any failure, also of another process, the rest is caught up."""

    def __init__(self, url: str, folder: Path, stages: Sequence[Path], damaged: Iterable[str] = ()) -> None:
        """
        Args:
            stages: folders of the stages that the run is made from.
            damaged: names of units that the storage has, and that are to be replaced when there are good ones.
        """
        self._url = url
        self._place = f"{url}/{RUNS_FOLDER}/{folder.name}"
        self._folder = folder
        self._stages = [Unit(stage, f"{stage.parent.name}/{stage.name}", MANIFEST) for stage in stages]
        self._damaged = set(damaged)
        self._stored: dict[str, bytes] = {}  # by the unit's name, the marker that the storage has
        self._refused: dict[str, bytes] = {}  # likewise, the marker of what is damaged here
        self._files: dict[str, tuple[int, int]] = {}  # by name, size and time of what was copied
        self._files_at = float("-inf")
        self._steps_there: set[str] | None = None
        self._progress: Progress = no_progress
        self._trouble: str | None = None
        self.copied = 0  # units
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="storage", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, progress: Progress = no_progress) -> str | None:
        """Waits until everything is in the storage; what is wrong where that can't be had."""
        self._progress = progress
        self._closing.set()
        self._thread.join()
        return self._trouble

    def sync(self, closing: bool = True) -> None:
        """Copies everything that is not there yet, newest first.

        Raises:
            UserError: the storage does not take it.
        """
        with storage.explained("storage", self._url):
            while unit := next((one for one in self._in_order() if self._is_missing(one)), None):
                self._push_files()  # first, so that a checkpoint has the curves that lead to it
                self._push(unit)
            if closing or time.monotonic() - self._files_at >= SECONDS_BETWEEN_FILES:
                self._push_files()
            self._remove_gone()

    def _follow(self) -> None:
        failures = attempts = 0
        while True:
            closing = self._closing.is_set()
            try:
                self.sync(closing)
            except Exception as error:
                if failures == 0:
                    log.warning("%s. Nothing waits for it; it is tried again", error)
                failures += 1
                attempts += closing
                if attempts == LAST_ATTEMPTS:
                    self._trouble = str(error)
                    return
                if closing:
                    time.sleep(2.0**attempts)
                else:
                    self._closing.wait(min(MAX_BACKOFF_SECONDS, 2.0 ** min(failures, 10)))
                continue
            if failures:
                log.warning("the storage works again; what was missing is there now")
            failures = 0
            if closing:
                return
            self._closing.wait(POLL_SECONDS)

    def _in_order(self) -> list[Unit]:
        """The newest checkpoint is what would be missed most, older ones least."""
        units = sorted(_units(self._folder, _files(self._folder)), key=lambda unit: -unit.step)
        checkpoints = [unit for unit in units if unit.kind == CHECKPOINTS_FOLDER]
        others = [unit for unit in units if unit.kind != CHECKPOINTS_FOLDER]
        return [*checkpoints[:1], *others, *self._stages, *checkpoints[1:]]

    def _is_missing(self, unit: Unit) -> bool:
        try:
            marker = (unit.folder / unit.marker).read_bytes()
            if unit.name not in self._stored and unit.name not in self._damaged:
                is_there = storage.is_pushed(unit.folder, f"{self._url}/{unit.name}", unit.marker)
                self._stored[unit.name] = marker if is_there else b""
            return marker not in (self._stored.get(unit.name), self._refused.get(unit.name))
        except FileNotFoundError:
            if unit.is_here:
                raise
            return False  # it was removed meanwhile

    def _push(self, unit: Unit) -> None:
        try:
            marker = (unit.folder / unit.marker).read_bytes()
            if wrong := storage.trouble(unit.folder, unit.marker):  # what the storage has may be sound
                log.warning("%s is damaged (%s), and is not copied to the storage", unit.folder, ", ".join(wrong))
                self._refused[unit.name] = marker
                return
            self._stored[unit.name] = storage.push(unit.folder, f"{self._url}/{unit.name}", unit.marker, self._report)
            self.copied += 1
        except FileNotFoundError:
            if unit.is_here:
                raise

    def _report(self, what: str, done: int, total: int, note: str = "") -> None:
        self._progress(what, done, total)  # a person watches only when the command waits

    def _push_files(self) -> None:
        for name in sorted(_files(self._folder)):
            if UNIT.fullmatch(name) or NOT_STORED.fullmatch(name):
                continue
            file = self._folder / name
            try:
                state = file.stat()
                seen = (state.st_size, state.st_mtime_ns)
                if self._files.get(name) != seen:
                    storage.push_file(file, f"{self._place}/{name}")
                    self._files[name] = seen
            except FileNotFoundError:
                if file.exists():
                    raise
        self._files_at = time.monotonic()

    def _remove_gone(self) -> None:
        """Removes earlier steps there that are not here, once the newest here is there. Later ones are left: they are
        another machine's."""
        if self._steps_there is None:
            found = (UNIT.fullmatch(name) for name in storage.listing(self._place))
            self._steps_there = {f"{RUNS_FOLDER}/{self._folder.name}/{one[1]}" for one in found if one and one[2]}
        units = _units(self._folder, _files(self._folder))
        for kind in (CHECKPOINTS_FOLDER, WEIGHTS_FOLDER):
            here = {unit.name: unit for unit in units if unit.kind == kind}
            self._steps_there |= {name for name in here if self._stored.get(name)}
            newest = max(here.values(), key=lambda unit: unit.step, default=None)
            if newest is None or not self._stored.get(newest.name):
                continue
            for name in sorted(self._steps_there - here.keys()):
                if Path(name).parent.name == kind and int(name.rpartition("step_")[2]) < newest.step:
                    storage.remove(f"{self._url}/{name}")
                    self._steps_there.discard(name)
                    self._stored.pop(name, None)


def _files(folder: Path) -> Iterator[str]:
    """Names of the files below a folder in which others write and remove."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != RAY_FOLDER and ".tmp" not in name]
        yield from (Path(place, name).relative_to(folder).as_posix() for name in names)


def _units(folder: Path, names: Iterable[str]) -> list[Unit]:
    """The finished units among the files of a run's folder, here or in the storage."""
    found = []
    for name in names:
        unit, _, file = name.rpartition("/")
        if UNIT.fullmatch(name) and file == MARKERS.get(unit.partition("/")[0]):
            found.append(Unit(folder / unit, f"{RUNS_FOLDER}/{folder.name}/{unit}", file))
    return found


def _newest(units: Iterable[Unit]) -> int:
    """The step of the newest checkpoint among them; -1 where there is none."""
    return max((unit.step for unit in units if unit.kind == CHECKPOINTS_FOLDER), default=-1)
