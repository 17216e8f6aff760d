"""What the nodes of a cluster must have alike: versions of libraries, and the output folder. Light to import, since
every node does so before a job begins."""

import platform
import secrets
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluate.tokenizers import DEFAULT, SCORING_LIBRARY, load_tokenizer

LIBRARIES = ("deepspeed", "mlflow", "numpy", "ray", "safetensors", SCORING_LIBRARY, "sentencepiece", "torch")


def versions() -> dict[str, str | None]:
    """Of Python and of each library here; None of one that is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name).partition("+")[0]  # without +cpu and its like
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def examine_node(marker: str, tokenize: str = DEFAULT) -> dict[str, Any]:
    """What a node says of itself: its versions, and what is wrong with the folder of the file `marker`, whose content
    is its name, and with the scores' tokenizer (None: nothing)."""
    path = Path(marker)
    trouble = None
    try:
        if path.read_bytes() != path.name.encode():
            trouble = "is another folder there"
        own = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
        own.write_bytes(b"")
        own.unlink()
    except FileNotFoundError:
        trouble = "is not shared with it"
    except OSError as error:
        trouble = f"can't be written there ({error.strerror})"
    return {"versions": versions(), "storage": trouble, "tokenizer": _tokenizer_trouble(tokenize)}


def _tokenizer_trouble(name: str) -> str | None:
    if name == DEFAULT:
        return None
    try:
        load_tokenizer(name)
    except UserError as error:
        return str(error)
    return None


def refuse_unlike(here: Mapping[str, str | None], nodes: Mapping[str, Mapping[str, Any]], root: Path) -> None:
    """
    Args:
        here: versions of the machine that the job's command runs on.
        nodes: by address, what `examine_node` found.
        root: the output folder.
    Raises:
        UserError: a node could not take part; names it.
    """
    for node, found in nodes.items():
        its = found["versions"]
        if missing := [name for name, version in its.items() if version is None]:
            raise UserError(
                f"the node {node} lacks {', '.join(missing)}: install Transloom's requirements into the environment "
                "that its Ray runs in, with the versions of constraints.txt"
            )
        if unlike := [name for name, version in its.items() if version != here[name]]:
            listed = ", ".join(f"{name} {its[name]}, not {here[name]}" for name in unlike)
            raise UserError(
                f"the node {node} has other versions than the head: {listed}. All machines of a cluster need the same"
            )
        if found.get("tokenizer"):
            raise UserError(f"the node {node}: {found['tokenizer']}")
        if found["storage"]:
            raise UserError(
                f"output_dir: {root} {found['storage']}, says the node {node}. Give an output_dir that all machines "
                "of the cluster share, under the same path"
            )


def differences(there: Mapping[str, str | None], here: Mapping[str, str | None]) -> str:
    """Where `here` has other versions than the machine `there` that a job came from, in words; "" where nowhere."""
    names = [name for name in there if there[name] != here.get(name)]
    return ", ".join(f"{name} {here.get(name) or 'missing'} (there {there[name] or 'missing'})" for name in names)
