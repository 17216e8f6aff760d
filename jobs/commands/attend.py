"""Attend: translate a sentence, and draw what every head of the model's attention looks at meanwhile."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from transloom.jobs.cli import configuration, sort_words, usage
from transloom.jobs.runs.model import find_model, run_of
from transloom.jobs.runs.summary import print_next
from transloom.jobs.runs.workspace import Run, only_owner, output_dir
from transloom.jobs.terminal.console import console
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import hash_of
from transloom.pipeline.run_folder import DRIVER_SPOOL, FIGURES_FOLDER
from transloom.pipeline.tracking.tracker import SpoolTracker
from transloom.pipeline.tracking.uploader import sync_run


def main(argv: list[str]) -> int:
    words, own, settings = sort_words(argv, ["log"])
    config = configuration("attend", settings)
    if len(words) not in (2, 3):
        raise UserError(usage("attend"))
    log = own.get("log", "false")
    if log not in ("true", "false"):
        raise UserError(f"log={log}: with true the pictures go to the run's page in MLflow, too; with false not")
    sentence, translation = words[1], words[2] if len(words) == 3 else None
    try:
        "".join(words).encode()
    except UnicodeEncodeError:
        raise UserError("the sentence is not UTF-8: convert it first") from None
    model = find_model(words[0], output_dir(config))
    run = run_of(model)
    if log == "true" and not config.tracking.enabled:
        raise UserError("log: there is no MLflow to log to with tracking=off; leave one of them out")
    if log == "true" and run is None:
        raise UserError(f"log: {model} is not in a run's folder, so it has no page in MLflow; name a run, or leave it")

    import torch

    from transloom.pipeline.attention_maps import attention_maps
    from transloom.pipeline.figures.attention import draw_attention
    from transloom.pipeline.generate.translator import Translator

    translator = Translator.load(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float32)
    maps = attention_maps(translator, sentence, config.decode, translation)
    root = run.folder / FIGURES_FOLDER if run else Path.cwd()
    pictures = draw_attention(maps, root / "attention" / _folder_name(sentence, maps.translation))
    console.print(f"source       {sentence}\ntranslation  {maps.translation}\n")
    for picture in pictures:
        console.print(f"{picture.stem:<11}  {picture}")
    if run and log == "true":
        _log(run, pictures, config.tracking.uri)
        print_next(shlex.join(["transloom", "ui", *(word for word in settings if word.startswith("output_dir="))]))
    elif run:
        again = shlex.join(["transloom", "attend", *words, *settings, "log=true"])
        print_next(f"{again}  # also to the run's page in MLflow")
    return 0


def _folder_name(sentence: str, translation: str) -> str:
    """The sentence's first words, and a hash that tells it from others that begin like it."""
    words = re.sub(r"\W+", "-", sentence.lower())[:40].strip("-")
    return "-".join(filter(None, (words, hash_of([sentence, translation])[:6])))


def _log(run: Run, pictures: Sequence[Path], uri: str | None) -> None:
    """Adds the pictures to the artifacts of the run, whose status stays as it is."""
    with only_owner(run):
        tracker = SpoolTracker(run.folder, DRIVER_SPOOL)
        for picture in pictures:
            tracker.log_artifact(picture, f"figures/attention/{picture.parent.name}")
        tracker.close()
        sync_run(run.folder, uri)
    console.print(f"In MLflow    the run's artifacts, figures/attention/{pictures[0].parent.name}")
