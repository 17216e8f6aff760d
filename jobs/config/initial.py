"""The settings that follow from `train.initial`: the initial model's own, where a command names no others."""

import dataclasses
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from jobs.config.schema import TASK_SECTIONS
from jobs.terminal.printable import printable
from model.build import architecture_of
from pipeline.data.text_tokenizer import TextTokenizerConfig
from pipeline.errors import UserError
from pipeline.run_folder import CONFIG_FILE, MODEL_CONFIG, MODEL_FOLDER


def follow_initial(settings: DictConfig, named: Collection[str], is_elsewhere: bool = False) -> None:
    """Gives composed settings the model and the tokenizer of `train.initial`, and says so on standard error. The one
    place that decides this, for every task.

    A setting that is named stays. `model=<option>` names the whole model, and a setting of `tokenizer` the whole
    tokenizer, except `tokenizer.end_of_text`, which completes one. With `train.initial_embeddings=false` the tokenizer
    stays as well.

    Args:
        settings: of all groups, before they are checked against their schema; changed in place.
        named: keys of the command's words, and of the experiment's own section `model`.
        is_elsewhere: the job runs on another machine, so a model that is not here may be there; then nothing changes.
    Raises:
        UserError: there is no such model, or the folder is damaged.
    """
    initial = settings.train.initial
    sections = TASK_SECTIONS.get(getattr(settings.task, "value", settings.task))
    if not initial or sections is None:
        return
    takes_model = not {"model", "model.architecture"} & set(named)
    of_tokenizer = {key for key in named if key.partition(".")[0] == "tokenizer"} - {"tokenizer.end_of_text"}
    takes_tokenizer = settings.train.initial_embeddings and not of_tokenizer
    root = Path(os.path.expanduser(settings.output_dir)).absolute()
    try:
        model, tokenizer = _initial_settings(os.path.expanduser(initial), root)
    except UserError as error:
        if is_elsewhere:
            _tell(f"train.initial: {initial} is not on this machine, so model and tokenizer stay as they are set here")
            return
        raise UserError(f"train.initial: {error}") from error
    OmegaConf.set_struct(settings, False)
    if takes_model:
        kept = {key.partition(".")[2] for key in named if key.startswith("model.")}
        settings.model = model | {key: settings.model[key] for key in kept if key in settings.model}
    if takes_tokenizer:
        kind = {"kind": "file"} if sections["tokenizer"] is TextTokenizerConfig else {}
        end = settings.tokenizer.get("end_of_text") if "tokenizer.end_of_text" in named else None
        settings.tokenizer = {**kind, "path": str(tokenizer), **({"end_of_text": end} if end else {})}
    if taken := ["model"] * takes_model + ["tokenizer"] * takes_tokenizer:
        verb = "is that" if len(taken) == 1 else "are those"
        _tell(f"{' and '.join(taken)} {verb} of train.initial={initial}")


def _initial_settings(name_or_path: str, root: Path) -> tuple[dict[str, Any], Path]:
    """The section `model` of a run, a model folder or a Hugging Face folder, and the folder with its tokenizer.

    Raises:
        UserError: there is no such model, or the folder is damaged.
    """
    # They import this module's users.
    from jobs.config.compose import read_config
    from jobs.runs.model import whole_records
    from jobs.runs.workspace import find_run, stage_folder
    from pipeline.model_folder import stored_config

    folder = Path(name_or_path).absolute()
    if not (folder / MODEL_CONFIG).exists():
        run = find_run(name_or_path, root)
        folder = run / MODEL_FOLDER
        if not (folder / MODEL_CONFIG).exists():  # trained, and not evaluated yet
            with whole_records(name_or_path):
                return _section(read_config(run / CONFIG_FILE).model), stage_folder(run, "tokenizer")
    return _section(stored_config(folder)), folder


def _section(model: Any) -> dict[str, Any]:
    values = {key: getattr(value, "value", value) for key, value in dataclasses.asdict(model).items()}
    return {"architecture": architecture_of(model), **values}


def _tell(message: str) -> None:
    print(printable(f"transloom: {message}"), file=sys.stderr)
