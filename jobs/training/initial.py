"""Copies the initial weights of a training from another model into the run's folder."""

from functools import partial

from transloom.jobs.runs.model import find_model
from transloom.jobs.runs.workspace import Run, output_dir, stage_folder
from transloom.jobs.terminal.console import console
from transloom.pipeline.run_folder import CHECKPOINTS_FOLDER, INITIAL_FOLDER
from transloom.pipeline.tasks.build import make_task

SHOWN = 4  # names of weights in a message


def bring_initial(run: Run) -> None:
    """Writes the weights of `train.initial` that fit the model into the run's folder, once, and prints the others. So
    workers on other machines see the weights, and a resumed run no longer needs the other model.

    Raises:
        UserError: there is no such model; or see `pipeline.train.initial.fitting` and `pipeline.train.adapt.adapt`.
    """
    import torch

    from transloom.pipeline.model_folder import read_model
    from transloom.pipeline.train.adapt import adapt, count_trained
    from transloom.pipeline.train.checkpoint import newest_checkpoint, save_weights, snapshot_path
    from transloom.pipeline.train.initial import fitting

    config = run.config.train
    if not config.initial or snapshot_path(run.folder / INITIAL_FOLDER, 0).exists():
        return
    if newest_checkpoint(run.folder / CHECKPOINTS_FOLDER) and not config.freezes:  # the checkpoint has all weights
        return
    stored = read_model(find_model(config.initial, output_dir(run.config)))
    task = make_task(run.config, partial(stage_folder, run.folder))
    with torch.device("meta"):
        model = task.model()
    state = model.state_dict()
    initial = fitting(stored, run.config.model, state, task.tokenizer, config.initial_embeddings)
    adapt(model, config, initial.weights)  # refuses what can't be trained, before anything is written
    origin = {"model": str(stored.folder), "sha256": stored.sha256}
    save_weights(run.folder / INITIAL_FOLDER, 0, initial.weights, keep_last=1, about={"initial": origin})
    numbers = sum(tensor.numel() for tensor in initial.weights.values())
    total = sum(tensor.numel() for tensor in state.values())
    console.print(f"Initial     {numbers:,} of {total:,} numbers from {stored.folder}")
    for reason in dict.fromkeys(initial.left_out.values()):
        names = [name for name, why in initial.left_out.items() if why == reason]
        console.print(f"  not loaded: {_shortened(names)}: {reason}")
    if initial.fresh:
        console.print(f"  begin with random weights: {_shortened(initial.fresh)}")
    if config.freezes:
        trained, total = count_trained(model)
        console.print(f"  trained: {trained:,} of {total:,} parameters")


def trained_parameters(run: Run) -> tuple[int, int] | None:
    """The numbers of trained and of all parameters, adapters included; None where all are trained."""
    import torch

    from transloom.pipeline.train.adapt import adapt, count_trained
    from transloom.pipeline.train.checkpoint import load_weights, snapshot_path

    if not run.config.train.freezes:
        return None
    with torch.device("meta"):
        model = make_task(run.config, partial(stage_folder, run.folder)).model()
    adapt(model, run.config.train, load_weights(snapshot_path(run.folder / INITIAL_FOLDER, 0)))
    return count_trained(model)


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
