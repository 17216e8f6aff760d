"""Checks that a cluster's nodes have the same versions of libraries and the same output folder. The module is light to
import, since every node imports it before a job begins."""

import platform
import secrets
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.tokenizers import DEFAULT, SCORING_LIBRARY, load_tokenizer

LIBRARIES = ("deepspeed", "mlflow", "numpy", "ray", "safetensors", SCORING_LIBRARY, "sentencepiece", "torch")


def versions() -> dict[str, str | None]:
    """The versions of Python and of each library here; None for a missing library."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name).partition("+")[0]  # without suffixes such as +cpu
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def examine_node(marker: str, tokenize: str = DEFAULT) -> dict[str, Any]:
    """Examines the node: its versions, and the faults (None: no fault) of the scores' tokenizer and of the output
    folder, in which the file `marker` must contain its own name."""
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
        here: versions on the machine of the job's command.
        nodes: by address, the results of `examine_node`.
        root: the output folder.
    Raises:
        UserError: a node could not take part; names the node.
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
    """The versions `here` that differ from those `there`, on the machine that a job came from, in words; "" if none."""
    names = [name for name in there if there[name] != here.get(name)]
    return ", ".join(f"{name} {here.get(name) or 'missing'} (there {there[name] or 'missing'})" for name in names)
