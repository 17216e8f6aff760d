"""Translation: a sentence of one language to a sentence of another."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.build import ModelConfig, build_model
from pipeline.data.batches import BatchConfig
from pipeline.data.lines import read_lines
from pipeline.data.pairs import collate_pairs, open_pairs
from pipeline.data.tokenizer import Tokenizer
from pipeline.evaluate.tokenizers import DEFAULT
from pipeline.evaluate.validate import validate
from pipeline.generate.beam import BeamConfig
from pipeline.tasks.task import Evaluation, Metric, Task
from pipeline.train.objective import TranslationObjective

BLEU = Metric("bleu", "BLEU")


def translation(
    folder_of: Callable[[str], Path],
    *,
    model: ModelConfig,
    batch: BatchConfig,
    label_smoothing: float,
    search: BeamConfig,
    tokenize: str = DEFAULT,
    metadata: Mapping[str, Any] | None = None,
) -> Task:
    """The task on a prepared corpus.

    Args:
        folder_of: the folder of "corpus", "tokenizer" or "shards".
        search: of validations.
        tokenize: BLEU's tokenizer, see `tokenizer_for`.
    """
    tokenizer = Tokenizer.load(folder_of("tokenizer"))

    def validated(trained: Any) -> Evaluation:
        references = [line.decode() for line in read_lines(folder_of("corpus") / "validation.target")]
        pairs = open_pairs(folder_of("shards"), "validation")
        return validate(trained, tokenizer, pairs, references, batch, search, tokenize)

    def text(column: str, ids: Sequence[int]) -> str:
        return tokenizer.decode([list(ids[:-1])])[0]  # without </s>

    return Task(
        name="translation",
        selects=BLEU,
        loss_column="target",
        tokenizer=tokenizer.sha256,
        model=lambda: build_model(model, tokenizer.vocab_size),
        objective=lambda new: TranslationObjective(new, label_smoothing),
        examples=lambda split: open_pairs(folder_of("shards"), split),
        collate=collate_pairs,
        validate=validated,
        text=text,
        metadata=metadata or {},
    )
