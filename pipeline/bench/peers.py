"""What ours is measured against: training as it is usually written, on padded batches, under autocast.

torch.nn.Transformer with CrossEntropyLoss is the control; Hugging Face's MarianMTModel is the other. Both read the
same pairs in the same micro-batches as ours, begin with the same weights, and accumulate and normalise likewise.
Letters in shapes: B sentences, S and T the longest source and target, V the vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from transloom.model.config import Norm, TransformerConfig
from transloom.model.layers import DecoderLayer, SelfAttentionLayer
from transloom.model.positions import sinusoids
from transloom.model.transformer import Transformer
from transloom.pipeline.bench.task import Task, Trainer, initial_model
from transloom.pipeline.data.batches import BatchConfig, Step, ahead, plan_epoch
from transloom.pipeline.data.pairs import open_pairs
from transloom.pipeline.data.tokenizer import BOS_ID, PAD_ID
from transloom.pipeline.tasks.task import Examples
from transloom.pipeline.train.optimizer import TORCH_DTYPES, Precision


@dataclass(frozen=True)
class PaddedBatch:
    """One micro-batch: ids of the source (B, S), the decoder's input (B, T) and the labels (B, T)."""

    source: Tensor
    target: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "PaddedBatch":
        """The same on another device; does not wait for it."""
        if device.type == "cpu":
            return self
        return PaddedBatch(*[x.pin_memory().to(device, non_blocking=True) for x in vars(self).values()])


@dataclass(frozen=True)
class PaddedStep:
    """One optimizer step."""

    batches: list[PaddedBatch]
    tokens: dict[str, int]

    @property
    def loss_count(self) -> int:
        return self.tokens["target"]


def padded_steps(pairs: Examples, config: BatchConfig, seed: int) -> Iterator[PaddedStep]:
    """The steps of `iterate_steps` for one worker, padded."""
    epoch = 0
    while True:
        plan = plan_epoch(pairs.lengths, config, seed, epoch)
        for first in range(0, len(plan), config.micro_batches):
            micro = plan[first : first + config.micro_batches]
            yield PaddedStep(
                [_padded(pairs, indices) for indices in micro],
                dict(zip(pairs.columns, pairs.lengths[np.concatenate(micro)].sum(axis=0).tolist(), strict=True)),
            )
        epoch += 1


def _padded(pairs: Examples, indices: np.ndarray) -> PaddedBatch:
    def pad(sentences: list[np.ndarray]) -> Tensor:
        tensors = [torch.from_numpy(ids.astype(np.int64)) for ids in sentences]
        return pad_sequence(tensors, batch_first=True, padding_value=PAD_ID)

    source, labels = (pad([pairs.get(column, i) for i in indices]) for column in pairs.columns)
    target = labels.roll(1, dims=1)
    target[:, 0] = BOS_ID
    return PaddedBatch(source, target, labels)


class PlainTransformer(nn.Module):
    """torch.nn.Transformer with what it lacks: embeddings, sinusoids, and the tied output projection."""

    positions: Tensor

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        is_pre = config.norm is Norm.pre
        self.scale = math.sqrt(config.d_model)
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.register_buffer("positions", sinusoids(config.max_positions, config.d_model), persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = nn.Transformer(
            d_model=config.d_model,
            nhead=config.num_heads,
            num_encoder_layers=config.encoder_layers,
            num_decoder_layers=config.decoder_layers,
            dim_feedforward=config.d_ff,
            dropout=config.dropout,
            batch_first=True,
            norm_first=is_pre,
        )
        if not is_pre:  # torch adds a last normalisation that the paper's figure 1 does not have
            self.transformer.encoder.norm = self.transformer.decoder.norm = None

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """source: (B, S), target: (B, T) ids -> logits (B, T, V)."""
        padding = source == PAD_ID
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device, dtype=torch.bool)
        hidden = self.transformer(
            self.embed(source),
            self.embed(target),
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,  # padding stands behind a sentence's end, so this hides it too
        )
        return nn.functional.linear(hidden, self.embedding.weight)

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, L) ids -> (B, L, d_model)"""
        return self.dropout(self.embedding(tokens) * self.scale + self.positions[: tokens.shape[1]])


@torch.no_grad()
def copy_weights(ours: Transformer, plain: PlainTransformer) -> None:
    """Gives the control our weights, so that both begin at the same point."""
    plain.embedding.load_state_dict(ours.embedding.state_dict())
    theirs: Any = plain.transformer
    for layer, other in zip(cast(list[SelfAttentionLayer], ours.encoder), theirs.encoder.layers, strict=True):
        attention = layer.self_attention.query_key_value
        _copy_attention(attention.weight, attention.bias, layer.self_attention.output, other.self_attn)
        _copy_feed_forward(layer, other)
        other.norm1.load_state_dict(layer.around_attention.norm.state_dict())
        other.norm2.load_state_dict(layer.around_feed_forward.norm.state_dict())
    for layer, other in zip(cast(list[DecoderLayer], ours.decoder), theirs.decoder.layers, strict=True):
        attention, cross = layer.self_attention.query_key_value, layer.cross_attention
        _copy_attention(attention.weight, attention.bias, layer.self_attention.output, other.self_attn)
        weight = torch.cat((cross.query.weight, cross.key_value.weight))
        bias = torch.cat((cross.query.bias, cross.key_value.bias))
        _copy_attention(weight, bias, cross.output, other.multihead_attn)
        _copy_feed_forward(layer, other)
        other.norm1.load_state_dict(layer.around_self_attention.norm.state_dict())
        other.norm2.load_state_dict(layer.around_cross_attention.norm.state_dict())
        other.norm3.load_state_dict(layer.around_feed_forward.norm.state_dict())
    for name in ("encoder", "decoder"):
        if (norm := getattr(theirs, name).norm) is not None:
            norm.load_state_dict(getattr(ours, f"{name}_norm").state_dict())


def _copy_attention(weight: Tensor, bias: Tensor, output: nn.Linear, theirs: Any) -> None:
    theirs.in_proj_weight.copy_(weight)
    theirs.in_proj_bias.copy_(bias)
    theirs.out_proj.load_state_dict(output.state_dict())


def _copy_feed_forward(layer: SelfAttentionLayer | DecoderLayer, theirs: Any) -> None:
    theirs.linear1.load_state_dict(layer.feed_forward.inner.state_dict())
    theirs.linear2.load_state_dict(layer.feed_forward.outer.state_dict())


def torch_trainer(task: Task, device: torch.device) -> Trainer:
    """The control."""
    ours = cast(Transformer, initial_model(task))
    model = PlainTransformer(ours.config, task.vocab_size)
    copy_weights(ours, model)
    return _trainer(task, device, model, model)


def marian_trainer(task: Task, device: torch.device) -> Trainer:
    """Hugging Face's model."""
    from transformers import MarianMTModel

    from transloom.pipeline.export import marian_config, marian_weights

    ours = cast(Transformer, initial_model(task))
    config = marian_config(ours.config, task.vocab_size)
    # Of its two implementations the quicker one: on a CPU the backward of torch's fused attention is slow.
    config._attn_implementation = "sdpa" if device.type == "cuda" else "eager"
    model = MarianMTModel(config)
    model.load_state_dict(marian_weights(ours.state_dict(), ours.config.d_model), strict=False)

    def logits(source: Tensor, target: Tensor) -> Tensor:
        mask = (source != PAD_ID).long()
        return model(input_ids=source, attention_mask=mask, decoder_input_ids=target, use_cache=False).logits

    return _trainer(task, device, model, logits)


def _trainer(task: Task, device: torch.device, model: nn.Module, logits: Callable[[Tensor, Tensor], Tensor]) -> Trainer:
    model.to(device).train()
    adam = task.optimizer
    optimizer = torch.optim.Adam(model.parameters(), betas=(adam.beta1, adam.beta2), eps=adam.eps, fused=True)
    criterion = nn.CrossEntropyLoss(label_smoothing=task.label_smoothing, ignore_index=PAD_ID, reduction="sum")
    dtype = TORCH_DTYPES[task.precision.dtype]
    is_mixed = task.precision.dtype is not Precision.fp32

    def take(step: PaddedStep, rate: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=device)
        for batch in step.batches:
            with torch.autocast(device.type, dtype=dtype, enabled=is_mixed):
                loss = criterion(logits(batch.source, batch.target).flatten(0, 1), batch.labels.flatten())
            (loss / step.loss_count).backward()
            total += loss.detach()
        if adam.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), adam.clip_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    steps = padded_steps(open_pairs(Path(task.shards), "train"), task.batch, task.seed)
    return Trainer(ahead(cast(Iterator[Step], steps), device), take)  # made in the background, as ours are
