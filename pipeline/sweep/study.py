"""A sweep's trials and their scores in Optuna's database, which outlives the process: what to try next, who is to stop.

Optuna is asked and told by its own names (a study, ask, tell). Everything that decides lies in the database, the rungs
of successive halving included, so a sweep that was killed goes on as if it had not been.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import database_uri
from transloom.pipeline.sweep.config import Sampler, Stopping, SweepConfig
from transloom.pipeline.sweep.population import next_generation, place_of
from transloom.pipeline.sweep.space import Parameter, Point, check_point, grid_points, on_grid, parse_space
from transloom.pipeline.tasks.task import Metric

if TYPE_CHECKING:
    import optuna

FEWEST_FOR_IMPORTANCE = 6  # trials
MOST_DRAWS = 1000  # for a point that is new
DRAWS_APART = 10_000_019  # their seeds, so that no other trial begins at one of them
SEEDS = 1 << 32  # NumPy's
COMPETITORS = 3  # trials that must have come as far before the median of them stops one


class State(Enum):
    running = "running"
    finished = "finished"
    stopped = "stopped"
    failed = "failed"


@dataclass
class Record:
    """One trial.

    Attributes:
        number: from 1, in the order in which trials began.
        run: the name of its run.
        metric: what the trial is scored by.
        curve: (target tokens seen, validation score), by tokens.
        seconds: of training.
        failure: what went wrong, of one that failed.
        generation, member: from 1, of population-based training; else 0.
        parent: number of the trial whose weights it went on with; its tokens and seconds are counted in.
    """

    number: int
    run: str
    point: Point
    metric: Metric
    state: State = State.running
    curve: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    failure: str | None = None
    generation: int = 0
    member: int = 0
    parent: int | None = None

    @property
    def score(self) -> float | None:
        """The best that it had; the last in a population, where others go on from there. None before a validation."""
        eligible = self.curve[-1:] if self.generation else self.curve
        return min((score for _, score in eligible), key=self.metric.sort_key, default=None)

    @property
    def sort_key(self) -> float:
        """Sorts trials from the best to the worst; those without a score come last."""
        return math.inf if self.score is None else self.metric.sort_key(self.score)

    @property
    def tokens(self) -> int:
        """Target tokens that it was trained on."""
        return self.curve[-1][0] if self.curve else 0


class Study:
    """The trials of one sweep. One process at a time.

    Attributes:
        metric: what trials are scored by.
        records: by the trials' numbers.
        left: numbers of those that a process before this one began and did not end.

    Args:
        file: the database; made where it is not there.
        name: of the study in it.
        prefix: of the trials' runs, which are named <prefix><number>.
        tokens: target tokens of a whole training, of which `sweep.grace` is a share.
        earlier: trials of other sweeps to learn from.
    """

    def __init__(
        self,
        file: Path,
        sweep: SweepConfig,
        metric: Metric,
        *,
        name: str,
        prefix: str,
        seed: int,
        tokens: int,
        earlier: Sequence[Record] = (),
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.parameters = parse_space(sweep.space)
        self.metric = metric
        self._sweep = sweep
        self._prefix = prefix
        self._seed = seed
        self._grace = max(1, int(sweep.grace * tokens))
        self._study = optuna.create_study(
            storage=_database(file), study_name=name, direction=_direction(metric), load_if_exists=True
        )
        if sweep.stop is Stopping.asha:
            self._study.pruner = optuna.pruners.SuccessiveHalvingPruner(self._grace, sweep.reduction)
        if "learned" not in self._study.user_attrs:
            self._learn(earlier)
            complete = (optuna.trial.TrialState.COMPLETE,)
            self._study.set_user_attr("learned", len(self._study.get_trials(deepcopy=False, states=complete)))
        if "queued" not in self._study.user_attrs:
            self._queue()
            self._study.set_user_attr("queued", True)
        self._learned: int = self._study.user_attrs["learned"]  # they come first
        self.records: dict[int, Record] = {}
        self._trials: dict[int, optuna.trial.Trial] = {}
        for one in self._study.get_trials(deepcopy=False)[self._learned :]:
            if one.state is not optuna.trial.TrialState.WAITING:
                self._remember(optuna.trial.Trial(self._study, one._trial_id), one)
        self.left = [number for number, one in self.records.items() if one.state is State.running]
        self._handed_out = 0  # of them

    @property
    def num_trials(self) -> int:
        """How many there are to be."""
        match self._sweep.sampler:
            case Sampler.grid:
                return min(self._sweep.trials, len(grid_points(self.parameters)))
            case Sampler.pbt:
                return self._sweep.population * self._sweep.generations
        return self._sweep.trials

    @property
    def grace(self) -> int:
        """Target tokens that every trial gets."""
        return self._grace

    def ask(self) -> Record | None:
        """The next trial: first those that a killed process left; None where there are to be no more, or none yet."""
        if self._handed_out < len(self.left):
            self._handed_out += 1
            return self.records[self.left[self._handed_out - 1]]
        if len(self.records) >= self.num_trials or self.must_wait:
            return None
        if self._sweep.sampler is Sampler.pbt and len(self.records) >= self._sweep.population:
            return self._ask_heir()
        return self._remember(self._study.ask())

    @property
    def must_wait(self) -> bool:
        """Whether the next trial can't begin before the generation before it has ended."""
        if self._sweep.sampler is not Sampler.pbt or len(self.records) >= self.num_trials:
            return False
        return any(one.state is State.running for one in self._generation_before())

    def _generation_before(self) -> list[Record]:
        """The members of the generation before that of the next trial."""
        generation, _ = place_of(len(self.records) + 1, self._sweep.population)
        return [one for one in self.records.values() if one.generation == generation - 1]

    def _ask_heir(self) -> Record | None:
        """The next trial of a generation after the first; None where all of that before it failed."""
        import optuna

        generation, member = place_of(len(self.records) + 1, self._sweep.population)
        before = self._generation_before()
        scores = [one.score if one.state is State.finished else None for one in before]
        seed = self._seed * 100_003 + generation
        heirs = next_generation(scores, self.metric, [one.point for one in before], self.parameters, seed)
        if not heirs:
            return None
        parent, point = heirs[member - 1]
        trial = optuna.trial.create_trial(  # at once as a whole: there is no half-asked one after a kill
            state=optuna.trial.TrialState.RUNNING,
            params=point,
            distributions={one.name: distribution(one) for one in self.parameters},
            user_attrs={"parent": before[parent].number},
        )
        self._study.add_trial(trial)
        known = self._study.get_trials(deepcopy=False)[-1]
        return self._remember(optuna.trial.Trial(self._study, known._trial_id), known)

    def finalists(self) -> list[Record]:
        """The trials that came to their end, of which the best is to be chosen: of a population, the last generation
        that has ended, since those before it have had less training."""
        finished = [one for one in self.records.values() if one.state is State.finished]
        if self._sweep.sampler is not Sampler.pbt:
            return finished
        ended = Counter(one.generation for one in self.records.values() if one.state is not State.running)
        whole = [one.generation for one in finished if ended[one.generation] == self._sweep.population]
        last = max(whole, default=1)
        return [one for one in finished if one.generation == last]

    def report(self, number: int, tokens: int, score: float) -> bool:
        """Notes a validation; whether the trial is to stop. One that is known already decides nothing."""
        record, trial = self.records[number], self._trials[number]
        if tokens <= record.tokens:
            return False
        record.curve.append((tokens, score))
        trial.report(score, tokens)
        if self._sweep.stop is Stopping.median:
            others = [one.curve for one in self.records.values() if one is not record]
            return tokens >= self._grace and is_worse_than_median(record.curve, others, self.metric)
        return self._sweep.stop is Stopping.asha and trial.should_prune()

    def close(self, number: int, state: State, seconds: float, failure: str | None = None) -> Record:
        """Notes how a trial ended."""
        from optuna.trial import TrialState

        record, trial = self.records[number], self._trials[number]
        if record.score is None:
            state, failure = State.failed, failure or "it ended before its first validation"
        record.state, record.seconds, record.failure = state, seconds, failure
        trial.set_user_attr("seconds", seconds)
        if failure:
            trial.set_user_attr("failure", failure)
        match state:
            case State.finished:
                self._study.tell(trial, record.score)
            case State.stopped:
                self._study.tell(trial, state=TrialState.PRUNED)
            case _:
                self._study.tell(trial, state=TrialState.FAIL)
        return record

    def _remember(self, trial: "optuna.trial.Trial", known: "optuna.trial.FrozenTrial | None" = None) -> Record:
        """The record of a trial that is asked now or, as `known`, was before."""
        number = trial.number - self._learned + 1
        if known is not None and known.state.is_finished():
            point = {
                one.name: on_grid(one, known.params[one.name]) for one in self.parameters if one.name in known.params
            }
        else:  # a process that was killed may have asked for a part of it
            self._study.sampler = self._sampler()
            point = suggest(trial, self.parameters)
        record = Record(number, f"{self._prefix}{number:03d}", point, self.metric)
        if self._sweep.sampler is Sampler.pbt:
            record.generation, record.member = place_of(number, self._sweep.population)
        if known is not None:
            record.parent = known.user_attrs.get("parent")
            record.state = State(STATES.get(known.state.name, "running"))
            record.curve = sorted(known.intermediate_values.items())
            record.seconds = known.user_attrs.get("seconds", 0.0)
            record.failure = known.user_attrs.get("failure")
        self.records[number], self._trials[number] = record, trial
        return record

    def _sampler(self) -> "optuna.samplers.BaseSampler":
        """Made anew for each trial, from its number: a sweep that goes on does not begin its random numbers again."""
        import optuna

        seed = (self._seed * 100_003 + len(self._study.get_trials(deepcopy=False))) % SEEDS
        if self._sweep.sampler is Sampler.tpe:
            # A few trials at random first. Those under way count as bad ones, lest several try the same at once.
            startup = max(4, self._sweep.trials // 4)
            return optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed, constant_liar=True)
        if self._sweep.sampler is Sampler.grid:  # whose points are all queued
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.RandomSampler(self._seed_of_a_new_point(seed))

    def _seed_of_a_new_point(self, seed: int) -> int:
        """One that draws what no trial has yet: of a few choices the same would come again, and give the same again."""
        import optuna

        known = [one.point for one in self.records.values()]
        for other in ((seed + draw * DRAWS_APART) % SEEDS for draw in range(MOST_DRAWS)):
            trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(other)).ask()
            if suggest(trial, self.parameters) not in known:
                return other
        return seed

    def _queue(self) -> None:
        """A grid is its points in turn; other samplers begin with those that are given."""
        if self._sweep.sampler is Sampler.grid:
            points = grid_points(self.parameters)
        else:
            points = [check_point(self.parameters, one) for one in self._sweep.points]
        for point in points:
            self._study.enqueue_trial(point, skip_if_exists=True)  # a kill may have come in the midst of this

    def _learn(self, earlier: Sequence[Record]) -> None:
        import optuna

        parameters = {one.name: one for one in self.parameters}
        known = [(one.params, one.value) for one in self._study.get_trials(deepcopy=False)]
        for one in earlier:
            if (one.point, one.score) not in known:
                distributions = {name: distribution(parameters[name]) for name in one.point}
                params = dict(one.point)
                self._study.add_trial(
                    optuna.trial.create_trial(value=one.score, params=params, distributions=distributions)
                )


def lineage(records: Mapping[int, Record], number: int) -> list[Record]:
    """A trial, and before it those whose weights it went on with, the first one first."""
    found = [records[number]]
    while (parent := found[0].parent) is not None:
        found.insert(0, records[parent])
    return found


STATES = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed"}  # Optuna's names and ours


def suggest(trial: "optuna.trial.Trial", parameters: Sequence[Parameter]) -> Point:
    """A trial's point, from Optuna; one that has been asked before says the same again."""
    point: Point = {}
    for one in parameters:
        if not one.is_active(point):
            continue
        if one.choices:
            point[one.name] = trial.suggest_categorical(one.name, one.choices)
        elif one.is_whole:
            step = 1 if one.step is None else int(one.step)
            point[one.name] = trial.suggest_int(one.name, int(one.low), int(one.high), step=step, log=one.log)
        else:
            point[one.name] = on_grid(one, trial.suggest_float(one.name, one.low, one.high, step=one.step, log=one.log))
    return point


def distribution(one: Parameter) -> "optuna.distributions.BaseDistribution":
    """What `suggest` draws a parameter from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.choices:
        return CategoricalDistribution(one.choices)
    if one.is_whole:
        return IntDistribution(int(one.low), int(one.high), one.log, 1 if one.step is None else int(one.step))
    return FloatDistribution(one.low, one.high, one.log, one.step)


def is_worse_than_median(
    curve: Sequence[tuple[int, float]], others: Sequence[Sequence[tuple[int, float]]], metric: Metric
) -> bool:
    """The median stopping rule (Golovin et al. 2017, Vizier, section 3.2.2; with the best instead of the mean so far):
    whether a trial's best score is worse than the median of what the others had at as many target tokens. Unlike
    Optuna's pruner this needs no equal numbers of tokens, which trials with batches of other sizes do not have."""
    tokens = curve[-1][0]
    reached = [_best_until(one, tokens, metric) for one in others if one and one[-1][0] >= tokens]
    competitors = [score for score in reached if score is not None]
    own = _best_until(curve, tokens, metric)
    assert own is not None
    return len(competitors) >= COMPETITORS and metric.is_better(statistics.median(competitors), own)


def _best_until(curve: Sequence[tuple[int, float]], tokens: int, metric: Metric) -> float | None:
    """The best score of the first so many tokens; None where there was no validation yet."""
    return min((score for seen, score in curve if seen <= tokens), key=metric.sort_key, default=None)


def earlier_trials(file: Path, name: str, parameters: Sequence[Parameter], metric: Metric) -> list[Record]:
    """The finished trials of another sweep by the same metric whose points lie in this space.

    Raises:
        UserError: there is no such sweep.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not file.exists():
        raise UserError(f"sweep.warm_start: there is no sweep with the trials {file}")
    study = optuna.load_study(study_name=name, storage=_database(file))
    found = []
    for one in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
        point: Point = {}
        for parameter in parameters:
            if parameter.is_active(point) and parameter.name in one.params:
                point[parameter.name] = one.params[parameter.name]
        expected = [parameter.name for parameter in parameters if parameter.is_active(point)]
        fits = all(parameter.holds(point[parameter.name]) for parameter in parameters if parameter.name in point)
        if one.params.keys() == point.keys() == set(expected) and fits and one.value is not None:
            found.append(Record(one.number, "", point, metric, State.finished, [(0, one.value)]))
    return found


def importances(
    records: Sequence[Record], parameters: Sequence[Parameter], metric: Metric
) -> tuple[dict[str, float], int]:
    """How much of the scores' variance each parameter explains (fANOVA; Hutter, Hoos and Leyton-Brown 2014), largest
    first, and the number of target tokens at which the scores are taken: the most that all trials have seen, for what a
    trial had when it was stopped does not compare with what another had at its end. Parameters that some trials lack
    are left out; empty where there are too few trials to tell."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    scored = [one for one in records if one.curve]
    if len(scored) < FEWEST_FOR_IMPORTANCE:
        return {}, 0
    tokens = min(one.tokens for one in scored)
    study = optuna.create_study(direction=_direction(metric))
    by_name = {one.name: one for one in parameters}
    for one in scored:
        value = _best_until(one.curve, max(tokens, one.curve[0][0]), metric)
        distributions = {name: distribution(by_name[name]) for name in one.point}
        study.add_trial(optuna.trial.create_trial(value=value, params=dict(one.point), distributions=distributions))
    if len({one.value for one in study.trials}) < 2:
        return {}, 0
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    return dict(found), tokens


def _direction(metric: Metric) -> Literal["maximize", "minimize"]:
    """Optuna's word for which way is better."""
    return "maximize" if metric.higher_is_better else "minimize"


def _database(file: Path) -> "optuna.storages.RDBStorage":
    import optuna

    return optuna.storages.RDBStorage(database_uri(file))
