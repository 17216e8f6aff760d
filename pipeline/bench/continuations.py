"""The contenders of a language model's decoding: greedy continuations with a cache and one model's weights, by ours and
by Hugging Face's generate. Each says how long it took; loading is not counted."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transloom.pipeline.bench.search import Program
from transloom.pipeline.bench.task import Ready
from transloom.pipeline.processes import peak_bytes

NO_TOKEN = -1  # as the end of text: no continuation ends


@dataclass(frozen=True)
class ContinueTask:
    """A member of a contender; `folder` has the model in the program's own format. `use_gpu`: the first GPU, else the
    CPU."""

    program: Program
    folder: str
    use_gpu: bool


@dataclass(frozen=True)
class Prompts:
    """Prompts of equally many tokens, each to be continued by `new_tokens`, `batch_size` side by side. No continuation
    ends earlier: all make as many tokens."""

    prompts: list[list[int]]
    new_tokens: int
    batch_size: int


@dataclass(frozen=True)
class Continued:
    """The new tokens of each prompt."""

    tokens: list[list[int]]
    seconds: float
    peak_bytes: int


Continue = Callable[[Prompts], list[list[int]]]


def make_continuer(task: ContinueTask) -> tuple[Callable[[Prompts], Continued], Ready]:
    """The answerer of a member."""
    go_on = _huggingface(task) if task.program is Program.huggingface else _ours(task)

    def answer(request: Prompts) -> Continued:
        started_at = time.monotonic()
        tokens = go_on(request)
        return Continued(tokens, time.monotonic() - started_at, peak_bytes())

    return answer, Ready(torch.get_num_threads(), peak_bytes())


def _ours(task: ContinueTask) -> Continue:
    from transloom.model.packed_linear import pack_linears
    from transloom.pipeline.generate.sample import SampleConfig, sample
    from transloom.pipeline.model_folder import load_language_model

    dtype = torch.bfloat16 if task.program is Program.ours_bf16 else torch.float32
    model: Any = pack_linears(load_language_model(Path(task.folder), _device(task), dtype).model)

    def go_on(request: Prompts) -> list[list[int]]:
        config = SampleConfig(temperature=0.0, max_new_tokens=request.new_tokens, batch_size=request.batch_size)
        results = sample(model, [np.array(ids) for ids in request.prompts], config, end_of_text=NO_TOKEN)
        return [generated.tokens for (generated,) in results]

    return go_on


def _huggingface(task: ContinueTask) -> Continue:
    from transloom.pipeline.bench.text_peers import load_huggingface

    device = _device(task)
    model: Any = load_huggingface(Path(task.folder)).to(device).eval()

    @torch.inference_mode()
    def go_on(request: Prompts) -> list[list[int]]:
        tokens: list[list[int]] = []
        for start in range(0, len(request.prompts), request.batch_size):
            batch = torch.tensor(request.prompts[start : start + request.batch_size], device=device)
            output = model.generate(
                input_ids=batch,
                attention_mask=torch.ones_like(batch),
                do_sample=False,
                use_cache=True,
                max_new_tokens=request.new_tokens,
                min_new_tokens=request.new_tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
            tokens += output[:, batch.shape[1] :].tolist()
        return tokens

    return go_on


def _device(task: ContinueTask) -> torch.device:
    return torch.device("cuda" if task.use_gpu else "cpu")
