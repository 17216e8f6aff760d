"""The decoding part of the bench: ours, Hugging Face and CTranslate2 translate the same with the same weights."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from transloom.jobs.bench.contenders import cores, environment
from transloom.jobs.ray_cluster.machine import native_precisions
from transloom.pipeline.bench.config import BenchConfig
from transloom.pipeline.bench.kept import Kept
from transloom.pipeline.bench.report import Ratio, Spread
from transloom.pipeline.bench.search import Found, Program, Request, SearchTask, make_searcher
from transloom.pipeline.data.tokenizer import Tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.scores import score
from transloom.pipeline.evaluate.tokenizers import DEFAULT
from transloom.pipeline.export import Format, export
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.processes import Contender, Meeting
from transloom.pipeline.progress import Progress

BEAMS = (4, 5)  # the paper's, and what toolkits usually take
JUDGED_BEAM = 5
WARM_UP_SENTENCES = 64
# Sentences at a time: for the others what was best of 4 to 128 on the CPU where this was tuned.
BATCH_SENTENCES = {Program.huggingface: 32, Program.ctranslate2: 64}
BATCH_SENTENCES_ON_GPU = 128
FORMATS = {Program.huggingface: Format.huggingface, Program.ctranslate2: Format.ctranslate2}
LABELS = {
    Program.ours: "ours",
    Program.ours_bf16: "ours in bf16",
    Program.huggingface: "Hugging Face",
    Program.ctranslate2: "CTranslate2",
}


@dataclass(frozen=True)
class Sentences:
    """What is translated: token ids and references, with what tells lines of the ids."""

    ids: list[list[int]]
    references: list[str]
    tokenizer: Tokenizer
    tokenize: str  # BLEU's tokenizer

    def bleu(self, targets: list[list[int]]) -> Any:
        return score(self.tokenizer.decode(targets), self.references, tokenize=self.tokenize)["bleu"]


def choose_sentences(
    model: Path, sources: Sequence[str], references: Sequence[str], number: int, tokenize: str = DEFAULT
) -> Sentences:
    """So many sentences, from all over the test set.

    Args:
        model: a model folder. sources, references: lines of the test set. tokenize: BLEU's tokenizer.
    Raises:
        UserError: the model folder is damaged.
    """
    tokenizer = Tokenizer.load(model)
    chosen = [len(sources) * i // number for i in range(min(number, len(sources)))]
    if len(sources) <= number:
        chosen = list(range(len(sources)))
    ids = tokenizer.encode([sources[i] for i in chosen])
    return Sentences(ids, [references[i] for i in chosen], tokenizer, tokenize)


def measure_decoding(
    model: Path,
    sentences: Sentences,
    decode: BeamConfig,
    bench: BenchConfig,
    use_gpu: bool,
    kept: Kept,
    progress: Progress,
) -> None:
    """Lets all translate the same sentences with the same weights in turns, in fp32, and ours in bf16 too.

    Each program runs with one process of all threads and with a process for each core (CTranslate2: inter_threads), so
    that its best can be compared. Scores have each program's own formula of the length penalty; a last pass without
    one, where the formulas agree, says what part of the translations is identical.

    Args:
        model: a model folder.
        kept: the turns of earlier commands; gets those that are taken.
    Raises:
        UserError: the model folder is damaged, or a contender died.
    """
    notes: list[str] = []
    with ExitStack() as stack:
        exported = Path(stack.enter_context(TemporaryDirectory(prefix="transloom-bench-")))
        folders = {Program.ours: model, Program.ours_bf16: model, **_exported(model, exported, notes)}
        if "bf16" not in native_precisions(use_gpu):
            del folders[Program.ours_bf16]
            notes.append(f"{LABELS[Program.ours_bf16]} is left out: this device has no instructions for bf16")
        meeting = stack.enter_context(Meeting())
        contenders = _start(meeting, folders, use_gpu)
        searches = {name: _Search(contender, sentences.ids, decode, use_gpu) for name, contender in contenders.items()}
        kept.add("programs", names=list(searches), notes=notes)
        _take_turns(searches, bench.rounds, kept, progress)
        progress("translating without a length penalty", 0, 0)
        have = [line["program"] for line in kept.of("exact")]
        for program in [program for program in folders if LABELS[program] not in have]:
            found = searches[_of(program, searches)[0]].translate(JUDGED_BEAM, length_penalty=0.0)
            kept.add("exact", program=LABELS[program], **dataclasses.asdict(found))
    kept.add("decoded")


def decoding_result(
    model: Path, sentences: Sentences, decode: BeamConfig, bench: BenchConfig, kept: Kept
) -> dict[str, Any] | None:
    """What the turns amount to, with how many they are; None where there was none."""
    programs = kept.of("programs")
    found = _found(kept, programs[0]["names"]) if programs else {}
    measured = sum(len(turns) for by_beam in found.values() for turns in by_beam.values())
    if not measured:
        return None
    exact = {line.pop("program"): Found(**line) for line in kept.of("exact")}
    first = {beam: turns[0].targets for beam, turns in next(iter(found.values())).items() if turns}
    table = {
        name: {
            str(beam): {
                "sentences_per_second": dataclasses.asdict(
                    Spread.of([len(sentences.ids) / one.seconds for one in turns])
                ),
                "bleu": sentences.bleu(turns[0].targets).value,
                "identical_to_ours": _same(turns[0].targets, first[beam]),
                "peak_bytes": max(one.peak_bytes for one in turns),
            }
            for beam, turns in by_beam.items()
            if turns
        }
        for name, by_beam in found.items()
    }
    without_penalty = {
        label: {
            "bleu": sentences.bleu(one.targets).value,
            "identical_to_ours": _same(one.targets, exact[LABELS[Program.ours]].targets),
        }
        for label, one in exact.items()
    }
    return {
        "model": str(model),
        "sentences": len(sentences.ids),
        "length_penalty": decode.length_penalty,
        "signature": sentences.bleu(next(iter(first.values()))).signature,
        "contenders": {name: by_beam for name, by_beam in table.items() if by_beam},
        "without_length_penalty": without_penalty,
        "ratios": [one.as_dict() for one in _ratios(found, without_penalty)],
        "notes": programs[0]["notes"],
        "measured": {"turns": measured, "of": bench.rounds * len(BEAMS) * len(found)},
    }


def _found(kept: Kept, names: Iterable[str]) -> dict[str, dict[int, list[Found]]]:
    """The turns so far, by contender and beam."""
    found: dict[str, dict[int, list[Found]]] = {name: {beam: [] for beam in BEAMS} for name in names}
    for line in kept.of("decoding"):
        found[line["contender"]][line["beam"]].append(Found(**line["found"]))
    return found


def _of(program: Program, names: Iterable[str]) -> list[str]:
    """A program's contenders: "<program>, <processes> x <threads>"."""
    return [name for name in names if name.startswith(f"{LABELS[program]}, ")]


def _exported(model: Path, folder: Path, notes: list[str]) -> dict[Program, Path]:
    """The model in the others' formats; why one is missing is noted."""
    found = {}
    for program, to in FORMATS.items():
        try:
            export(model, folder / program.value, to)
            found[program] = folder / program.value
        except UserError as error:
            notes.append(f"{LABELS[program]} is left out: {error}")
    return found


def _start(meeting: Meeting, folders: Mapping[Program, Path], use_gpu: bool) -> dict[str, Contender]:
    """Each program with every threading, by "<program>, <processes> x <threads>"."""
    threads = 1 if use_gpu else cores()
    tasks: dict[str, tuple[SearchTask, int, int]] = {}
    for program, folder in folders.items():
        for inter, intra in dict.fromkeys([(1, threads), (threads, 1)]):
            task = SearchTask(program, str(folder), inter, intra, use_gpu)
            members = 1 if program is Program.ctranslate2 else inter  # which has processes' parallelism of its own
            tasks[f"{LABELS[program]}, {inter} x {intra}"] = (task, members, threads if members == 1 else intra)
    lost = {name: meeting.start_processes(name, members, environment(own)) for name, (_, members, own) in tasks.items()}
    contenders = {name: meeting.meet(name, members, lost[name]) for name, (_, members, _) in tasks.items()}
    for name, contender in contenders.items():
        contender.send(partial(make_searcher, tasks[name][0]))
    for contender in contenders.values():
        contender.receive()
    return contenders


class _Search:
    """A contender with the sentences: dealt out by length where it has several members, so that all have as much."""

    def __init__(self, contender: Contender, ids: list[list[int]], decode: BeamConfig, use_gpu: bool) -> None:
        self._contender, self._ids = contender, ids
        program = next(one for one in Program if _of(one, [contender.name]))
        sentences = BATCH_SENTENCES_ON_GPU if use_gpu else BATCH_SENTENCES.get(program, decode.batch_sentences)
        self._config = dataclasses.replace(decode, batch_sentences=sentences)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        self._shares = [order[i :: contender.size] for i in range(contender.size)]

    def translate(self, beam: int, **changes: Any) -> Found:
        """All sentences; the seconds are those of the slowest member, the memory that of all."""
        config = dataclasses.replace(self._config, beam=beam, **changes)
        self._contender.send(*[Request([self._ids[i] for i in share], config) for share in self._shares])
        answers: list[Found] = self._contender.receive()
        targets: list[list[int]] = [[]] * len(self._ids)
        for share, answer in zip(self._shares, answers, strict=True):
            for i, target in zip(share, answer.targets, strict=True):
                targets[i] = target
        return Found(targets, max(one.seconds for one in answers), sum(one.peak_bytes for one in answers))

    def warm_up(self) -> None:
        some = [self._ids[i] for i in self._shares[0][-WARM_UP_SENTENCES:]]
        self._contender.ask(Request(some, dataclasses.replace(self._config, beam=JUDGED_BEAM)))


def _take_turns(searches: Mapping[str, _Search], rounds: int, kept: Kept, progress: Progress) -> None:
    """Turns that are kept are not taken again; the others are added to them."""
    have = {name: {beam: len(turns) for beam, turns in found.items()} for name, found in _found(kept, searches).items()}
    total, done = rounds * len(BEAMS) * len(searches), sum(sum(by_beam.values()) for by_beam in have.values())
    if done < total:
        for name, search in searches.items():
            progress(f"warming up {name}", 0, 0)
            search.warm_up()
    for number in range(rounds):
        for beam in BEAMS:
            for name in list(searches) if number % 2 == 0 else list(searches)[::-1]:
                if have[name][beam] > number:
                    continue
                progress(f"decoding, round {number + 1} of {rounds}, beam {beam}: {name}", done, total)
                found = dataclasses.asdict(searches[name].translate(beam))
                kept.add("decoding", contender=name, beam=beam, round=number + 1, found=found)
                done += 1


def _same(some: Sequence[list[int]], others: Sequence[list[int]]) -> float:
    return sum(one == other for one, other in zip(some, others, strict=True)) / len(some)


def _ratios(found: Mapping[str, dict[int, list[Found]]], without_penalty: Mapping[str, Any]) -> list[Ratio]:
    """Those that there are targets for, each side with its best threading; over the rounds that both have had."""

    def best(program: Program) -> list[float]:
        """The seconds by round; none where the program has had no turn."""
        seconds = [[one.seconds for one in found[name][JUDGED_BEAM]] for name in _of(program, found)]
        return min(filter(None, seconds), key=median, default=[])

    ratios = []
    for program, goal in ((Program.huggingface, 2.0), (Program.ctranslate2, 0.8)):
        for ours in (Program.ours, Program.ours_bf16):
            both = min(len(best(program)), len(best(ours)))
            if both:
                theirs, mine = best(program)[:both], best(ours)[:both]
                spread = Spread.of([other / one for one, other in zip(mine, theirs, strict=True)])
                what = f"sentences/s, beam {JUDGED_BEAM}: {LABELS[ours]} / {LABELS[program]}, best threading each"
                ratios.append(Ratio(what, median(theirs) / median(mine), spread, goal))
    exported = without_penalty.get(LABELS[Program.ctranslate2])  # after ours
    if exported:
        same = exported["identical_to_ours"]
        ratios.append(Ratio("CTranslate2, no length penalty: identical lines", same, Spread.of([same]), 0.99))
        difference = abs(exported["bleu"] - without_penalty[LABELS[Program.ours]]["bleu"])
        what = "CTranslate2, no length penalty: difference in BLEU"
        ratios.append(Ratio(what, difference, Spread.of([difference]), 0.1, at_least=False))
    return ratios
