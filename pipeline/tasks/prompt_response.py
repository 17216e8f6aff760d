"""Prompt and response: a decoder-only model, or an encoder-decoder, reads a prompt and learns its response alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transloom.model.build import ModelConfig, build_model
from transloom.model.config import LanguageModelConfig
from transloom.model.packed_linear import pack_linears
from transloom.pipeline.data.batches import BatchConfig, plan_epoch
from transloom.pipeline.data.prepare_prompts import (
    COLUMNS,
    open_answers,
    open_texts,
    prepare_prompts,
    refuse_missing_records,
)
from transloom.pipeline.data.prompt_batches import (
    LongExamples,
    PromptExamples,
    Room,
    collate_prompt_pairs,
    collate_prompts,
    room_of,
)
from transloom.pipeline.data.prompts import Example, PromptsConfig, ResponseMetric, with_local_prompts
from transloom.pipeline.data.shards import open_shards
from transloom.pipeline.data.text_tokenizer import TextTokenizer, load_text_tokenizer
from transloom.pipeline.evaluate.responses import SELECTS, response_scores, summarized
from transloom.pipeline.evaluate.simple_responses import simple_responses
from transloom.pipeline.files import MANIFEST, read_json
from transloom.pipeline.generate.responses import respond
from transloom.pipeline.model_folder import load_model
from transloom.pipeline.progress import MapTasks, Progress
from transloom.pipeline.ranks import gather, rank, world_size
from transloom.pipeline.tasks.kind import TaskKind, only_scoring
from transloom.pipeline.tasks.samples import sample_places
from transloom.pipeline.tasks.task import Evaluation, Metric, Score, Task
from transloom.pipeline.train.objective import ResponseObjective, TranslationObjective

BATCH_TOKENS = 4096  # in a batch of an evaluation
EXAMPLES_PER_TASK = 200
SHOWN = 400  # characters of a prompt in a table for people


def prompt_response(
    folder_of: Callable[[str], Path],
    *,
    corpus: PromptsConfig,
    model: ModelConfig,
    batch: BatchConfig,
    label_smoothing: float,
) -> Task:
    """The task on prepared prompts and responses.

    Args:
        folder_of: the folder of "corpus", "tokenizer" or "shards".
    """
    tokenizer = load_text_tokenizer(folder_of("tokenizer"))
    split_of = partial(_examples, folder_of("shards"), tokenizer, model, corpus)
    is_decoder = isinstance(model, LanguageModelConfig)
    room = room_of(folder_of("shards"), model, corpus)

    def validated(trained: Any) -> Evaluation:
        examples = split_of("validation")
        total = response_nats(trained, tokenizer, examples, _by_length(examples)[rank() :: world_size()], batch)
        places = np.array(sample_places(len(examples), corpus.validation_examples or len(examples)))
        mine = places[np.argsort(-examples.lengths[places, 1], kind="stable")][rank() :: world_size()]
        responses = respond(trained, tokenizer, [examples.get("prompt", i) for i in mine], room.response)
        shares = gather((total, dict(zip(mine.tolist(), responses, strict=True))))
        by_place = {place: text for _, of_rank in shares for place, text in of_rank.items()}
        nats = sum(total for total, _ in shares)
        return _evaluation(
            folder_of, corpus, examples, "validation", room, nats, {i: by_place[i] for i in sorted(by_place)}
        )

    def text(column: str, ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids))

    return Task(
        selects=SELECTS[corpus.metric],
        loss_column="response",
        tokenizer=tokenizer.sha256,
        model=lambda: build_model(model, tokenizer.vocab_size),
        objective=lambda new: (ResponseObjective if is_decoder else TranslationObjective)(new, label_smoothing),
        examples=lambda split: open_shards(folder_of("shards"), split, COLUMNS),
        epoch=lambda examples, seed, epoch: PromptExamples(examples, room, tokenizer.end_of_text, is_decoder, True),
        collate=collate_prompts if is_decoder else partial(collate_prompt_pairs, tokenizer.end_of_text),
        validate=validated,
        evaluate=partial(evaluate_responses, folder_of, corpus, model),
        text=text,
    )


def baseline_scores(
    config: PromptsConfig, train: Sequence[Example], examples: Sequence[Example]
) -> Mapping[str, float]:
    """The score of the metric's simple baseline, by its name; empty where the template lacks its fields."""
    simple = simple_responses(config.metric, train, examples)
    if simple is None:
        return {}
    name, responses = simple
    scores = response_scores(config.metric, responses, [example.answers for example in examples])
    return {name: summarized(config.metric, scores)[SELECTS[config.metric].name].value}


def metric_of(corpus: PromptsConfig) -> Metric:
    """The metric that runs are chosen by."""
    return SELECTS[corpus.metric]


def _examples(
    shards: Path, tokenizer: TextTokenizer, model: ModelConfig, corpus: PromptsConfig, split: str
) -> PromptExamples:
    """The examples of validation or test, none left out."""
    room = room_of(shards, model, corpus)
    is_decoder = isinstance(model, LanguageModelConfig)
    return PromptExamples(open_shards(shards, split, COLUMNS), room, tokenizer.end_of_text, is_decoder, False)


def _by_length(examples: PromptExamples) -> np.ndarray:
    """The rows of the examples, the longest first."""
    return np.argsort(-examples.lengths.sum(axis=1), kind="stable")


@torch.inference_mode()
def response_nats(
    model: Any, tokenizer: TextTokenizer, examples: PromptExamples, rows: np.ndarray, batch: BatchConfig
) -> float:
    """The negative log-probability of these examples' responses, in nats. The model is in evaluation mode."""
    if not len(rows):
        return 0.0
    is_decoder = isinstance(model.config, LanguageModelConfig)
    objective = (ResponseObjective if is_decoder else TranslationObjective)(model, 0.0).eval()
    device = next(iter(model.parameters())).device
    # An example may be longer than a training batch allows; it is never left out.
    longest = max(int(examples.lengths[rows].max()), batch.micro_tokens)
    total = 0.0
    for chosen in plan_epoch(examples.lengths[rows], BatchConfig(longest, longest), seed=0, epoch=0):
        part: Any = (
            collate_prompts(examples, rows[chosen])
            if is_decoder
            else collate_prompt_pairs(tokenizer.end_of_text, examples, rows[chosen])
        )
        total += float(objective(part.to(device)).total)
    return total


def _evaluation(
    folder_of: Callable[[str], Path],
    corpus: PromptsConfig,
    examples: PromptExamples,
    split: str,
    room: Room,
    nats: float,
    responses: Mapping[int, str],
    baselines: Mapping[str, float] | None = None,
) -> Evaluation:
    """
    Args:
        nats: of all examples' responses. responses: generated ones, by the example's number.
    """
    answers = open_answers(folder_of("corpus"), split)
    values = response_scores(corpus.metric, list(responses.values()), [answers[i] for i in responses])
    counts = LongExamples.of(open_shards(folder_of("shards"), split, COLUMNS).lengths, room, is_train=False)
    note = f"|greedy|cut:{counts.cut}" if counts.cut else "|greedy"
    loss = nats / int(examples.lengths[:, 0].sum())
    scores = summarized(corpus.metric, values, note) | {"loss": Score("loss", loss, "nats a response token")}
    if corpus.metric is ResponseMetric.symbols:
        # The papers on copying count the loss of all positions, those of the prompt too, which cost nothing.
        num_read = int(examples.lengths[:, 1].sum())
        scores["loss_per_position"] = Score("loss_per_position", nats / num_read, "nats a token that is read")
    own = values[SELECTS[corpus.metric].name]
    outputs = [
        json.dumps({"response": text, "score": round(score, 4)}, ensure_ascii=False)
        for text, score in zip(responses.values(), own, strict=True)
    ]
    prompts, _ = open_texts(folder_of("corpus"), split)
    shown = [list(responses)[i] for i in sample_places(len(responses))]
    samples = {
        "prompt": [_shortened(prompts[i]) for i in shown],
        "reference": [" | ".join(answers[i]) for i in shown],
        "response": [responses[i] for i in shown],
    }
    return Evaluation(loss, scores, len(responses), outputs, samples, baselines or {})


def _shortened(prompt: str) -> str:
    half = SHOWN // 2
    return prompt if len(prompt) <= SHOWN else f"{prompt[:half]} … {prompt[-half:]}"


@dataclass(frozen=True)
class _Share:
    """One task's share of an evaluation: some examples of a split."""

    model: str
    shards: str
    corpus: PromptsConfig
    split: str
    rows: np.ndarray


def evaluate_responses(
    folder_of: Callable[[str], Path],
    corpus: PromptsConfig,
    config: ModelConfig,
    model: Path,
    split: str,
    map_tasks: MapTasks,
    progress: Progress,
) -> Evaluation:
    """Generates the responses of a split and scores them by its answers, with the work shared out as tasks.

    Outputs are JSON objects, one an example: "response" and its "score" by the metric that chooses among runs.

    Args:
        config: the model's. model: its folder, which all tasks see.
    """
    tokenizer = load_text_tokenizer(folder_of("tokenizer"))
    examples = _examples(folder_of("shards"), tokenizer, config, corpus, split)
    order = _by_length(examples)
    num_tasks = min(len(order), max(2, -(-len(order) // EXAMPLES_PER_TASK)))
    shares = [
        _Share(str(model), str(folder_of("shards")), corpus, split, order[i::num_tasks]) for i in range(num_tasks)
    ]
    nats, responses, done = 0.0, {}, 0
    for share, (of_share, texts) in zip(shares, map_tasks(_evaluate_share, shares), strict=True):
        nats += of_share
        responses |= dict(zip(share.rows.tolist(), texts, strict=True))
        done += len(share.rows)
        progress(f"responding to {split}", done, len(order))
    baselines = read_json(folder_of("corpus") / MANIFEST)["counts"]["baselines"].get(split)
    by_place = {i: responses[i] for i in sorted(responses)}
    room = room_of(folder_of("shards"), config, corpus)
    return _evaluation(folder_of, corpus, examples, split, room, nats, by_place, baselines)


def _evaluate_share(share: _Share) -> tuple[float, list[str]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer, _ = load_model(Path(share.model), device, None, load_text_tokenizer)
    examples = _examples(Path(share.shards), tokenizer, model.config, share.corpus, share.split)
    nats = response_nats(model, tokenizer, examples, share.rows, BatchConfig(BATCH_TOKENS, BATCH_TOKENS))
    prompts = [examples.get("prompt", int(row)) for row in share.rows]
    return nats, respond(pack_linears(model), tokenizer, prompts, share.corpus.max_response_tokens)


PROMPT_RESPONSE = TaskKind(
    metric=metric_of,
    token_columns=("text", "response"),
    # The text that a decoder-only model reads has the response, too.
    flops_columns=lambda model: ("text",) if isinstance(model, LanguageModelConfig) else ("text", "response"),
    with_local_corpus=with_local_prompts,
    refuse_wrong_corpus=refuse_missing_records,
    prepare=lambda config, folder, map_tasks, progress, only_find: prepare_prompts(
        config.corpus, config.tokenizer, folder, baseline_scores, map_tasks, progress, only_find=only_find
    ),
    scoring=only_scoring("responses"),
    make=lambda config, folder_of: prompt_response(
        folder_of,
        corpus=config.corpus,
        model=config.model,
        batch=config.batch,
        label_smoothing=config.train.label_smoothing,
    ),
)
