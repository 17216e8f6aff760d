"""How good a model in training is on the validation set: loss and BLEU, the work shared out over the ranks."""

from dataclasses import dataclass

import torch

from model.build import Model
from model.losses import label_smoothed_cross_entropy
from pipeline.data.batches import BatchConfig, make_batch, plan_epoch
from pipeline.data.shards import PairDataset
from pipeline.data.tokenizer import Tokenizer
from pipeline.evaluate.scores import score
from pipeline.evaluate.tokenizers import DEFAULT
from pipeline.generate.beam import BeamConfig
from pipeline.generate.translator import translate_tokens
from pipeline.ranks import gather, rank, world_size


@dataclass(frozen=True)
class Validation:
    """Scores on the validation set.

    Attributes:
        loss: cross-entropy in nats a target token, without label smoothing; exp(loss) is the perplexity.
        bleu, chrf: sacreBLEU's, on the raw references; `signature` is BLEU's.
        hypotheses: one translation a pair.
    """

    loss: float
    bleu: float
    chrf: float
    signature: str
    hypotheses: list[str]


@torch.inference_mode()
def validate(
    model: Model,
    tokenizer: Tokenizer,
    pairs: PairDataset,
    references: list[str],
    batch: BatchConfig,
    beam: BeamConfig,
    tokenize: str = DEFAULT,
) -> Validation:
    """Scores a model in evaluation mode; under a process group every rank does its share and gets the whole result.

    Args:
        references: the raw target lines, one a pair.
        tokenize: BLEU's tokenizer, see `tokenizer_for`.
    """
    device = model.embedding.weight.device
    # Longest last, and dealt out in turn: every rank gets as much work.
    order = sorted(range(len(pairs)), key=lambda i: int(pairs.source_lengths[i]))[rank() :: world_size()]
    total, tokens = 0.0, 0
    # A validation pair may be longer than a training batch allows; it is never left out.
    longest = max(int(pairs.source_lengths.max()), int(pairs.target_lengths.max()), batch.micro_tokens)
    budget = BatchConfig(tokens=longest, micro_tokens=longest)
    for indices in plan_epoch(pairs.source_lengths[order], pairs.target_lengths[order], budget, seed=0, epoch=0):
        part = make_batch(pairs, [order[i] for i in indices]).to(device)
        hidden = model(part.source, part.source_layout, part.target, part.target_layout)
        loss = label_smoothed_cross_entropy(hidden, model.embedding.weight, part.labels, smoothing=0.0)
        total, tokens = total + float(loss.total), tokens + loss.num_tokens
    found = translate_tokens(model, [pairs.source(i) for i in order], beam)
    said = tokenizer.decode([hypothesis.tokens for hypothesis in found])
    shares = gather((total, tokens, dict(zip(order, said, strict=True))))
    by_pair = {i: text for share in shares for i, text in share[2].items()}
    hypotheses = [by_pair[i] for i in range(len(pairs))]
    scores = score(hypotheses, references, tokenize=tokenize)
    return Validation(
        loss=sum(share[0] for share in shares) / sum(share[1] for share in shares),
        bleu=scores["bleu"].value,
        chrf=scores["chrf"].value,
        signature=scores["bleu"].signature,
        hypotheses=hypotheses,
    )
