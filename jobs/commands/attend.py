"""Attend: draw what every head of a model's attention looks at, on a text or over a corpus, and what heads, gradients
and positions are worth."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transloom.jobs.cli import configuration, parse_settings, sort_words, usage
from transloom.jobs.runs.language_model import terminal_progress
from transloom.jobs.runs.model import computing_device, find_model, run_of
from transloom.jobs.runs.summary import print_next
from transloom.jobs.runs.workspace import Run, only_owner, output_dir
from transloom.jobs.terminal.console import console
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import hash_of
from transloom.pipeline.run_folder import ATTENTION_FOLDER, DRIVER_SPOOL, INSIDE_FOLDER
from transloom.pipeline.tracking.run_page import sync_run
from transloom.pipeline.tracking.tracker import SpoolTracker

if TYPE_CHECKING:
    from transloom.pipeline.generate.beam import BeamConfig

OF_PARTS = ("examples", "split", "points", "stack", "without")


def main(argv: list[str]) -> int:
    words, own, settings = sort_words(argv, ["log", "part", *OF_PARTS])
    config = configuration("attend", settings)
    log, part = own.pop("log", "false"), own.pop("part", None)
    if len(words) not in ((2, 3) if part is None else range(1, 100)):
        raise UserError(usage("attend"))
    if log not in ("true", "false"):
        raise UserError(f"log={log}: with true the pictures go to the run's page in MLflow, too; with false not")
    if part is None and own:
        raise UserError(f"{next(iter(own))}: is of part=heads, prune, gradient or positions; name one of them")
    try:
        "".join(words).encode()
    except UnicodeEncodeError:
        raise UserError("the sentence is not UTF-8: convert it first") from None
    if log == "true" and not config.tracking.enabled:
        raise UserError("log: there is no MLflow to log to with tracking=off; leave one of them out")
    if part is None:
        model = find_model(words[0], output_dir(config))
        run = run_of(model)
        if log == "true" and run is None:
            raise UserError(
                f"log: {model} is not in a run's folder, so it has no page in MLflow; name a run, or leave it"
            )
        folder = run.folder / ATTENTION_FOLDER if run else Path.cwd() / "attention"
        files = _draw_text(model, words[1:], config.decode, folder)
    else:
        run, files = _part(part, words, own, output_dir(config))
    for file in files:
        console.print(f"{file.stem:<11}  {file}")
    if run and log == "true":
        _log(run, files, config.tracking.uri)
        print_next(shlex.join(["transloom", "ui", *(word for word in settings if word.startswith("output_dir="))]))
    elif run:
        parts = [f"part={part}", *(f"{key}={value}" for key, value in own.items())] if part else []
        again = shlex.join(["transloom", "attend", *words, *parts, *settings, "log=true"])
        print_next(f"{again}  # also to the run's page in MLflow")
    return 0


def _draw_text(model: Path, texts: Sequence[str], search: "BeamConfig", folder: Path) -> list[Path]:
    """The pictures of a sentence and its translation, or of a text that a model of one stack reads."""
    import torch

    from transloom.model.decoder_only import Stack
    from transloom.pipeline.attention_maps import attention_maps, text_attention_maps
    from transloom.pipeline.data.text_tokenizer import load_text_tokenizer
    from transloom.pipeline.figures.attention import draw_attention
    from transloom.pipeline.generate.translator import Translator
    from transloom.pipeline.huggingface import is_huggingface
    from transloom.pipeline.model_folder import load_language_model, load_model, read_about

    device, _ = computing_device()
    is_foreign = is_huggingface(model)
    if not is_foreign and read_about(model).get("task", "translation") == "translation":
        translator = Translator.load(model, device, torch.float32)
        maps = attention_maps(translator, texts[0], search, texts[1] if len(texts) == 2 else None)
        console.print(f"source       {texts[0]}\ntranslation  {maps.translation}\n")
        return draw_attention(maps, folder / _folder_name(texts[0], maps.translation))
    if len(texts) == 2:
        raise UserError("the model does not translate: give one text")
    if is_foreign:
        loaded = load_language_model(model, device, torch.float32)
        reader, tokenizer = loaded.model, loaded.tokenizer
    else:
        reader, tokenizer, _ = load_model(model, device, torch.float32, load_text_tokenizer)
    if not isinstance(reader, Stack):
        raise UserError("the model has no attention to one text: take a decoder_only model, or a translator")
    maps = text_attention_maps(reader, tokenizer, texts[0])
    console.print(f"text         {texts[0]}\n")
    return draw_attention(maps, folder / _folder_name(texts[0], ""))


def _part(part: str, names: Sequence[str], own: Mapping[str, str], root: Path) -> tuple[Run, list[Path]]:
    """A part's files, in the folder of the first run, and that run."""
    from transloom.jobs.attend.parts import (
        PARTS,
        PartSettings,
        gradient_part,
        heads_part,
        positions_part,
        prune_part,
    )
    from transloom.jobs.attend.trained import open_trained

    if part not in PARTS:
        raise UserError(f"part={part}: is none of {', '.join(PARTS)}")
    chosen = parse_settings(PartSettings, own)
    takes_several = part in ("gradient", "positions")
    if len(names) > 1 and not takes_several:
        raise UserError(f"part={part}: looks into one run, and {len(names)} are named")
    models = [open_trained(name, root) for name in names]
    run = models[0].run
    folder = run.folder / INSIDE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with terminal_progress() as progress:
        match part:
            case "heads":
                return run, heads_part(models[0], chosen, folder, progress)
            case "prune":
                return run, prune_part(models[0], chosen, folder, progress)
            case "gradient":
                return run, gradient_part(models, chosen, folder)
            case _:
                return run, positions_part(models, chosen, folder)


def _folder_name(sentence: str, translation: str) -> str:
    """The sentence's first words, and a hash that tells it from others that begin like it."""
    words = re.sub(r"\W+", "-", sentence.lower())[:40].strip("-")
    return "-".join(filter(None, (words, hash_of([sentence, translation])[:6])))


def _log(run: Run, files: Sequence[Path], uri: str | None) -> None:
    """Adds the files to the artifacts of the run, whose status stays as it is."""
    place = files[0].parent.relative_to(run.folder)
    with only_owner(run):
        tracker = SpoolTracker(run.folder, DRIVER_SPOOL)
        for file in files:
            tracker.log_artifact(file, str(place))
        tracker.close()
        sync_run(run.folder, uri)
    console.print(f"In MLflow    the run's artifacts, {place}")
