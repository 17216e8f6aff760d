"""What a comparison says, as sentences and as tables of text: for the terminal, the report and MLflow."""

from collections.abc import Mapping, Sequence
from typing import Any

from transloom.jobs.terminal.console import clock, quantity
from transloom.pipeline.compare.report import Table
from transloom.pipeline.evaluate.significance import LEAST_BLEU, are_too_low
from transloom.pipeline.evaluate.tokenizers import DEFAULT, SPACED
from transloom.pipeline.tasks.build import TaskName, selecting_metric, token_columns
from transloom.pipeline.tasks.task import Metric

NAMES = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER", "comet": "COMET"}
DIGITS = {"bleu": 2, "chrf": 2, "ter": 2, "comet": 4}  # COMET is mostly between 0 and 1
SURE = 0.05  # p-values below are called a difference


def verdicts(comparison: Mapping[str, Any]) -> list[str]:
    """A sentence for each system but the baseline, in words."""
    baseline, sentences = comparison["baseline"], comparison["sentences"]
    said = []
    for name, one in comparison["systems"].items():
        if name == baseline:
            continue
        bleu = one["scores"]["bleu"]
        if _is_too_low(comparison, name):
            said.append(
                f"{name} has {bleu['score']:.2f} BLEU, and {baseline} "
                f"{comparison['systems'][baseline]['scores']['bleu']['score']:.2f}: below {LEAST_BLEU:g} BLEU neither "
                "translates, and which of them is better can't be told."
            )
            continue
        verdict, p = _judge("bleu", bleu), p_in_words(bleu["p_randomisation"])
        if verdict == "not different":
            verdict = f"no difference that {sentences:,} sentences can show"
        others = {metric: _judge(metric, its) for metric, its in one["scores"].items() if metric != "bleu"}
        by_others = ", ".join(f"by {NAMES[metric]} {verdict}" for metric, verdict in others.items())
        said.append(
            f"{name} has {bleu['score']:.2f} BLEU, {bleu['difference']:+.2f} to {baseline} "
            f"(p {'' if p.startswith('<') else '= '}{p}): {verdict}; {by_others}."
        )
    return said + seed_verdicts(comparison) + unfinished(comparison, "these are translations")


def judged(metric: Metric, scores: Mapping[str, Any], what: str) -> str:
    """
    Args:
        what: the number and kind of what was scored: "1,000 texts".
    """
    if scores["p_holm"] >= SURE:
        return f"no difference that {what} can show"
    return "better" if metric.is_better(scores["difference"], 0.0) else "worse"


def on_validation(comparison: Mapping[str, Any]) -> list[str]:
    """A sentence where the compared split is the one that the models were chosen on."""
    chosen = "the model's steps and settings were chosen on it"
    said = f"Compared on the validation set, for a corpus has no test set: {chosen}."
    return [said] if comparison["split"] == "validation" else []


def simple_verdicts(comparison: Mapping[str, Any], what: str, article: str = "A") -> list[str]:
    """A sentence for each simple model.

    Args:
        what: was scored: "texts".
    """
    metric, systems = metric_of(comparison), comparison["systems"]
    said = []
    for model, value in comparison["simple_models"].items():
        worse = [
            name for name, one in systems.items() if not metric.is_better(one["scores"][metric.name]["score"], value)
        ]
        beaten = f"not beaten by {', '.join(worse)}" if worse else "beaten by all of them"
        said.append(f"{article} {model} has {metric.shown(value)} {metric.title} on the same {what}: {beaten}.")
    return said


def seed_verdicts(comparison: Mapping[str, Any]) -> list[str]:
    """A sentence for each group of runs that differ in the seed alone."""
    metric = metric_of(comparison)
    first, said = None, []
    for group in comparison.get("seeds", []):
        spread = f"{metric.shown(group['mean'])} ± {metric.shown(group['deviation'])}"
        if first is None or group["difference"] is None:
            said.append(f"Over {group['runs']} seeds, {group['names'][0]} and the like have {spread} {metric.title}.")
            first = first or group
            continue
        p = p_in_words(group["p_value"])
        said.append(
            f"Over {group['pairs']} seeds, {group['names'][0]} and the like have {spread} {metric.title}, and "
            f"{first['names'][0]} and the like {metric.shown(first['mean'])} ± {metric.shown(first['deviation'])}: "
            f"{group['difference']:+.{metric.digits}f}, 95 % interval {group['low']:+.{metric.digits}f} to "
            f"{group['high']:+.{metric.digits}f} (p {'' if p.startswith('<') else '= '}{p}, paired t-test)."
        )
    return said


def _seeds(comparison: Mapping[str, Any]) -> Table:
    metric, rows = metric_of(comparison), []
    for number, group in enumerate(comparison["seeds"]):
        spread = [metric.shown(group["mean"]), metric.shown(group["deviation"])]
        row = [", ".join(group["names"]), f"{group['runs']}", *spread]
        if number == 0:
            rows.append([*row, "baseline", "", ""])
        elif group["difference"] is None:
            rows.append([*row, "no seeds in common", "", ""])
        else:
            low, mean, high = (f"{group[key]:+.{metric.digits}f}" for key in ("low", "difference", "high"))
            rows.append([*row, mean, f"{low} to {high}", p_in_words(group["p_value"])])
    columns = ["runs", "seeds", f"mean {metric.title}", "standard deviation"]
    columns += ["difference", "95 % interval", "p"]
    note = "Runs whose settings differ in the seed alone. Differences are paired by seed, with Student's t."
    return Table("Seeds", columns, rows, note)


def unfinished(comparison: Mapping[str, Any], what: str) -> list[str]:
    """A sentence for each system whose training does not end where its model was made."""
    return [
        f"The training of {name} {one['progress']}: {what} of step {one['training']['steps']:,}."
        for name, one in comparison["systems"].items()
        if one["progress"] not in (None, "ended")
    ]


def _is_too_low(comparison: Mapping[str, Any], name: str) -> bool:
    """Whether neither a system nor the baseline has the BLEU from which on a difference says something."""
    systems = comparison["systems"]
    return are_too_low(systems[one]["scores"]["bleu"]["score"] for one in (name, comparison["baseline"]))


def _judge(metric: str, scores: Mapping[str, Any]) -> str:
    """Better, worse or not different, by approximate randomisation with Holm's correction."""
    if scores["p_holm"] >= SURE:
        return "not different"
    return "better" if (scores["difference"] > 0) != (metric == "ter") else "worse"


def p_in_words(value: float | None) -> str:
    """A p-value as people read it; empty where there was no test."""
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def tables(comparison: Mapping[str, Any]) -> dict[str, Table]:
    """All that there are for these systems, by short names, in the order in which they are read."""
    made = {"scores": _scores(comparison), "sentences": _sentences(comparison)}
    if any(one["training"] for one in comparison["systems"].values()):
        made["translations"] = _translations(comparison)
    made |= trainings(comparison)
    made["by_length"] = _by_length(comparison)
    if comparison["by_frequency"]:
        made["by_frequency"] = _by_frequency(comparison)
    return made | differences(comparison)


def trainings(comparison: Mapping[str, Any]) -> dict[str, Table]:
    """What the trainings of any task came to over seeds, cost, and how long they took to a score; nothing where no
    system is a run."""
    made: dict[str, Table] = {"seeds": _seeds(comparison)} if comparison.get("seeds") else {}
    if any(one["training"] for one in comparison["systems"].values()):
        made["runs"] = _runs(comparison)
    if comparison["reach"]:
        made["reach"] = _reach(comparison["reach"], task_of(comparison), metric_of(comparison))
    return made


def differences(comparison: Mapping[str, Any]) -> dict[str, Table]:
    """In what the runs of any task differ; nothing where there are not two."""
    made: dict[str, Table] = {}
    if len(comparison["data"]) and len(comparison["data"][0]["values"]) > 1:
        made["settings"] = _facts(
            comparison["settings"],
            "Settings that differ",
            "All others are the same. The names are those of the parameters in MLflow.",
            "None do.",
        )
        made["data"] = _facts(comparison["data"], "Data", "Hashes are those of the tags in MLflow, shortened.", "")
        made["environment"] = _facts(comparison["environment"], "Machine and versions that differ", "", "None do.")
    return made


def metric_of(comparison: Mapping[str, Any]) -> Metric:
    """The metric that chooses among the systems."""
    return Metric(**comparison["metric"]) if "metric" in comparison else selecting_metric(task_of(comparison))


def task_of(comparison: Mapping[str, Any]) -> TaskName:
    """The task of the systems; comparisons of before there were two do not name it."""
    return TaskName(comparison.get("task", TaskName.translation.value))


def _scores(comparison: Mapping[str, Any]) -> Table:
    several = len(comparison["systems"]) > 2
    rows = []
    for metric in comparison["signatures"]:
        digits = DIGITS[metric]
        for name, one in comparison["systems"].items():
            scores = one["scores"][metric]
            row = [
                f"{NAMES[metric]} {'↓' if metric == 'ter' else '↑'}",
                name,
                f"{scores['score']:.{digits}f}",
                f"{scores['low']:.{digits}f} to {scores['high']:.{digits}f}",
            ]
            if name == comparison["baseline"]:
                row += ["baseline", "", "", *([""] if several else [])]
            else:
                tests = ["p_bootstrap", "p_randomisation", *(["p_holm"] if several else [])]
                is_too_low = _is_too_low(comparison, name)
                row += [
                    f"{scores['difference']:+.{digits}f}",
                    *("–" if is_too_low else p_in_words(scores[one]) for one in tests),
                ]
            rows.append(row)
    columns = ["metric", "system", "score", "95 % interval", "difference", "p, paired bootstrap", "p, randomisation"]
    note = "↑ higher is better, ↓ lower is better. Differences and p-values are to the baseline."
    if several:
        columns.append("p, corrected (Holm)")
        note += (
            " The p-values of bootstrap and randomisation are each of one comparison, not corrected for there being "
            "several; the last column is that of randomisation, corrected."
        )
    if any("–" in row for row in rows):
        note += f" –: both scores are below {LEAST_BLEU:g} BLEU, where no test says which system is better."
    if "comet" in comparison["signatures"]:
        note += f" COMET is by {comparison['signatures']['comet']}; compare it with no other's."
    return Table("Scores", columns, rows, note, text=(0, 1))


def _sentences(comparison: Mapping[str, Any]) -> Table:
    rows = []
    for name, one in comparison["systems"].items():
        counts = one["sentences"]
        against = [f"{counts[what]:,}" for what in ("better", "worse", "equal")]
        row = [name, *(["baseline", "", ""] if name == comparison["baseline"] else against)]
        rows.append([*row, f"{one['length_ratio']:.3f}"])
    note = "Sentences by their chrF2. The length ratio is the translations' words over the references', as BLEU counts."
    columns = ["system", "better than the baseline", "worse", "equal", "length ratio"]
    return Table("Sentences", columns, rows, note)


def _translations(comparison: Mapping[str, Any]) -> Table:
    rows = []
    for name, one in comparison["systems"].items():
        if not (training := one["training"]):
            rows.append([name, "a file", "", ""])
            continue
        steps = ", ".join(f"{step:,}" for step in one["steps_averaged"])
        rows.append([name, one["search"], steps, f"step {training['steps']:,}, {one['progress']}"])
    columns = ["system", "search", "average of steps", "training"]
    note = "The search and the model that each system's translations are from."
    return Table("Translations", columns, rows, note, text=(0, 1, 2, 3))


def _runs(comparison: Mapping[str, Any]) -> Table:
    column = token_columns(task_of(comparison))[-1]
    units = {
        TaskName.translation: "sentences",
        TaskName.classification: "texts",
        TaskName.prompt_response: "examples",
    }
    evaluated = units.get(task_of(comparison), "documents")
    rows = []
    for name, one in comparison["systems"].items():
        if not (training := one["training"]):
            continue
        rows.append(
            [
                name,
                f"{training['parameters']:,}" if "parameters" in training else "?",
                f"{training['steps']:,}",
                f"{training[f'{column}_tokens']:,}",
                clock(training["seconds"]),
                f"{training['workers']}",
                f"{training[f'{column}_tokens_per_second']:,.0f}",
                _flops(training.get("flops")),
                f"{training['seconds'] * training['workers'] / 3600:.2f}",
                f"{training[f'{evaluated}_per_second']:,.0f}",
                one["machine"] or "?",
            ]
        )
    columns = ["run", "parameters", "steps", f"{column} tokens", "training time", "workers", f"{column} tokens/s"]
    columns += ["cost", "worker-hours", f"evaluated {evaluated}/s", "machine"]
    note = "Tokens are counted without padding. Evaluating includes the start of its workers."
    return Table("Training", columns, rows, note, text=(0, 10))


def _flops(value: float | None) -> str:
    return "?" if value is None else quantity(value) + "FLOP" if value < 1e15 else f"{value:.2e} FLOP"


def _reach(reach: Mapping[str, Any], task: TaskName, metric: Metric) -> Table:
    column = token_columns(task)[-1]
    rows = []
    for name, moment in reach["runs"].items():
        if moment is None:
            rows.append([name, "never", "", "", ""])
            continue
        row = [name, f"{moment['step']:,}", f"{moment[f'{column}_tokens']:,.0f}", clock(moment["seconds"])]
        rows.append([*row, _flops(moment.get("flops"))])
    title = f"Up to {metric.shown(reach[metric.name])} {metric.title} on the validation set"
    best = "highest" if metric.higher_is_better else "lowest"
    note = f"At the first validation with it. Without reach= it is the {best} that all of the runs had."
    return Table(title, ["run", "steps", f"{column} tokens", "training time", "cost"], rows, note)


def _by_length(comparison: Mapping[str, Any]) -> Table:
    names = list(comparison["systems"])
    rows = [
        [row["bucket"], f"{row['sentences']:,}", *(f"{row['bleu'][name]:.2f}" for name in names)]
        for row in comparison["by_length"]
    ]
    tokenizer = comparison["tokenizer"]
    note = "Words between spaces." if tokenizer in SPACED else f"Words are the tokens of BLEU's tokeniser {tokenizer}."
    return Table("BLEU by length", ["words of the reference", "sentences", *names], rows, note)


def _by_frequency(comparison: Mapping[str, Any]) -> Table:
    names = list(comparison["systems"])
    rows = [
        [row["bucket"], f"{row['words']:,}", *(f"{row['f1'][name]:.2f}" for name in names)]
        for row in comparison["by_frequency"]
    ]
    note = (
        "F1 of the words (0 to 100) by how often they are in the training text; a word is right where the sentence's "
        "reference has it, too, wherever it stands. After compare-mt (Neubig et al. 2019)."
    )
    return Table("Rare words", ["times in the training text", "in the references", *names], rows, note)


def _facts(facts: Sequence[Mapping[str, Any]], title: str, note: str, none: str) -> Table:
    names = list(facts[0]["values"]) if facts else []
    rows = [[row["name"], *(row["values"][name] for name in names)] for row in facts]
    return Table(title, ["", *names], rows, note if rows else none, text=tuple(range(len(names) + 1)))


def notes(comparison: Mapping[str, Any]) -> list[str]:
    """How everything was counted."""
    said = [
        f"{NAMES[metric]}: {'' if metric == 'comet' else 'sacreBLEU, '}{signature}"
        for metric, signature in comparison["signatures"].items()
    ]
    said += [
        f"References: {comparison['sentences']:,} sentences, hash {comparison['references']}.",
        f"Intervals: 95 %, bootstrap with {comparison['resamples']:,} resamples, around their mean (Koehn 2004).",
        f"p-values: sacreBLEU's paired bootstrap with {comparison['resamples']:,} resamples (Koehn 2004) and its "
        f"paired approximate randomisation with {comparison['trials']:,} trials (Riezler and Maxwell 2005), seed "
        f"{comparison['seed']}; `sacrebleu --paired-bs` and `--paired-ar` say the same. They are of chance in the "
        "choice of sentences: another seed of the training is a chance that they do not know of.",
        f"“Better” and “worse” mean p < {SURE:g} by randomisation, corrected by Holm's method where several systems "
        f"are compared with the baseline. Below {LEAST_BLEU:g} BLEU of both systems neither is called so: hardly a "
        "four-gram is right there, and the tests find differences of length and punctuation.",
        "In MLflow's own compare view, a run's test/bleu, test/chrf, test/ter, test/length_ratio, training/seconds and "
        "training/target_tokens_per_second are these figures; its parameters have the names of the settings.",
    ]
    if "comet" in comparison["signatures"]:
        said.append(
            "COMET (Rei et al. 2020) is the mean over the sentences, as comet-score prints it. Its interval and its "
            "p-values are those of the same tests, on the sentences' scores."
        )
    if comparison["by_frequency"]:
        tokenizer = comparison["tokenizer"]
        name = "mteval's 13a tokeniser" if tokenizer == DEFAULT else f"sacreBLEU's tokeniser {tokenizer}"
        said.append(f"Words are those of {name}, cased; the training text is that of the first run.")
    if not comparison["same_validation_set"]:
        said.append("The runs were validated on different sets: their validation curves can't be compared.")
    return said
