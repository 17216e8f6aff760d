"""COMET (Rei et al. 2020): a neural metric, by its own package's command, in a process and an environment of its own.

Its package can't be installed beside this project's versions, and its checkpoints are pickles, which run code when they
are loaded: neither comes into this process.
"""

import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, sha256_file
from transloom.pipeline.secrets import redacted

COMMAND = "comet-score"
SECONDS_BETWEEN_LOOKS = 0.5
SHOWN_OF_OUTPUT = 12  # lines
# What it is not told: logins, and where this project's code lies, for its environment has its own.
_WITHHELD = re.compile(r"PYTHON(PATH|HOME)$|(MLFLOW|RAY|AWS)_|.*(TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|_KEY)", re.I)
_BATCHES = re.compile(rb"(\d+)/(\d+) \[")  # of a bar of tqdm's: done, and all there are


@dataclass(frozen=True)
class Comet:
    """A checkpoint, and the command that scores with it."""

    checkpoint: Path
    command: Path

    def signature(self) -> str:
        """What tells scores apart that can't be compared: the checkpoint by its contents, and the package's version."""
        version = _version(self.command) or "of unknown version"
        return f"{self.checkpoint.name} sha256:{sha256_file(self.checkpoint)} unbabel-comet {version}"


def find_comet(checkpoint: str, command: str = COMMAND) -> Comet:
    """What is to score, before anything is scored.

    Args:
        command: a path, or a name that is looked up in PATH.
    Raises:
        UserError: the checkpoint is no file of COMET's, or there is no such command.
    """
    path = Path(os.path.abspath(checkpoint))
    hparams = path.parents[1 if len(path.parents) > 1 else 0] / "hparams.yaml"  # where COMET looks
    if path.is_dir():
        raise UserError(f"comet={checkpoint}: is a folder; name the file in it: checkpoints/model.ckpt")
    if not path.is_file():
        raise UserError(
            f"comet={checkpoint}: no such file. Name a checkpoint's file; nothing is downloaded here. A model of the "
            "hub's: hf download Unbabel/wmt22-comet-da --local-dir wmt22-comet-da (hf is in COMET's environment), then "
            "comet=wmt22-comet-da/checkpoints/model.ckpt"
        )
    if path.suffix != ".ckpt":
        raise UserError(f"comet={checkpoint}: must end in .ckpt; COMET takes any other for the name of a hub's model")
    if not hparams.is_file():
        raise UserError(f"comet={checkpoint}: COMET needs {hparams}, too; download the model's whole folder")
    found = shutil.which(command)
    if found is None:
        raise UserError(
            f"comet_command={command}: no such command. COMET needs an environment of its own: python -m venv comet && "
            "comet/bin/pip install unbabel-comet 'setuptools<81', then comet_command=comet/bin/comet-score"
        )
    return Comet(path, Path(os.path.abspath(found)))


def _version(command: Path) -> str | None:
    """Of the package that the command is of, as it is installed beside it; None where that can't be seen."""
    prefix = command.resolve().parent.parent
    installed = {path.name for path in prefix.glob("lib*/python3*/*-packages/unbabel_comet-*.dist-info")}
    return installed.pop().removeprefix("unbabel_comet-").removesuffix(".dist-info") if len(installed) == 1 else None


def score_sentences(
    comet: Comet,
    systems: Mapping[str, Sequence[str]],
    sources: Sequence[str],
    references: Sequence[str],
    log: Path,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, list[float]]:
    """Each sentence's COMET by system, higher is better: one process for all, which loads the model once.

    Args:
        systems: translations by the system's name, as many as there are sources and references.
        log: where what the process says is kept, without passwords in addresses.
        progress: is told again and again how many sentences are scored, and of how many; 0 until the model is loaded.
    Raises:
        UserError: the command failed, or wrote what can't be understood.
    """
    with tempfile.TemporaryDirectory(prefix="transloom-comet-") as name:
        folder = Path(name)
        total = len(references) * len(systems)
        files = {system: f"system-{place}" for place, system in enumerate(systems)}
        texts = {"source": sources, "reference": references} | {files[system]: systems[system] for system in systems}
        for file, lines in texts.items():
            # COMET reads with Python's universal newlines: it would see a line's end in a lone carriage return.
            text = "".join(line.replace("\r", " ") + "\n" for line in lines)
            (folder / file).write_bytes(text.encode())
        words = [str(comet.command), "-s", "source", "-r", "reference", "-t", *files.values()]
        words += ["--model", str(comet.checkpoint), "--only_system", "--to_json", "scores.json"]
        code = _run(words, folder, len(systems), lambda share: progress(round(share * total), total))
        said = redacted((folder / "output").read_bytes().decode(errors="replace"))
        log.write_text(said, encoding="utf-8")
        if code != 0:
            last = "\n".join([line for line in re.split(r"[\r\n]+", said) if line.strip()][-SHOWN_OF_OUTPUT:])
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
            hint = (
                "\nIt fetches nothing, unless HF_HUB_OFFLINE=0 stands before the command." if "hugging" in last else ""
            )
            raise UserError(f"{comet.command} {how}. All that it said is in {log}; its last lines:\n{last}{hint}")
        return _read(folder / "scores.json", files, len(references), log)


def _run(words: Sequence[str], folder: Path, systems: int, progress: Callable[[float], None]) -> int:
    """The command's exit code. It runs in the folder and its output goes there; it ends when this is interrupted."""
    environment = {name: value for name, value in os.environ.items() if not _WITHHELD.match(name)}
    # Its encoder's tokenizer comes from the hub's cache on this machine; who wants it fetched says so.
    environment = {"HF_HUB_OFFLINE": "1", **environment, "PYTHONUNBUFFERED": "1"}
    with open(folder / "output", "wb") as output:
        try:
            process = subprocess.Popen(
                words,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group, for it has processes of its own that are to end with it
            )
        except OSError as error:
            raise UserError(f"comet_command={words[0]}: can't be run: {error.strerror}") from error
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(SECONDS_BETWEEN_LOOKS)
            progress(_share_done((folder / "output").read_bytes(), systems))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _share_done(output: bytes, systems: int) -> float:
    """From 0 to 1, by the bars that COMET draws: one for each system, one after the other."""
    begun, last, share = 0, 1.0, 0.0
    for done, of in _BATCHES.findall(output):
        share = int(done) / max(1, int(of))
        begun += share < last or not begun
        last = share
    return min(1.0, (begun - 1 + share) / systems) if begun else 0.0


def _read(file: Path, files: Mapping[str, str], sentences: int, log: Path) -> dict[str, list[float]]:
    """The sentences' scores by system from what --to_json writes; `files` are the names that it has for the systems."""
    try:
        found = read_json(file)
        scores = {name: [float(sentence["COMET"]) for sentence in found[its]] for name, its in files.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"COMET ended well, but its scores can't be read ({type(error).__name__}: {error}). This works with "
            f"unbabel-comet 2.2.7; what it said is in {log}"
        ) from error
    for name, its in scores.items():
        if len(its) != sentences:
            raise UserError(f"COMET scored {len(its):,} sentences of {name}, and there are {sentences:,}")
        if bad := next((line for line, score in enumerate(its, 1) if not math.isfinite(score)), None):
            raise UserError(f"COMET gave {its[bad - 1]} to line {bad} of {name}: is the checkpoint whole?")
    return scores
