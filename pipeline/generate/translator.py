"""Translating with a trained model, or with several as one."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transloom.model.build import Model, ModelConfig
from transloom.model.config import LanguageModelConfig
from transloom.model.packed_linear import pack_linears
from transloom.pipeline.data.sentence_ends import Part, fitting_parts, sentences
from transloom.pipeline.data.terminology import Terminology
from transloom.pipeline.data.tokenizer import Tokenizer
from transloom.pipeline.data.words import is_unspaced
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.align import WORD_START, Links, align_words
from transloom.pipeline.generate.beam import BeamConfig, Hypothesis
from transloom.pipeline.generate.constrained import Term
from transloom.pipeline.generate.decoding import OnDone, cut_to_room, sample_tokens, search_tokens
from transloom.pipeline.generate.ensemble import Ensemble
from transloom.pipeline.generate.sample import SampleConfig
from transloom.pipeline.model_folder import load_model

log = logging.getLogger(__name__)


class Split(Enum):
    """Which lines are translated in parts: those that are longer than the model reads or than it was trained on, all
    sentence by sentence, or none."""

    long = "long"
    sentences = "sentences"
    never = "never"


@dataclass(frozen=True)
class TranslateConfig:
    """What is made of a line besides its best translation.

    Attributes:
        n_best: hypotheses of the search, at most as many as its beam is wide.
        sampling: draws `sampling.samples` translations in place of searching; None: searches. Of its settings
            max_new_tokens, batch_size and stop mean nothing here.
        align: whether words are aligned.
        split: which lines are translated in parts.
    Raises:
        ValueError: naming the field.
    """

    n_best: int = 1
    sampling: SampleConfig | None = None
    align: bool = False
    split: Split = Split.long

    def __post_init__(self) -> None:
        if self.n_best < 1:
            raise ValueError(f"n_best: must be at least 1, not {self.n_best}")
        if self.n_best > 1 and self.sampling is not None:
            raise ValueError("n_best: is of the search; of sampled translations samples= is the number")


@dataclass(frozen=True)
class Translation:
    """A translation of a line.

    Attributes:
        score: log_probability divided by the search's length penalty, ((5 + tokens) / 6)^length_penalty.
        log_probability: of the tokens and </s>, in nats, by the model itself: also at other temperatures. Forced
            prefixes and terms count.
        tokens: how many there are, with </s>.
        alignment: (source word, target word) from 0, words being what stands between spaces; None: not asked for.

    A line that was translated in parts has the sums of its parts' figures.
    """

    text: str
    score: float
    log_probability: float
    tokens: int
    alignment: Links | None = None


SEARCH, BEST = BeamConfig(), TranslateConfig()
EMPTY = Translation("", 0.0, 0.0, 0, [])


@dataclass(frozen=True)
class Translator:
    """A model, its tokenizer, and its folder's metadata; with `others`, an ensemble.

    Attributes:
        others: further models of the same vocabulary: each step takes the mean of all models' probabilities.
    """

    model: Model
    tokenizer: Tokenizer
    about: dict[str, Any]
    others: tuple[Model, ...] = ()

    @staticmethod
    def load(
        folder: Path | str | Sequence[Path | str],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Translator":
        """Reads a folder written by `save_model`, or several that translate as one.

        Args:
            device: None: a GPU if there is one, else the CPU.
            dtype: to compute in; None: the precision that the folder names, but without a GPU fp32 in place of fp16.
        Raises:
            UserError: a file is missing, damaged, or does not fit the other files; models have different vocabularies.
        """
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        folders = [Path(folder)] if isinstance(folder, Path | str) else [Path(path) for path in folder]
        if not folders:
            raise ValueError("folder: is empty; give a model folder, or several")
        loaded = [load_model(path, device, dtype, Tokenizer.load, _refuse_language_model) for path in folders]
        model, tokenizer, about = loaded[0]
        for path, (_, other, _) in zip(folders, loaded, strict=True):
            if other.sha256 != tokenizer.sha256:
                raise UserError(
                    f"{path} has another vocabulary than {folders[0]}, so they can't translate as one: models of an "
                    "ensemble are trained with one tokenizer (tokenizer.path=<folder of the first>)"
                )
        return Translator(model, tokenizer, about, tuple(other for other, _, _ in loaded[1:]))

    @property
    def models(self) -> list[Model]:
        return [self.model, *self.others]

    @property
    def max_tokens(self) -> int | None:
        """Tokens of the longest line that all models can read, </s> included; None: any number."""
        return Ensemble(self.models).config.max_positions

    @property
    def longest_trained(self) -> int | None:
        """Tokens of the longest source sentence of train, </s> included; None: the folder does not say."""
        return self.about.get("longest_trained")

    def translate(
        self, lines: Sequence[str], config: BeamConfig = SEARCH, first_line: int = 1, done: OnDone | None = None
    ) -> list[str]:
        """The best translation of each line; see `translations`."""
        return [best.text for best, *_ in self.translations(lines, config, first_line=first_line, done=done)]

    def translations(
        self,
        lines: Sequence[str],
        search: BeamConfig = SEARCH,
        config: TranslateConfig = BEST,
        *,
        prefixes: Sequence[str] | None = None,
        terms: Terminology | None = None,
        first_line: int = 1,
        done: OnDone | None = None,
    ) -> list[list[Translation]]:
        """The translations of each line, the best first, at least one; an empty line has an empty one.

        A line in parts has as many as the part that has most; with a warning, if it is longer than the model's
        positions or than what the model was trained on. Of these the former is cut with `Split.never`.

        Args:
            prefixes: that the translation of each line begins with, in whole words.
            terms: a translation has the target terms of the line's source terms, each once or more.
            first_line: the number of the first line, in warnings and for `sampling`.
            done: called with the number of lines, or parts of lines, that were finished since the last call.
        Raises:
            UserError: a prefix or the terms of a line leave the model no room (names the line).
            ValueError: the arguments contradict each other; names the argument.
        """
        _refuse_text("lines", lines)
        if prefixes is not None and len(prefixes) != len(lines):
            raise ValueError(f"prefixes: must be one for each of the {len(lines)} lines, not {len(prefixes)}")
        if terms is not None and config.sampling is not None:
            raise ValueError("terms: are of the search; leave sampling out")
        if config.sampling is None and config.n_best > search.beam:
            raise ValueError(f"n_best: {config.n_best} hypotheses need a beam as wide, not {search.beam}")
        parts_of_lines = list(self._parts(lines, config.split, first_line))
        parts = [text for line_parts in parts_of_lines for text, _ in line_parts]
        places = [(line, part) for line, line_parts in enumerate(parts_of_lines) for part in range(len(line_parts))]
        names = [f"line {first_line + line}" for line, _ in places]
        begin = [prefixes[line] if prefixes and part == 0 else "" for line, part in places]
        sources = self.tokenizer.encode_arrays(parts)
        forced = [ids[:-1].tolist() for ids in self.tokenizer.encode_arrays(begin)]
        model = self._packed_model()
        if config.sampling is None:
            constraints = [self._terms(terms.targets(text)) if terms else [] for text in parts]
            _refuse_full(forced, constraints, self.max_tokens, names)
            hypotheses = search_tokens(
                model, sources, search, config.n_best, forced, constraints, self._continues_word, done
            )
        else:
            _refuse_full(forced, [[] for _ in forced], self.max_tokens, names)
            keys = [(first_line - 1 + line, part) for line, part in places]
            hypotheses = sample_tokens(model, sources, search, config.sampling, keys, forced, done)
        found = iter(self._as_texts(sources, hypotheses, search, config))
        return [
            _joined([(next(found), gap) for _, gap in line_parts], parts_of_lines[i])
            for i, line_parts in enumerate(parts_of_lines)
        ]

    def align(self, sources: Sequence[str], translations: Sequence[str]) -> list[Links]:
        """The alignment of given translations, see `align_words`.

        Raises:
            UserError: a text is longer than the model can read, or the model has no cross-attention.
            ValueError: there are not as many translations as sources.
        """
        _refuse_text("sources", sources)
        _refuse_text("translations", translations)
        if len(sources) != len(translations):
            raise ValueError(f"translations: must be one for each source, {len(sources)}, not {len(translations)}")
        encoded = [self.tokenizer.encode_arrays(list(texts)) for texts in (sources, translations)]
        room = self.max_tokens
        for number, pair in enumerate(zip(*encoded, strict=True), start=1):
            if room is not None and (longest := max(map(len, pair))) > room:
                raise UserError(f"pair {number}: has {longest} tokens, and the model reads at most {room}: split it")
        targets = [ids[:-1].tolist() for ids in encoded[1]]
        return self._aligned(encoded[0], targets)

    def _parts(self, lines: Sequence[str], split: Split, first_line: int) -> Iterator[list[Part]]:
        """The parts of each line, at least one."""
        room, trained = self.max_tokens, self.longest_trained
        lengths = [len(ids) for ids in self.tokenizer.encode_arrays(list(lines))]

        def fits(text: str) -> bool:
            return room is None or len(self.tokenizer.encode_arrays([text])[0]) <= room

        for number, (line, length) in enumerate(zip(lines, lengths, strict=True), start=first_line):
            is_long = room is not None and length > room
            if split is Split.long and not is_long and trained is not None and length > trained:
                parts = sentences(line)
                log.warning(
                    "line %d has %d tokens, and the longest sentence that the model was trained on %d: %s",
                    *(number, length, trained),
                    f"it is translated in {len(parts)} parts" if len(parts) > 1 else "its translation may be poor",
                )
                yield parts if len(parts) > 1 else [(line, "")]
            elif split is Split.never or not (is_long or split is Split.sentences):
                if is_long:
                    log.warning(
                        "line %d has %d tokens and is cut to the %d that the model can read", number, length, room
                    )
                yield [(line, "")]
            elif is_long:
                parts = fitting_parts(line, fits)
                log.warning(
                    "line %d has %d tokens, and the model can read %d: it is translated in %d parts",
                    *(number, length, room, len(parts)),
                )
                yield parts
            else:
                yield sentences(line)

    def _packed_model(self) -> "Model | Ensemble":
        packed = [pack_linears(model) for model in self.models]
        return Ensemble(packed) if self.others else packed[0]

    @cached_property
    def _continues_word(self) -> list[bool]:
        """Of each id whether its text goes on with the word before it."""
        return [_continues_word(piece) for piece in self._pieces]

    @cached_property
    def _pieces(self) -> list[str]:
        return self.tokenizer.pieces()

    def _terms(self, targets: list[str]) -> list[Term]:
        return list(dict.fromkeys(tuple(ids[:-1].tolist()) for ids in self.tokenizer.encode_arrays(targets)))

    def _aligned(self, sources: Sequence[np.ndarray], targets: Sequence[Sequence[int]]) -> list[Links]:
        links: list[Links] = []
        room = self.max_tokens
        for start in range(0, len(sources), ALIGNED_AT_A_TIME):
            part = slice(start, start + ALIGNED_AT_A_TIME)
            cut = [cut_to_room(ids, room) for ids in sources[part]]
            links += align_words(self.models, cut, targets[part], self._pieces)
        return links

    def _as_texts(
        self,
        sources: Sequence[np.ndarray],
        lists: Sequence[Sequence[Hypothesis]],
        search: BeamConfig,
        config: TranslateConfig,
    ) -> Iterator[list[Translation]]:
        flat = [(i, hypothesis) for i, hypotheses in enumerate(lists) for hypothesis in hypotheses]
        texts = self.tokenizer.decode([hypothesis.tokens for _, hypothesis in flat])
        links: list[Links | None] = [None] * len(flat)
        if config.align:
            links = [*self._aligned([sources[i] for i, _ in flat], [hypothesis.tokens for _, hypothesis in flat])]
        made = iter(
            Translation(text, hypothesis.score, hypothesis.log_probability, len(hypothesis.tokens) + 1, alignment)
            for text, (_, hypothesis), alignment in zip(texts, flat, links, strict=True)
        )
        for hypotheses in lists:
            own = [next(made) for _ in hypotheses]
            yield own or [EMPTY if config.align else replace(EMPTY, alignment=None)]


def _refuse_text(name: str, texts: Sequence[str]) -> None:
    """A text is a sequence of texts to Python, so that each letter would be translated by itself."""
    if isinstance(texts, str):
        raise ValueError(f"{name}: must be a list of lines, not one text: [{texts[:40]!r}]")


ALIGNED_AT_A_TIME = 64


def _joined(found: list[tuple[list[Translation], str]], parts: list[Part]) -> list[Translation]:
    """The translations of a line's parts as those of the line: the first of each part, then the second, and so on. A
    part that has no more repeats its last."""
    if len(found) == 1:
        return found[0][0]
    joined = []
    for rank in range(max(len(translations) for translations, _ in found)):
        chosen = [translations[min(rank, len(translations) - 1)] for translations, _ in found]
        text, links, source_words, target_words = "", [], 0, 0
        for translation, (_, gap), (source, _) in zip(chosen, found, parts, strict=True):
            own = [(source_words + i, target_words + j) for i, j in translation.alignment or []]
            links += own
            text += translation.text + (" " if gap else "")
            source_words += len(source.split()) - (not gap)
            target_words += len(translation.text.split(" ")) - (not gap)
        joined.append(
            Translation(
                text.strip(" "),
                sum(translation.score for translation in chosen),
                sum(translation.log_probability for translation in chosen),
                sum(translation.tokens for translation in chosen),
                None if chosen[0].alignment is None else links,
            )
        )
    return joined


def _refuse_full(
    prefixes: Sequence[Sequence[int]], terms: Sequence[Sequence[Term]], room: int | None, names: Sequence[str]
) -> None:
    """
    Raises:
        UserError: prefix and terms of a sentence have as many tokens as the model can write.
    """
    for name, prefix, own in zip(names, prefixes, terms, strict=True):
        count = len(prefix) + sum(map(len, own))
        if room is not None and count >= room:
            raise UserError(
                f"{name}: prefix and terms have {count} tokens, and a translation of the model has at most {room - 1}. "
                "Shorten them"
            )


def _continues_word(piece: str) -> bool:
    if piece.startswith("<0x") and len(piece) == 6:  # a byte of a rare character
        return int(piece[3:5], 16) >= 0x80 or chr(int(piece[3:5], 16)).isalnum()
    return piece[:1].isalnum() and piece[:1] != WORD_START and not is_unspaced(piece[0])


def _refuse_language_model(config: ModelConfig, about: Mapping[str, Any]) -> None:
    if "labels" in about:
        raise UserError("the model labels texts, and does not translate: transloom classify <run> < your_text")
    if isinstance(config, LanguageModelConfig):
        raise UserError('the model continues text, and does not translate: transloom generate <run> "Once upon"')
