"""The contenders of training: all take the same steps on the same pairs in the same micro-batches.

Ours is the objective with an engine (`ours.py`), alone or under Ray Train. The control is torch.nn.Transformer as it is
usually written, and another is Hugging Face's Marian (`peers.py`); of a language model a loop in the style of nanoGPT
and Hugging Face's GPT-2 or Llama (`text_peers.py`). All begin with the same weights.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from transloom.pipeline.bench.task import Burst, Kind, Ready, Skip, Task, Trainer, Weights
from transloom.pipeline.processes import peak_bytes
from transloom.pipeline.train.engine import EngineName
from transloom.pipeline.train.schedule import learning_rate

MATMUL_SHAPE = (2048, 1024, 1024)  # friendly to every kernel: what the machine can do at best


def make_member(task: Task) -> tuple[Callable[[int | Weights | Skip], Burst | None], Ready]:
    """The answerer of a member: asked for a number of steps, it takes them and answers with a Burst."""
    make = _import_trainer(task)
    imported = peak_bytes()
    device = torch.device("cuda", torch.cuda.current_device()) if task.use_gpu else torch.device("cpu")
    trainer = make(task, device)
    taken = 0

    def answer(request: int | Weights | Skip) -> Burst | None:
        nonlocal taken
        if isinstance(request, Skip):
            for _ in range(request.steps):
                next(trainer.steps)
            return None
        if isinstance(request, Weights):
            assert trainer.save is not None
            trainer.save(Path(request.path))
            return None
        _synchronize(device)
        started_at, cpu_started_at = time.monotonic(), time.process_time()
        source_tokens = target_tokens = 0
        total = torch.zeros((), dtype=torch.float64, device=device)
        for _ in range(request):
            taken += 1
            step = next(trainer.steps)
            rate = learning_rate(task.schedule, taken, task.total_steps, task.model.d_model)
            total += trainer.take(step, rate)
            source_tokens += step.tokens.get("source", 0)
            target_tokens += step.loss_count
        _synchronize(device)
        return Burst(
            seconds=time.monotonic() - started_at,
            source_tokens=source_tokens,
            target_tokens=target_tokens,
            loss=float(total),
            cpu_seconds=time.process_time() - cpu_started_at,
            peak_bytes=peak_bytes(),
            gpu_peak_bytes=torch.cuda.max_memory_allocated(device) if task.use_gpu else 0,
        )

    return answer, Ready(torch.get_num_threads(), imported)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _import_trainer(task: Task) -> Callable[[Task, torch.device], Trainer]:
    """Imports what the contender needs, and no other's libraries: memory is compared."""
    match task.kind:
        case Kind.ours:
            if task.engine.name is EngineName.deepspeed:
                os.environ.setdefault("DS_ACCELERATOR", "cuda" if task.use_gpu else "cpu")
                import transloom.pipeline.train.deepspeed  # noqa: F401
            from transloom.pipeline.bench.ours import our_trainer

            return our_trainer
        case Kind.torch:
            from transloom.pipeline.bench.peers import torch_trainer

            return torch_trainer
        case Kind.marian:
            import transformers.models.marian  # noqa: F401

            from transloom.pipeline.bench.peers import marian_trainer

            return marian_trainer
        case Kind.nanogpt:
            from transloom.pipeline.bench.text_peers import nanogpt_trainer

            return nanogpt_trainer
        case Kind.huggingface:
            from transformers import AutoModelForCausalLM  # noqa: F401

            from transloom.pipeline.bench.text_peers import huggingface_trainer

            return huggingface_trainer


def make_matmul(use_gpu: bool, dtype: torch.dtype) -> tuple[Callable[[float], float], Ready]:
    """The answerer of the yardstick: asked for a number of seconds, it multiplies matrices for as long, and answers
    with floating-point operations per second."""
    device = torch.device("cuda" if use_gpu else "cpu")
    rows, inner, columns = (size * 4 for size in MATMUL_SHAPE) if use_gpu else MATMUL_SHAPE
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(inner, columns, device=device).to(dtype)
    torch.matmul(a, b)

    def answer(seconds: float) -> float:
        _synchronize(device)
        products, started_at = 0, time.monotonic()
        at_a_time = 10 if use_gpu else 1  # a GPU is waited for, which must not be what is measured
        while (elapsed := time.monotonic() - started_at) < seconds:
            for _ in range(at_a_time):
                torch.matmul(a, b)
            products += at_a_time
            _synchronize(device)
        return 2 * rows * inner * columns * products / elapsed

    return answer, Ready(torch.get_num_threads(), peak_bytes())
