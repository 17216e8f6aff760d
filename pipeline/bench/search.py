"""The contenders of decoding: beam search with one model's weights, by ours, Hugging Face's generate and CTranslate2.

All go from token ids to token ids, sorted by length, in fp32; ours in bf16 too, as models trained in it translate. Each
says how long it took; loading is not counted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transloom.pipeline.bench.task import Ready
from transloom.pipeline.data.tokenizer import EOS_ID, PAD_ID, Tokenizer
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.processes import peak_bytes


class Program(Enum):
    """What searches."""

    ours = "ours"
    ours_bf16 = "ours_bf16"
    huggingface = "huggingface"
    ctranslate2 = "ctranslate2"


@dataclass(frozen=True)
class SearchTask:
    """A member of a contender of decoding.

    Attributes:
        folder: of the model, in the program's own format.
        inter_threads, intra_threads: CTranslate2's: batches at a time, and threads for each. The others have the
            threads of their environment.
        use_gpu: the first GPU, else the CPU.
    """

    program: Program
    folder: str
    inter_threads: int
    intra_threads: int
    use_gpu: bool


@dataclass(frozen=True)
class Request:
    """Sentences to translate, each token ids that end in </s>."""

    sources: list[list[int]]
    config: BeamConfig


@dataclass(frozen=True)
class Found:
    """The translations, token ids without </s>, in the order of the sentences."""

    targets: list[list[int]]
    seconds: float
    peak_bytes: int


Search = Callable[[list[list[int]], BeamConfig], list[list[int]]]


def make_searcher(task: SearchTask) -> tuple[Callable[[Request], Found], Ready]:
    """The answerer of a member."""
    makers = {
        Program.ours: _ours,
        Program.ours_bf16: _ours,
        Program.huggingface: _huggingface,
        Program.ctranslate2: _ctranslate2,
    }
    search = makers[task.program](task)

    def answer(request: Request) -> Found:
        started_at = time.monotonic()
        targets = search(request.sources, request.config)
        return Found(targets, time.monotonic() - started_at, peak_bytes())

    return answer, Ready(torch.get_num_threads(), peak_bytes())


def _ours(task: SearchTask) -> Search:
    from transloom.model.packed_linear import pack_linears
    from transloom.pipeline.generate.decoding import translate_tokens
    from transloom.pipeline.generate.translator import Translator

    dtype = torch.bfloat16 if task.program is Program.ours_bf16 else torch.float32
    model = pack_linears(Translator.load(Path(task.folder), _device(task), dtype).model)

    def search(sources: list[list[int]], config: BeamConfig) -> list[list[int]]:
        arrays = [np.array(ids) for ids in sources]
        return [found.tokens for found in translate_tokens(model, arrays, config)]

    return search


def _huggingface(task: SearchTask) -> Search:
    from transformers import MarianMTModel

    device = _device(task)
    attention = "sdpa" if task.use_gpu else "eager"  # the quicker one
    model: Any = MarianMTModel.from_pretrained(task.folder, attn_implementation=attention)
    model.to(device).eval()

    @torch.inference_mode()
    def search(sources: list[list[int]], config: BeamConfig) -> list[list[int]]:
        targets: list[list[int]] = [[]] * len(sources)
        order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
        for start in range(0, len(order), config.batch_sentences):
            chosen = order[start : start + config.batch_sentences]
            parts = [torch.tensor(sources[i]) for i in chosen]
            batch = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=PAD_ID).to(device)
            said = model.generate(
                input_ids=batch,
                attention_mask=(batch != PAD_ID).long(),
                num_beams=config.beam,
                length_penalty=config.length_penalty,
                early_stopping=True,  # ends with as many hypotheses as the beam is wide, as our search does
                do_sample=False,
                max_length=None,
                max_new_tokens=batch.shape[1] + config.extra_tokens,
            )
            for i, ids in zip(chosen, said.tolist(), strict=True):
                ids = ids[1:]  # <s>
                targets[i] = ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids
        return targets

    return search


def _ctranslate2(task: SearchTask) -> Search:
    import ctranslate2

    translator = ctranslate2.Translator(
        task.folder,
        device="cuda" if task.use_gpu else "cpu",
        compute_type="float32",
        inter_threads=task.inter_threads,
        intra_threads=task.intra_threads,
    )
    pieces = Tokenizer.load(Path(task.folder)).pieces()
    ids_of = {piece: i for i, piece in enumerate(pieces)}

    def search(sources: list[list[int]], config: BeamConfig) -> list[list[int]]:
        said = translator.translate_batch(
            [[pieces[i] for i in ids[:-1]] for ids in sources],  # it adds </s> itself
            beam_size=config.beam,
            length_penalty=config.length_penalty,
            max_batch_size=config.batch_sentences,
            max_decoding_length=max(map(len, sources)) + config.extra_tokens,
        )
        return [[ids_of[piece] for piece in one.hypotheses[0]] for one in said]

    return search


def _device(task: SearchTask) -> torch.device:
    return torch.device("cuda" if task.use_gpu else "cpu")
