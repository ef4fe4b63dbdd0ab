"""Sweeps: runs over a grid, or random draws, of fields of the recipe or the model, and over seeds.

Each run is an ordinary run in a folder of its own, so a sweep that was interrupted goes on where it stopped: finished
runs are read, an unfinished one is resumed. Settings are ranked by the validation split; only the test result of the
winner is reported.
"""

import dataclasses
import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.addresses import require_local
from zoo.training import loop
from zoo.training import run as runs
from zoo.training.plan import make_plan
from zoo.training.recipe import Recipe
from zoo.training.request import Say, TrainRequest, with_open_data
from zoo.training.settings import Setting, parse_assignment

RANGE = ".."  # between the ends of a range, for random draws
MAX_RUNS = 10_000
SIGNIFICANT = 3  # digits of numbers that are drawn


class Axis(NamedTuple):
    """A field and its values, as text, or the ends of the range to draw from.

    Attributes:
        field: name of the field.
        values: its values; empty for a range.
        low: lower end of the range.
        high: upper end.
    """

    field: str
    values: tuple[str, ...]
    low: float = math.nan
    high: float = math.nan


class Trial(NamedTuple):
    """A setting and the results of its runs, one per seed.

    Attributes:
        settings: field -> value as text.
        folders: folders of the runs that ended.
        scores: value of the monitored validation metric of each of these runs.
        accuracies: validation accuracy of each.
        test_accuracies: test accuracy of each; None without a test split.
        failures: "seed: reason" for runs that diverged.
    """

    settings: dict[str, str]
    folders: tuple[Path, ...]
    scores: tuple[float, ...]
    accuracies: tuple[float, ...]
    test_accuracies: tuple[float, ...] | None
    failures: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean score over the seeds; -infinity if a run diverged."""
        return statistics.fmean(self.scores) if self.scores and not self.failures else -math.inf


def parse_axis(text: str) -> Axis:
    """Parse "field=a,b,c" (values), "field=low..high" (a range), or "field=a|b" for fields that hold lists.

    Raises:
        ValueError: for another form, a range whose ends are not numbers, or a value that appears twice.
    """
    setting = parse_assignment(text)
    field = setting.name.removeprefix("recipe.")
    value = setting.text.strip()
    if RANGE in value and "," not in value and "|" not in value:
        try:
            low, high = (float(end) for end in value.split(RANGE))
        except ValueError:
            raise ValueError(f"--set {text}: write a range as 1e-4..1e-1") from None
        if not low < high or not math.isfinite(high - low):
            raise ValueError(f"--set {text}: the range must grow, such as 1e-4..1e-1")
        return Axis(field, (), low, high)
    example = getattr(Recipe, field, None)
    separator = "|" if isinstance(example, tuple) or "|" in value else ","
    values = tuple(part.strip() for part in value.split(separator) if part.strip())
    if not values:
        raise ValueError(f"--set {text}: name the values, such as {field}=1,2")
    if len(set(values)) < len(values):
        raise ValueError(f"--set {text}: has a value twice")
    return Axis(field, values)


def grid(axes: Sequence[Axis]) -> list[dict[str, str]]:
    """Return every combination of the values.

    Raises:
        ValueError: for a range, a field that appears twice, or too many combinations.
    """
    _require_distinct(axes)
    for axis in axes:
        if not axis.values:
            raise ValueError(f"--set {axis.field}={axis.low:g}..{axis.high:g}: a range needs --random N")
    count = math.prod(len(axis.values) for axis in axes)
    if count > MAX_RUNS:
        raise ValueError(f"the grid has {count:,} combinations; draw from it with --random N")
    fields = [axis.field for axis in axes]
    return [dict(zip(fields, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def draws(axes: Sequence[Axis], count: int, seed: int = 0) -> list[dict[str, str]]:
    """Draw `count` different settings: values with equal probability, ranges uniformly.

    Ranges of positive numbers whose ends differ by a factor of ten or more are drawn uniformly in their logarithm.
    The first n draws are the same for every count, so that a sweep can be extended.
    """
    _require_distinct(axes)
    rng = np.random.default_rng(seed)
    found: list[dict[str, str]] = []
    for _ in range(100 * count):
        drawn = {axis.field: _draw(axis, rng) for axis in axes}
        if drawn not in found:
            found.append(drawn)
        if len(found) == count:
            break
    return found


def _draw(axis: Axis, rng: np.random.Generator) -> str:
    if axis.values:
        return axis.values[int(rng.integers(len(axis.values)))]
    if axis.low > 0 and axis.high / axis.low >= 10:
        value = math.exp(rng.uniform(math.log(axis.low), math.log(axis.high)))
    else:
        value = float(rng.uniform(axis.low, axis.high))
    if isinstance(getattr(Recipe, axis.field, None), int):
        return str(round(value))
    return f"{value:.{SIGNIFICANT}g}"


def _require_distinct(axes: Sequence[Axis]) -> None:
    fields = [axis.field for axis in axes]
    for field in fields:
        if fields.count(field) > 1:
            raise ValueError(f"--set {field}: appears twice; write the values in one, such as {field}=1,2")
        if field == "seed":
            raise ValueError("--set seed: use --seeds N for several seeds")


def run_sweep(
    request: TrainRequest,
    settings: Sequence[dict[str, str]],
    seeds: Sequence[int],
    say: Say,
    *,
    folder: str | Path | None = None,
    command: Callable[[dict[str, str], int], str] = lambda setting, seed: "",
    **options: Any,
) -> list[Trial]:
    """Run, resume or read the run of every setting and seed.

    All settings are checked before the first run starts.

    Args:
        request: what the runs have in common.
        settings: field -> value as text, for each setting.
        seeds: seeds of the runs of each setting.
        say: called with each line of progress.
        folder: folder of the runs' folders; runs/ if None.
        command: returns the command line of the run of a setting and seed, to record in the run.
        **options: arguments of `loop.fit`.

    Returns:
        A Trial per setting, in their order.

    Raises:
        ValueError: for a setting that is not possible, before anything is trained.
        InterruptedRunError: after a signal, once the state of the run is saved.
    """
    if folder is not None:
        require_local(folder)
        request = dataclasses.replace(request, runs_folder=folder)
    request, _ = with_open_data(request, say)
    plans = deque(make_plan(_with_settings(request, setting, seed)) for setting in settings for seed in seeds)
    total, trials = len(plans), []
    for setting in settings:
        outcomes = []
        for seed in seeds:
            number, plan = total - len(plans) + 1, plans.popleft()  # which frees the plan of the run before
            text = ", ".join(f"{field}={value}" for field, value in setting.items()) or "the recipe"
            done = runs.is_finished(plan.folder)
            say(f"run {number} of {total}: {text}, seed {seed}{' (finished before)' if done else ''}: {plan.folder}")
            try:
                loop.fit(plan, quiet=True, command=command(setting, seed), **options)
            except loop.DivergenceError as error:
                outcomes.append((seed, plan.folder, str(error)))
                say(f"   diverged: {str(error).partition(';')[0]}")
                continue
            outcomes.append((seed, plan.folder, ""))
        trials.append(_read_trial(setting, outcomes))
        if trials[-1].accuracies:
            say(f"   validation accuracy {describe(trials[-1].accuracies)}")
    return trials


def _with_settings(request: TrainRequest, setting: dict[str, str], seed: int) -> TrainRequest:
    more = [Setting(f"--set {field}", field, value) for field, value in setting.items()]
    more.append(Setting("--seed", "seed", str(seed)))
    return dataclasses.replace(request, settings=[*request.settings, *more], workdir=None)


def _read_trial(setting: dict[str, str], outcomes: Sequence[tuple[int, Path, str]]) -> Trial:
    ended = [folder for _, folder, reason in outcomes if not reason]
    scores = []
    for folder in ended:
        monitor = runs.read_config(folder).recipe.monitor
        score = runs.read_best_score(folder, "accuracy" if monitor == "last" else monitor)
        scores.append(-score if monitor == "loss" else score)
    tested = [folder for folder in ended if "test" in runs.read_results(folder)]
    test = tuple(runs.read_split_result(folder, "test")["accuracy"] for folder in tested)
    return Trial(
        setting, tuple(ended), tuple(scores),
        tuple(runs.read_split_result(folder, "validation")["accuracy"] for folder in ended),
        test if len(test) == len(ended) and test else None,
        tuple(f"seed {seed}: {reason.partition(';')[0]}" for seed, _, reason in outcomes if reason),
    )  # fmt: skip


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials, that with the highest mean validation score first; those that diverged last."""
    return sorted(trials, key=lambda trial: -trial.mean)


def describe(values: Sequence[float]) -> str:
    """Return "97.50 ± 0.31 % (n = 3)": mean and standard deviation of shares (n - 1 in the denominator)."""
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{deviation} % (n = {len(values)})"


def rows(trials: Sequence[Trial]) -> Iterator[tuple[Any, ...]]:
    """Yield a row per trial, the best first: settings, mean, standard deviation, seeds, failures, folders."""
    for trial in ranked(trials):
        values = trial.accuracies
        yield (
            *trial.settings.values(),
            statistics.fmean(values) if values else "",
            statistics.stdev(values) if len(values) > 1 else "",
            len(values),
            "; ".join(trial.failures),
            " ".join(map(str, trial.folders)),
        )


def format_table(trials: Sequence[Trial]) -> list[str]:
    """Return the lines of a table of the trials, the best first, and the test result of the best alone."""
    fields = list(trials[0].settings)
    body = [
        [*trial.settings.values(), describe(trial.accuracies) if trial.accuracies else "-", "; ".join(trial.failures)]
        for trial in ranked(trials)
    ]
    lines = [[*fields, "validation accuracy", ""], *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    best = ranked(trials)[0]
    if not math.isfinite(best.mean):
        return [*text, "every setting diverged; lower the learning rate"]
    chosen = ", ".join(f"{field}={value}" for field, value in best.settings.items()) or "the recipe"
    text.append(f"best on validation: {chosen}")
    if best.test_accuracies:
        text.append(f"   its test accuracy, which chose nothing: {describe(best.test_accuracies)}")
    text.append(f"   checkpoint: {best.folders[int(np.argmax(best.scores))] / runs.BEST}")
    return text
