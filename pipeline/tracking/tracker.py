"""What stages report to: a tracker that writes to a spool."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transloom.pipeline.disk import explain_full_disk
from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.run_folder import DRIVER_SPOOL, TABLES_FOLDER, TRAINING_SPOOL
from transloom.pipeline.secrets import redacted
from transloom.pipeline.tracking.spool import MetricLog

MAX_PARAM_CHARS = 500
DIGEST_CHARS = 12

log = logging.getLogger(__name__)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"model": {"d_model": 512}} -> {"model.d_model": "512"}"""
    flat: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def as_params(nested: Mapping[str, Any]) -> dict[str, str]:
    """`flatten`, without secrets. Values of over 500 characters are cut, and say so. Redaction is first: half a secret
    is not known as one."""
    return {key: _cut(text) for key, text in redacted(flatten(nested)).items()}


def _cut(text: str) -> str:
    if len(text) <= MAX_PARAM_CHARS:
        return text
    note = f"… (cut, {len(text)} characters)"
    return text[: MAX_PARAM_CHARS - len(note)] + note


class SpoolTracker:
    """Writes what it is told to a spool and leaves the rest to whoever uploads it; needs no mlflow. No method raises
    because of a server or a network, and none waits for one. Whoever opened a tracker closes it.

    Rank 0 makes one on `TRAINING_SPOOL`; the driver's is `MlflowTracker` in uploader.py.
    """

    def __init__(self, run_folder: Path, spool: str = TRAINING_SPOOL) -> None:
        self.run_folder = run_folder.absolute()
        self._spool = MetricLog(self.run_folder / spool, keep_changes=spool == DRIVER_SPOOL)
        self._tables: dict[str, dict[str, Any]] = {}  # those that a full disk did not take
        self.has_added = False  # metrics that were not there

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nested settings, flattened with dots. A value that changes on a resume becomes a tag `resumed.<key>`."""
        self._spool.write({"do": "params", "params": as_params(params)})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._spool.write({"do": "tags", "tags": {key: str(value) for key, value in tags.items()}})

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int,
        model: str | None = None,
        dataset: tuple[str, str] | None = None,
    ) -> None:
        """Points of the run; with `model` (a name given to `log_model`, before or after) also of that model, and with
        `dataset` (name, digest) measured on that one."""
        extra = {"model": model, "dataset": dataset and (dataset[0], dataset[1][:DIGEST_CHARS])}
        if self._spool.append(metrics, step, **{key: value for key, value in extra.items() if value is not None}):
            self.has_added = True

    def log_text(self, text: str, name: str) -> None:
        self._spool.write({"do": "text", "text": text, "name": name})

    def log_table(self, columns: Mapping[str, Sequence[Any]], name: str) -> None:
        """Adds rows to the table `<name>.json`, which lies in the run's folder and shows in the UI. All calls for a
        name have the same columns; a row that is there already is not added again.

        Raises:
            ValueError: if the columns are not of one length, or not those of the rows before.
        """
        path = self.run_folder / TABLES_FOLDER / f"{name}.json"
        table = self._tables.get(name) or (read_json(path) if path.exists() else {"columns": list(columns), "data": []})
        if table["columns"] != list(columns):
            raise ValueError(f"table {name}: columns {list(columns)} added to a table of {table['columns']}")
        for row in redacted([list(row) for row in zip(*columns.values(), strict=True)]):
            if row not in table["data"]:
                table["data"].append(row)
        self._tables[name] = table
        try:
            self._write_tables()
        except OSError as error:
            log.warning("%s can't be written: %s. Its rows are kept in memory; the run goes on", path, error)

    def _write_tables(self) -> None:
        for name in list(self._tables):
            path = self.run_folder / TABLES_FOLDER / f"{name}.json"
            path.parent.mkdir(exist_ok=True)
            write_json(path, self._tables[name])
            del self._tables[name]
            self._spool.write({"do": "table", "path": self._portable(path), "name": f"{name}.json"})

    def flush(self) -> None:
        """Writes what a full disk did not take so far.

        Raises:
            UserError: it still does not.
        """
        with explain_full_disk(self.run_folder):
            self._write_tables()
        self._spool.flush()

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, as it is when the upload gets to it."""
        self._spool.write({"do": "artifact", "path": self._portable(path), "folder": folder})

    def log_figure(self, path: Path) -> None:
        self.log_artifact(path, "figures")

    def log_dataset(self, name: str, digest: str, source: str, counts: Mapping[str, int], context: str) -> None:
        """What the run was fed: `context` is training, validation or test; `digest` a hash of the content, of which
        the first 12 characters are shown."""
        self._spool.write(
            {"do": "dataset", "name": name, "digest": digest[:DIGEST_CHARS], "source": source, "counts": counts}
            | {"context": context}
        )

    def log_model(
        self, name: str, step: int, folder: Path | None = None, params: Mapping[str, Any] | None = None
    ) -> None:
        """A line in the Models tab: a checkpoint (no folder: it stays where it is) or, with the folder's files, an
        exported model. The name is unique in the run and begins with what tells it apart, such as `step-4000`: the
        column is narrow, and another shows the run."""
        self._spool.write(
            {"do": "model", "name": name, "step": step, "folder": folder and self._portable(folder)}
            | {"params": as_params(params or {})}
        )

    def close(self, status: str = "FINISHED") -> None:
        """`status` is the driver's to tell (`MlflowTracker.close`); this only closes the file.

        Raises:
            UserError: as `flush`.
        """
        try:
            self.flush()
        finally:
            self._spool.close()

    def _portable(self, path: Path) -> str:
        """Relative to the run's folder where it lies in it, so that the folder can be moved before it is uploaded."""
        path = path.absolute()
        return str(path.relative_to(self.run_folder) if path.is_relative_to(self.run_folder) else path)
