"""The settings that follow from `train.initial`: the initial model's own, where a command names no others."""

import dataclasses
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from transloom.jobs.config.schema import TASK_SECTIONS
from transloom.jobs.terminal.printable import printable
from transloom.model.build import architecture_of
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig
from transloom.pipeline.errors import UserError
from transloom.pipeline.run_folder import CONFIG_FILE, MODEL_CONFIG, MODEL_FOLDER, PREPARED_FILE


def follow_initial(settings: DictConfig, named: Collection[str], is_elsewhere: bool = False) -> None:
    """Gives composed settings the model and the tokenizer of `train.initial`, and with `corpus.mix.share` and no files
    the pairs that a run was trained on. Says so on standard error. The one place that decides this, for every task.

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
        model, tokenizer, run = _initial_settings(os.path.expanduser(initial), root)
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
    share = OmegaConf.select(settings, "corpus.mix.share")
    if share and not settings.corpus.mix.get("source") and run is not None:
        corpus = _stage(run, "corpus")
        sides = {side: str(corpus / f"train.{side}") for side in ("source", "target")}
        settings.corpus.mix = {"share": share, **sides}
        _tell(f"corpus.mix is train of {corpus}")
    if taken := ["model"] * takes_model + ["tokenizer"] * takes_tokenizer:
        verb = "is that" if len(taken) == 1 else "are those"
        _tell(f"{' and '.join(taken)} {verb} of train.initial={initial}")


def _initial_settings(name_or_path: str, root: Path) -> tuple[dict[str, Any], Path, Path | None]:
    """The section `model` of a run, a model folder or a Hugging Face folder, the folder with its tokenizer, and that of
    the run, if it is one.

    Raises:
        UserError: there is no such model, or the folder is damaged.
    """
    # They import this module's users.
    from transloom.jobs.config.compose import read_config
    from transloom.jobs.runs.workspace import find_run
    from transloom.pipeline.model_folder import stored_config

    folder = Path(name_or_path).absolute()
    if not (folder / MODEL_CONFIG).exists():
        folder = find_run(name_or_path, root) / MODEL_FOLDER
    run = folder.parent
    if folder.name != MODEL_FOLDER or not all((run / name).exists() for name in (CONFIG_FILE, PREPARED_FILE)):
        return _section(stored_config(folder)), folder, None
    if not (folder / MODEL_CONFIG).exists():  # trained, and not evaluated yet
        return _section(read_config(run / CONFIG_FILE).model), _stage(run, "tokenizer"), run
    return _section(stored_config(folder)), folder, run


def _stage(run: Path, name: str) -> Path:
    from transloom.jobs.runs.model import whole_records
    from transloom.jobs.runs.workspace import stage_folder

    with whole_records(str(run)):
        return stage_folder(run, name)


def _section(model: Any) -> dict[str, Any]:
    values = {key: getattr(value, "value", value) for key, value in dataclasses.asdict(model).items()}
    return {"architecture": architecture_of(model), **values}


def _tell(message: str) -> None:
    print(printable(f"transloom: {message}"), file=sys.stderr)
