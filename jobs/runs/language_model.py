"""Shared by the commands of language models: finding and loading a model, output files, progress, suggestions."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from transloom.jobs.remote.package import submission
from transloom.jobs.runs.model import computing_device, find_model, tell_other_precision
from transloom.jobs.terminal.console import StatusLine, counter
from transloom.jobs.terminal.printable import printable
from transloom.pipeline.errors import UserError
from transloom.pipeline.progress import Progress, no_progress
from transloom.pipeline.run_folder import MODEL_CONFIG

if TYPE_CHECKING:
    from transloom.pipeline.data.prompts import Template
    from transloom.pipeline.data.text_tokenizer import TextTokenizer
    from transloom.pipeline.generate.language_model import LanguageModel
    from transloom.pipeline.generate.prompt_reader import PromptReader
    from transloom.pipeline.model_folder import LoadedLanguageModel


def open_language_model(name_or_path: str, root: Path, found: Path | None = None) -> "LoadedLanguageModel":
    """The model of a run, of a model folder, or of a Hugging Face folder, ready to compute: on a GPU if there is one.
    On a CPU the weights are packed, and in fp32 if the CPU has no instructions for bf16.

    Args:
        root: the output folder, in which runs are found by name.
        found: the model's folder, if `find_model` was asked already.
    Raises:
        UserError: there is no such model; the model translates; the files are damaged or do not fit each other.
    """
    from transloom.model.decoder_only import DecoderOnly
    from transloom.model.packed_linear import pack_linears
    from transloom.pipeline.model_folder import MASKED, is_language_model, load_language_model, read_about

    folder = found or find_model(os.path.expanduser(name_or_path), root)
    if not is_language_model(folder):
        use = {
            "prompt_response": f"is an encoder-decoder, which only responds: transloom generate {name_or_path} <text>",
            "classification": f"labels texts, and continues none: transloom classify {name_or_path} < your_text",
            MASKED: f"fills masks, and continues no text; a classifier begins with it: train.initial={name_or_path}",
        }
        translates = f"translates, and is no language model: transloom translate {name_or_path} < your_text"
        raise UserError(f"{name_or_path} {use.get(read_about(folder).get('task', ''), translates)}")
    device, dtype = computing_device()
    loaded = load_language_model(folder, device, dtype)
    tell_other_precision(dtype, loaded.metadata.get("precision"))
    return replace(loaded, model=cast(DecoderOnly, pack_linears(loaded.model)))


def open_responder(name_or_path: str, root: Path, folder: Path) -> "tuple[LanguageModel | PromptReader, TextTokenizer]":
    """The model that `generate` samples: as of `open_language_model`, or an encoder-decoder that reads prompts.

    Raises:
        UserError: see `open_language_model`.
    """
    from transloom.model.packed_linear import pack_linears
    from transloom.pipeline.data.text_tokenizer import load_text_tokenizer
    from transloom.pipeline.generate.prompt_reader import PromptReader
    from transloom.pipeline.model_folder import is_language_model, load_model, read_about

    if is_language_model(folder) or read_about(folder).get("task") != "prompt_response":
        loaded = open_language_model(name_or_path, root, folder)
        return loaded.model, loaded.tokenizer
    device, dtype = computing_device()
    model, tokenizer, about = load_model(folder, device, dtype, load_text_tokenizer)
    tell_other_precision(dtype, about.get("precision"))
    return PromptReader(pack_linears(model), tokenizer.end_of_text), tokenizer


def response_settings(folder: Path) -> "tuple[Template | None, dict[str, str]]":
    """The template of a model's prompts, and how its responses are sampled where a command does not say: as in its
    evaluation. None and nothing for a model of other texts.

    Args:
        folder: see `find_model`.
    Raises:
        UserError: its config.json is damaged.
    """
    from transloom.pipeline.data.prompts import Template
    from transloom.pipeline.huggingface import is_huggingface
    from transloom.pipeline.model_folder import read_about

    about = {} if is_huggingface(folder) else read_about(folder)
    if "template" not in about:
        return None, {}
    try:
        template = Template.of(about["template"])
    except ValueError as error:
        raise UserError(f"{folder / MODEL_CONFIG} does not describe a model: {error}") from None
    return template, {"temperature": "0", "max_new_tokens": str(about.get("max_response_tokens", 64))}


def output_file(key: str, value: str) -> Path:
    """The file that a command's word `key=value` names; of a symbolic link the one that it leads to.

    Raises:
        UserError: the name is empty, or is a folder's.
    """
    file = Path(os.path.expanduser(value))
    if not value or file.is_dir():
        raise UserError(f"{key}={value}: must name a file, not a folder")
    return file.resolve() if file.is_symlink() and file.is_file() else file  # /dev/stdout may lead to a pipe


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """A line of progress with rate and remaining time on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    status = StatusLine(sys.stderr)
    count = counter(status)

    def progress(what: str, done: int, total: int, note: str = "") -> None:
        count(what, done, total)
        if done >= total:
            status.clear()  # before the results, which may be printed on the same terminal

    try:
        yield progress
    finally:
        status.clear()


def suggest(*commands: str) -> None:
    """Prints sensible next commands on standard error, if that is a terminal; standard output is for the result."""
    if sys.stderr.isatty() and not submission():
        print("\n".join(["\nNext:", *(f"  {printable(command)}" for command in commands)]), file=sys.stderr)
