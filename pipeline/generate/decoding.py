"""Tokenised sentences → hypotheses, in batches of like lengths: what a translator and an evaluation search with."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from transloom.model.packing import Layout
from transloom.pipeline.data.tokenizer import BOS_ID, EOS_ID
from transloom.pipeline.generate.beam import BeamConfig, Hypothesis, length_penalty, n_best_search
from transloom.pipeline.generate.constrained import Term, constrained_search
from transloom.pipeline.generate.sample import SampleConfig, choose, draw_noise

OnDone = Callable[[int], object]  # told how many sentences were finished just now


def translate_tokens(
    model: Any,
    sources: list[np.ndarray],
    config: BeamConfig,
) -> list[Hypothesis]:
    """The best hypothesis of each tokenised sentence (ending in </s>), in order; see `search_tokens`."""
    return [best[0] if best else Hypothesis([], 0.0) for best in search_tokens(model, sources, config)]


@torch.inference_mode()
def search_tokens(
    model: Any,
    sources: Sequence[np.ndarray],
    config: BeamConfig,
    n_best: int = 1,
    prefixes: Sequence[Sequence[int]] | None = None,
    terms: Sequence[Sequence[Term]] | None = None,
    continues_word: Sequence[bool] = (),
    done: OnDone | None = None,
) -> list[list[Hypothesis]]:
    """The best hypotheses of each tokenised sentence (ending in </s>), in order; none of an empty one. The model, one
    that translates, is in evaluation mode.

    Sentences are decoded in batches of similar lengths, longest first; those with terms apart.

    Args:
        prefixes, terms, continues_word: see `n_best_search` and `constrained_search`.
    """
    results: list[list[Hypothesis]] = [[] for _ in sources]
    has_terms = [bool(terms and terms[i]) for i in range(len(sources))]
    for chosen in _batches(sources, config.batch_sentences, has_terms, done):
        decoding, limits = _start(model, [sources[i] for i in chosen], config)
        forced = [prefixes[i] for i in chosen] if prefixes else None
        lengths = torch.tensor([len(prefixes[i]) if prefixes else 0 for i in chosen], device=limits.device)
        room = model.config.max_positions
        limits = torch.maximum(limits, lengths + 1) if room is None else limits.maximum(lengths + 1).clamp(max=room)
        if terms and has_terms[chosen[0]]:
            own = [terms[i] for i in chosen]
            needed = limits + torch.tensor([sum(map(len, one)) for one in own], device=limits.device)
            longest = (needed if room is None else needed.clamp(max=room)).tolist()
            found = constrained_search(decoding, longest, own, continues_word, config, BOS_ID, EOS_ID, n_best, forced)
        else:
            found = n_best_search(decoding, limits, config, BOS_ID, EOS_ID, n_best, forced)
        for i, hypotheses in zip(chosen, found, strict=True):
            results[i] = hypotheses
    return results


def _batches(
    sources: Sequence[np.ndarray], size: int, apart: Sequence[bool], done: OnDone | None = None
) -> Iterator[list[int]]:
    """Places of the sentences that are decoded together. A sentence of </s> alone is an empty line, and in no batch."""
    real = [i for i, ids in enumerate(sources) if len(ids) > 1]
    if done is not None and len(real) < len(sources):
        done(len(sources) - len(real))
    for group in (False, True):
        order = sorted((i for i in real if apart[i] is group), key=lambda i: -len(sources[i]))
        for start in range(0, len(order), size):
            yield order[start : start + size]
            if done is not None:
                done(len(order[start : start + size]))


def _start(model: Any, sources: Sequence[np.ndarray], config: BeamConfig) -> tuple[Any, torch.Tensor]:
    """The decoding of a batch, and the limit (B,) of each translation's tokens."""
    room = model.config.max_positions
    device = next(iter(model.parameters())).device
    batch = [cut_to_room(ids, room) for ids in sources]
    layout = Layout.of(torch.tensor([len(ids) for ids in batch])).to(device)
    tokens = torch.from_numpy(np.concatenate(batch).astype(np.int64)).to(device)
    limits = layout.lengths + config.extra_tokens
    return model.start_decoding(tokens, layout), limits if room is None else limits.clamp(max=room)


@torch.inference_mode()
def sample_tokens(
    model: Any,
    sources: Sequence[np.ndarray],
    search: BeamConfig,
    config: SampleConfig,
    keys: Sequence[tuple[int, int]],
    prefixes: Sequence[Sequence[int]] | None = None,
    done: OnDone | None = None,
) -> list[list[Hypothesis]]:
    """Translations of each tokenised sentence that are drawn token by token, the best score first; none of an empty
    one.

    A sample is a function of (seed, key, number of the sample, sentence), whatever its batch; see `sample`.

    Args:
        search: its limit and length penalty; batch_sentences are drawn at a time.
        keys: of each sentence two numbers, such as that of its line and of the part in it.
        prefixes: ids that each sentence's translations begin with.
    """
    results: list[list[Hypothesis]] = [[] for _ in sources]
    size = max(1, search.batch_sentences // config.samples)
    for chosen in _batches(sources, size, [False] * len(sources), done):
        decoding, limits = _start(model, [sources[i] for i in chosen], search)
        copies = torch.arange(len(chosen), device=limits.device).repeat_interleave(config.samples)
        decoding.reorder(copies, copies)  # a sentence is read once for all of its samples
        rows = [(i, number) for i in chosen for number in range(config.samples)]
        most = dict(zip(chosen, limits.tolist(), strict=True))
        noise = [draw_noise(config.seed, keys[i][0], (keys[i][1] << 32) + number, most[i]) for i, number in rows]
        drawn: list[list[int]] = [[] for _ in rows]
        totals = [0.0] * len(rows)
        open_rows = list(range(len(rows)))
        last = torch.full((len(rows),), BOS_ID, device=limits.device)
        while open_rows:
            logits = decoding.step(last)
            length = len(drawn[open_rows[0]])
            uniforms = torch.tensor([noise[row][length] for row in open_rows], dtype=torch.float64)
            tokens, _ = choose(logits, uniforms.to(logits.device), config)
            for place, row in enumerate(open_rows):
                prefix = prefixes[rows[row][0]] if prefixes else ()
                if length < len(prefix):
                    tokens[place] = prefix[length]
                elif length + 1 >= most[rows[row][0]]:
                    tokens[place] = EOS_ID
            own = logits.double().log_softmax(-1).gather(1, tokens[:, None]).squeeze(1).tolist()
            stays = []
            for place, (row, token) in enumerate(zip(open_rows, tokens.tolist(), strict=True)):
                totals[row] += own[place]
                if token != EOS_ID:
                    drawn[row].append(token)
                    stays.append(place)
            kept = torch.tensor(stays, dtype=torch.int64, device=logits.device)
            open_rows = [open_rows[place] for place in stays]
            last = tokens[kept]
            if open_rows:
                decoding.reorder(kept, kept)
        for (i, _), ids, total in zip(rows, drawn, totals, strict=True):
            results[i].append(
                Hypothesis(ids, float(total / length_penalty(len(ids) + 1, search.length_penalty)), total)
            )
    return [sorted(hypotheses, key=lambda hypothesis: -hypothesis.score) for hypotheses in results]


def cut_to_room(ids: np.ndarray, room: int | None) -> np.ndarray:
    return ids if room is None or len(ids) <= room else np.concatenate((ids[: room - 1], ids[-1:]))
