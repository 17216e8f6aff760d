"""Translation of a sentence in one language to a sentence in another."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from transloom.model.build import ModelConfig, build_model
from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.data.corpus import count_mix, count_pairs, refuse_wrong_files
from transloom.pipeline.data.corpus_config import SPLITS, CorpusConfig
from transloom.pipeline.data.lines import read_lines
from transloom.pipeline.data.mix import MIX, drawn, mixed
from transloom.pipeline.data.pairs import collate_pairs, open_pairs
from transloom.pipeline.data.prepare import prepare
from transloom.pipeline.data.remote import with_local_files
from transloom.pipeline.data.shards import SIDES
from transloom.pipeline.data.tokenizer import Tokenizer
from transloom.pipeline.evaluate.scores import score
from transloom.pipeline.evaluate.tokenizers import DEFAULT, tokenizer_for
from transloom.pipeline.evaluate.validate import validate
from transloom.pipeline.files import MANIFEST, read_json
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.translator import Translator
from transloom.pipeline.progress import MapTasks, Progress
from transloom.pipeline.tasks.kind import TaskKind
from transloom.pipeline.tasks.samples import sample_places
from transloom.pipeline.tasks.task import Evaluation, Examples, Metric, Scoring, Task
from transloom.pipeline.train.objective import TranslationObjective

# Below 1 BLEU almost no four-gram is right: see `LEAST_BLEU` in pipeline/evaluate/significance.py.
BLEU = Metric("bleu", "BLEU", limits=(0.0, 100.0), trivial=1.0)
LINES_PER_TASK = 500
FEW_LINES = 32  # are one task: another process would import for longer than it translated


def translation(
    folder_of: Callable[[str], Path],
    *,
    model: ModelConfig,
    batch: BatchConfig,
    label_smoothing: float,
    search: BeamConfig,
    validation_beam: int,
    tokenize: str = DEFAULT,
    mix_share: float = 0.0,
    r_drop: float = 0.0,
    weights: Sequence[float] = (),
    temperature: float = 1.0,
) -> Task:
    """The task on a prepared corpus.

    Args:
        folder_of: the folder of "corpus", "tokenizer" or "shards".
        search: of evaluations; validations use a beam of `validation_beam`.
        tokenize: BLEU's tokenizer, see `tokenizer_for`.
        mix_share: of an epoch's pairs that are of the corpus that is mixed in.
        r_drop: see `TranslationObjective`.
        weights, temperature: how an epoch draws from the sources of train; see `draw_counts`. None given: each pair
            once.
    """
    tokenizer = Tokenizer.load(folder_of("tokenizer"))

    def validated(trained: Any) -> Evaluation:
        sources, references = _texts(folder_of("corpus"), "validation")
        pairs = open_pairs(folder_of("shards"), "validation")
        quick = dataclasses.replace(search, beam=validation_beam)
        evaluation = validate(trained, tokenizer, pairs, references, batch, quick, tokenize)
        return dataclasses.replace(evaluation, samples=_samples(sources, references, evaluation.outputs))

    def text(column: str, ids: Sequence[int]) -> str:
        return tokenizer.decode([list(ids[:-1])])[0]  # without </s>

    def with_mix(train: Examples, seed: int, epoch: int) -> Examples:
        if weights:
            sources = read_json(folder_of("corpus") / MANIFEST)["counts"]["sources"]
            sizes = [source["pairs"] for source in sources]
            train = drawn(train, sizes, weights, temperature, seed, epoch)
        return mixed(train, open_pairs(folder_of("shards"), MIX), mix_share, seed, epoch) if mix_share else train

    return Task(
        selects=BLEU,
        loss_column="target",
        tokenizer=tokenizer.sha256,
        model=lambda: build_model(model, tokenizer.vocab_size),
        objective=lambda new: TranslationObjective(new, label_smoothing, r_drop),
        examples=lambda split: open_pairs(folder_of("shards"), split),
        epoch=with_mix,
        collate=collate_pairs,
        validate=validated,
        evaluate=partial(evaluate_translation, folder_of, search, tokenize),
        text=text,
    )


def translation_scoring(search: BeamConfig, tokenize: str, own_search: BeamConfig, own_tokenize: str) -> Scoring:
    """The scoring by a search and BLEU's tokenizer, beside the search and tokenizer that the run began with."""
    key: dict[str, Any] = {"decode": search}
    if tokenize != DEFAULT:  # earlier evaluations, all by 13a, keep their folders
        key["tokenize"] = tokenize
    label, in_words = search.label(), search.in_words()
    if tokenize != own_tokenize:
        label, in_words = f"{label}-{tokenize}", f"{in_words}, BLEU by {tokenize}"
    is_own = (search, tokenize) == (own_search, own_tokenize)
    return Scoring(key, search.label(), label, in_words, dataclasses.asdict(search), is_own)


def evaluate_translation(
    folder_of: Callable[[str], Path],
    search: BeamConfig,
    tokenize: str,
    model: Path,
    split: str,
    map_tasks: MapTasks,
    progress: Progress,
) -> Evaluation:
    """Translates a split and scores the translations by the raw references; for test with TER and intervals, too.

    Args:
        model: the model's folder, which all tasks see.
    """
    sources, references = _texts(folder_of("corpus"), split)
    hypotheses = translate_in_tasks(
        model, sources, search, map_tasks, lambda done: progress(f"translating {split}", done, len(sources))
    )
    return Evaluation(
        loss=None,
        scores=score(hypotheses, references, in_full=split == "test", tokenize=tokenize),
        num_examples=len(sources),
        outputs=hypotheses,
        samples=_samples(sources, references, hypotheses),
    )


def _texts(corpus: Path, split: str) -> list[list[str]]:
    """The source and the target lines of a split."""
    return [[line.decode() for line in read_lines(corpus / f"{split}.{side}")] for side in SIDES]


def _samples(sources: Sequence[str], references: Sequence[str], translations: Sequence[str]) -> dict[str, list[str]]:
    columns = {"source": sources, "reference": references, "translation": translations}
    return {name: [lines[i] for i in sample_places(len(sources))] for name, lines in columns.items()}


def translate_in_tasks(
    model: Path, lines: list[str], search: BeamConfig, map_tasks: MapTasks, progress: Callable[[int], object]
) -> list[str]:
    """Translations in the lines' order, decoded in tasks of some hundred lines each.

    Args:
        progress: called with the number of finished lines.
    """
    # Lines are sorted by length and dealt out in turn, so that every task has the same amount of work.
    order = sorted(range(len(lines)), key=lambda i: len(lines[i]))
    num_tasks = max(1 if len(lines) <= FEW_LINES else 2, -(-len(lines) // LINES_PER_TASK))
    shares = [order[i::num_tasks] for i in range(min(num_tasks, len(lines)))]
    tasks = [(str(model), [lines[i] for i in share], search) for share in shares]
    translations = [""] * len(lines)
    done = 0
    for share, texts in zip(shares, map_tasks(_translate, tasks), strict=True):
        for i, text in zip(share, texts, strict=True):
            translations[i] = text
        done += len(share)
        progress(done)
    return translations


def _translate(task: tuple[str, list[str], BeamConfig]) -> list[str]:
    model, lines, search = task
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Translator.load(Path(model), device).translate(lines, search)


def _refuse_wrong_corpus(corpus: CorpusConfig) -> None:
    refuse_wrong_files(corpus)
    for split in SPLITS:  # refuses sides of unequal lengths
        count_pairs(corpus, split)
    count_mix(corpus)


def _scoring(config: Any, own: Any) -> Scoring:
    tokenize, own_tokenize = (tokenizer_for(one.corpus.target_language, one.evaluate) for one in (config, own))
    return translation_scoring(config.decode, tokenize, own.decode, own_tokenize)


def _make(config: Any, folder_of: Callable[[str], Path]) -> Task:
    return translation(
        folder_of,
        model=config.model,
        batch=config.batch,
        label_smoothing=config.train.label_smoothing,
        search=config.decode,
        validation_beam=config.train.validation_beam,
        tokenize=tokenizer_for(config.corpus.target_language, config.evaluate),
        mix_share=config.corpus.mix.share,
        r_drop=config.train.r_drop,
        weights=config.corpus.weights,
        temperature=config.corpus.temperature,
    )


TRANSLATION = TaskKind(
    metric=lambda corpus: BLEU,
    token_columns=SIDES,
    with_local_corpus=with_local_files,
    refuse_wrong_corpus=_refuse_wrong_corpus,
    prepare=lambda config, folder, map_tasks, progress, only_find: prepare(
        config.corpus, config.clean, config.tokenizer, folder, map_tasks, progress, only_find=only_find
    ),
    scoring=_scoring,
    make=_make,
)
