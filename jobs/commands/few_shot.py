"""Few-shot: a fine-tuned model beside the one that it began with, which gets solved examples in place of training."""

import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from transloom.jobs.cli import configuration, sort_words, usage
from transloom.jobs.runs.language_model import terminal_progress
from transloom.jobs.runs.summary import print_next
from transloom.jobs.runs.workspace import Run, only_owner, output_dir, stage_folder
from transloom.jobs.terminal.console import clock, console, table
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import write_json
from transloom.pipeline.run_folder import DRIVER_SPOOL, INITIAL_FOLDER, TABLES_FOLDER

if TYPE_CHECKING:
    from transloom.pipeline.evaluate.few_shot import FewShot
    from transloom.pipeline.tasks.task import Metric

TUNED = "fine-tuned"


def main(argv: list[str]) -> int:
    started_at = time.monotonic()
    words, own, settings = sort_words(argv, ["shots", "seed"])
    config = configuration("few_shot", settings)
    if len(words) != 1:
        raise UserError(usage("few_shot"))
    numbers, seed = _numbers("shots", own.get("shots", "0,1,4")), _numbers("seed", own.get("seed", "0"))[0]

    import numpy as np

    from transloom.jobs.compare.responses import responses_of
    from transloom.jobs.compare.systems import Evaluated, find_systems
    from transloom.pipeline.data.prepare_prompts import open_answers
    from transloom.pipeline.data.prompts import PromptsConfig
    from transloom.pipeline.evaluate.bootstrap import compare_ratios
    from transloom.pipeline.evaluate.responses import response_scores
    from transloom.pipeline.tasks.build import TaskName, selecting_metric

    (tuned,) = find_systems(words, output_dir(config)).values()
    if not isinstance(tuned, Evaluated) or tuned.run.config.task is not TaskName.prompt_response:
        raise UserError(
            f"{words[0]}: is no run of task=prompt_response; few_shot compares such a run with the model that it began "
            "with"
        )
    run, split = tuned.run, tuned.split
    metric = selecting_metric(run.config.task, run.config.corpus)
    scores = {TUNED: responses_of(tuned, split, metric)[1]}
    answers = open_answers(tuned.corpus, split)
    made = _responses(run, split, numbers, seed)
    for shots, few in made.items():
        values = response_scores(cast(PromptsConfig, run.config.corpus).metric, few.responses, answers)[metric.name]
        scores[_named(shots)] = np.array(values)
    tested = compare_ratios(scores, np.ones(len(answers)))
    result = {
        "run": run.name,
        "metric": metric.name,
        "split": split,
        "prompts": len(answers),
        "seed": seed,
        "simple_models": dict(tuned.result.get("baselines", {}).get(split, {})),
        "systems": {name: asdict(tested[name]) for name in scores},
        "examples_in_prompt": {_named(shots): float(np.mean(few.examples)) for shots, few in made.items()},
    }
    _print(result, metric)
    for shots, few in made.items():
        if (given := float(np.mean(few.examples))) < shots:
            console.print(f"Of {shots} examples the context has room for {given:.1f} on average.")
    _log(run, result, f"few_shot_{split}", config.tracking)
    console.print(f"Took     {clock(time.monotonic() - started_at)}")
    where = [word for word in settings if word.startswith("output_dir=")]
    print_next(
        f"{shlex.join(['transloom', 'few_shot', words[0], 'shots=0,2,8', *where])}  # other numbers of examples",
        *([shlex.join(["transloom", "ui", *where])] if config.tracking.enabled else []),
    )
    return 0


def _numbers(key: str, value: str) -> list[int]:
    """0,1,4 or [0,1,4]"""
    if not re.fullmatch(r"\[?\d+(,\s*\d+)*\]?", value):
        raise UserError(
            f"{key}: must be whole numbers of at least 0, such as {key}=4 or shots=0,1,4, not {value[:60]!r}"
        )
    return list(dict.fromkeys(map(int, re.findall(r"\d+", value))))


def _named(shots: int) -> str:
    return f"pre-trained, {shots} examples in the prompt" if shots != 1 else "pre-trained, 1 example in the prompt"


def _responses(run: Run, split: str, numbers: Sequence[int], seed: int) -> "dict[int, FewShot]":
    """What the model that the run began with responds to the prompts of a split, by the number of solved examples.

    Raises:
        UserError: the run began with random weights, or with a part of a model, or is an encoder-decoder.
    """
    from functools import partial

    import torch

    from transloom.model.config import LanguageModelConfig
    from transloom.model.decoder_only import DecoderOnly
    from transloom.model.packed_linear import pack_linears
    from transloom.pipeline.data.prepare_prompts import COLUMNS
    from transloom.pipeline.data.prompt_batches import PromptExamples, room_of
    from transloom.pipeline.data.prompts import PromptsConfig
    from transloom.pipeline.data.shards import open_shards
    from transloom.pipeline.data.text_tokenizer import load_text_tokenizer
    from transloom.pipeline.evaluate.few_shot import Solved, few_shot_responses
    from transloom.pipeline.tasks.build import make_task
    from transloom.pipeline.train.checkpoint import load_weights, snapshot_path

    initial = snapshot_path(run.folder / INITIAL_FOLDER, 0)
    if not initial.exists():
        raise UserError(
            f"{run.name}: began with random weights; few_shot needs a run that began with a pre-trained model, "
            "train.initial=<run>"
        )
    if not isinstance(run.config.model, LanguageModelConfig):
        raise UserError(f"{run.name}: is an encoder-decoder; only a language model reads examples in its prompt")
    folder_of = partial(stage_folder, run.folder)
    model = cast(DecoderOnly, make_task(run.config, folder_of).model())
    weights = load_weights(initial)
    if missing := sorted(set(model.state_dict()) - set(weights)):
        raise UserError(
            f"{run.name}: of the model that it began with, {initial} lacks {', '.join(missing[:3])}; it can't respond"
        )
    model.load_state_dict(weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_text_tokenizer(folder_of("tokenizer"))
    corpus, shards = cast(PromptsConfig, run.config.corpus), folder_of("shards")
    room = room_of(shards, run.config.model, corpus)
    examples, train = (
        PromptExamples(open_shards(shards, name, COLUMNS), room, tokenizer.end_of_text, True, name == "train")
        for name in (split, "train")
    )
    if max(numbers) > len(train):
        raise UserError(f"shots: train has {len(train):,} examples, fewer than {max(numbers):,}")

    def solved(i: int) -> Solved:
        return Solved(train.get("prompt", i), train.get("response", i)[:-1])

    prompts = [examples.get("prompt", i) for i in range(len(examples))]
    packed = cast(DecoderOnly, pack_linears(model.to(device).eval()))
    made = {}
    for shots in numbers:
        console.print(f"Responding to {len(prompts):,} prompts of {split} behind {shots} examples …")
        with terminal_progress() as progress:
            made[shots] = few_shot_responses(
                packed, tokenizer, prompts, solved, len(train), shots, corpus.max_response_tokens, seed, progress
            )
    return made


def _print(result: Mapping[str, Any], metric: "Metric") -> None:
    rows = [[name, metric.shown(value), "", ""] for name, value in result["simple_models"].items()]
    for name, one in sorted(result["systems"].items(), key=lambda item: item[0] == TUNED):
        p = "" if name == TUNED else f"{one['p_holm']:.4f}"
        rows.append([name, metric.shown(one["score"]), f"{one['low']:.2f} to {one['high']:.2f}", p])
    title = f"{metric.title} on the {result['prompts']:,} prompts of {result['split']}, {result['run']}"
    console.print(table(title, ["model", metric.title, "95 % interval", "p"], rows, right=(1, 2, 3)))
    console.print("p: of the difference to the fine-tuned model, by paired bootstrap over the prompts, Holm-corrected.")


def _log(run: Run, result: Mapping[str, Any], name: str, tracking: Any) -> None:
    """Writes the result beside the run's other tables, and adds it to the run's page in MLflow."""
    from transloom.pipeline.tracking.run_page import sync_run
    from transloom.pipeline.tracking.tracker import SpoolTracker

    file = run.folder / TABLES_FOLDER / f"{name}.json"
    with only_owner(run):
        file.parent.mkdir(exist_ok=True)
        write_json(file, result)
        if tracking.enabled:
            tracker = SpoolTracker(run.folder, DRIVER_SPOOL)
            tracker.log_artifact(file, TABLES_FOLDER)
            tracker.close()
            sync_run(run.folder, tracking.uri)
    console.print(f"Results  {file}")
