"""How good a model in training is on the validation set: loss and BLEU, the work shared out over the ranks."""

import torch

from transloom.model.build import Model
from transloom.model.losses import label_smoothed_cross_entropy
from transloom.pipeline.data.batches import BatchConfig, plan_epoch
from transloom.pipeline.data.pairs import collate_pairs
from transloom.pipeline.data.tokenizer import Tokenizer
from transloom.pipeline.evaluate.scores import score
from transloom.pipeline.evaluate.tokenizers import DEFAULT
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.decoding import translate_tokens
from transloom.pipeline.ranks import gather, rank, world_size
from transloom.pipeline.tasks.task import Evaluation, Examples


@torch.inference_mode()
def validate(
    model: Model,
    tokenizer: Tokenizer,
    pairs: Examples,
    references: list[str],
    batch: BatchConfig,
    beam: BeamConfig,
    tokenize: str = DEFAULT,
) -> Evaluation:
    """Loss (cross-entropy in nats a target token, without label smoothing), BLEU and chrF (sacreBLEU's, on the raw
    references) of a model in evaluation mode, and its translations; under a process group every rank does its share and
    gets the whole result.

    Args:
        references: the raw target lines, one a pair.
        tokenize: BLEU's tokenizer, see `tokenizer_for`.
    """
    device = model.embedding.weight.device
    # Longest last, and dealt out in turn: every rank gets as much work.
    source = pairs.columns.index("source")
    order = sorted(range(len(pairs)), key=lambda i: int(pairs.lengths[i, source]))[rank() :: world_size()]
    total, tokens = 0.0, 0
    # A validation pair may be longer than a training batch allows; it is never left out.
    longest = max(int(pairs.lengths.max()), batch.micro_tokens)
    budget = BatchConfig(tokens=longest, micro_tokens=longest)
    for indices in plan_epoch(pairs.lengths[order], budget, seed=0, epoch=0):
        part = collate_pairs(pairs, [order[i] for i in indices]).to(device)
        hidden = model(part.source, part.source_layout, part.target, part.target_layout)
        loss = label_smoothed_cross_entropy(hidden, model.output_weight, part.labels, smoothing=0.0)
        total, tokens = total + float(loss.total), tokens + loss.num_tokens
    found = translate_tokens(model, [pairs.get("source", i) for i in order], beam)
    said = tokenizer.decode([hypothesis.tokens for hypothesis in found])
    shares = gather((total, tokens, dict(zip(order, said, strict=True))))
    by_pair = {i: text for share in shares for i, text in share[2].items()}
    hypotheses = [by_pair[i] for i in range(len(pairs))]
    loss = sum(share[0] for share in shares) / sum(share[1] for share in shares)
    return Evaluation(loss, score(hypotheses, references, tokenize=tokenize), len(pairs), hypotheses)
