"""What a language model of ours is measured against: a plain loop in the style of nanoGPT, and Hugging Face's model.

Both read dense windows of the tokens that ours reads, begin with its weights, and accumulate and normalise likewise.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from transloom.model.decoder_only import DecoderOnly
from transloom.pipeline.bench.nanogpt import GPT, copy_weights
from transloom.pipeline.bench.task import Task, Trainer, initial_model
from transloom.pipeline.bench.text_steps import DenseStep, dense_steps
from transloom.pipeline.data.batches import Step, ahead
from transloom.pipeline.huggingface import write_huggingface
from transloom.pipeline.train.optimizer import TORCH_DTYPES, Precision


def nanogpt_trainer(task: Task, device: torch.device) -> Trainer:
    """The plain loop."""
    ours = cast(DecoderOnly, initial_model(task))
    model = GPT(ours.config, task.vocab_size)
    copy_weights(ours, model)
    return _trainer(task, device, model, model)


def huggingface_trainer(task: Task, device: torch.device) -> Trainer:
    """Hugging Face's GPT-2, or Llama where positions are rotary."""
    with TemporaryDirectory(prefix="transloom-bench-") as folder:
        ours = cast(DecoderOnly, initial_model(task))
        write_huggingface(Path(folder), ours.config, task.vocab_size, ours.state_dict())
        model = load_huggingface(Path(folder))
    return _trainer(task, device, model, lambda tokens: model(input_ids=tokens, use_cache=False).logits)


def load_huggingface(folder: Path) -> Any:
    """The model of a folder in fp32, with torch's own attention."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)


def _trainer(task: Task, device: torch.device, model: nn.Module, logits: Callable[[Tensor], Tensor]) -> Trainer:
    model.to(device).train()
    adam = task.optimizer
    # Weight decay is of the matrices alone; embeddings have none, as in ours.
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    decayed = [one for one in model.parameters() if one.dim() > 1 and id(one) not in embeddings]
    others = [one for one in model.parameters() if one.dim() < 2 or id(one) in embeddings]
    groups = [{"params": decayed, "weight_decay": adam.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(adam.beta1, adam.beta2), eps=adam.eps, fused=True)
    dtype = TORCH_DTYPES[task.precision.dtype]
    is_mixed = task.precision.dtype is not Precision.fp32

    def take(step: DenseStep, rate: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=device)
        for batch in step.batches:
            with torch.autocast(device.type, dtype=dtype, enabled=is_mixed):
                loss = functional.cross_entropy(
                    logits(batch.tokens).flatten(0, 1),
                    batch.labels.flatten(),
                    label_smoothing=task.label_smoothing,
                    reduction="sum",
                )
            (loss / step.loss_count).backward()
            total += loss.detach()
        if adam.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), adam.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return Trainer(ahead(cast(Iterator[Step], dense_steps(task)), device), take)  # made in the background, as ours are
