"""`zoo sweep`: train over a grid, or random draws, of recipe and model fields, and over seeds."""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.commands import count, start_jax, words_without
from zoo.commands.devices import parallelism_of
from zoo.commands.interruption import exit_code, interruptible, resume_advice, watch_group
from zoo.commands.train import RECIPE_FLAGS, add_log_option, add_request_arguments, train_request
from zoo.files import require_writable

if TYPE_CHECKING:
    from zoo.training.interruption import Caught

#: Options of the sweep itself, which its runs do not have.
OWN_OPTIONS = ("--set", "--seeds", "--seed", "--random", "--workdir", "--log", "-o", "--output")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser)
    add = parser.add_argument
    for action in parser._actions:
        if "--set" in action.option_strings:
            action.metavar = "FIELD=A,B,…"
            action.help = "Values of a field of the recipe or the model, or with --random a range such as 1e-4..1e-1."
    add("--seeds", metavar="N", type=count, default=1, help="Seeds per setting, from --seed on (default: 1).")
    add("--random", metavar="N", type=count, default=0, help="Draw N settings instead of trying every combination.")
    add("--workdir", metavar="DIR", help="Folder of the runs' folders (default: runs/).")
    add_log_option(parser)
    add("-o", "--output", metavar="FILE.csv", help="Also write the table to this file.")


def run(options: argparse.Namespace) -> int:
    if options.output:
        require_writable(Path(options.output), ".csv")
    if options.seeds < 1:
        raise ValueError("--seeds must be at least 1")
    from zoo.training import sweep
    from zoo.training.recipe import Recipe

    for flag in RECIPE_FLAGS:
        field = flag.replace("-", "_")
        value = getattr(options, field) or ""
        if "," in value and flag != "seed" and isinstance(getattr(Recipe, field), (int, float)):
            raise ValueError(f"--{flag} {value}: takes one value; write --set {field}={value}")
    axes = [sweep.parse_axis(text) for text in options.set]
    if options.random and not axes:
        raise ValueError("--random needs fields to draw, such as --set learning_rate=1e-4..1e-1")
    first = first_seed(options)
    settings = sweep.draws(axes, options.random, first) if options.random else sweep.grid(axes)
    command = shlex.join(["zoo", *options.words])
    with interruptible("sweep", command) as caught:
        return _sweep(options, settings, first, command, caught)


def first_seed(options: argparse.Namespace) -> int:
    """Return the seed of the first run of each setting: that of --seed, or else of the recipe of --config.

    Raises:
        ValueError: for a seed that no recipe takes.
    """
    from zoo.training.recipe import Recipe, parse_field
    from zoo.training.run import read_config
    from zoo.training.settings import Setting, in_terms_of_options

    if options.seed is None:
        return read_config(options.config).recipe.seed if options.config and not options.recipe else Recipe.seed
    seed = parse_field("seed", options.seed, "--seed")
    try:
        return Recipe(seed=seed).seed
    except ValueError as error:
        raise ValueError(in_terms_of_options(str(error), [Setting("--seed", "seed", options.seed)])) from None


def _sweep(
    options: argparse.Namespace, settings: list[dict[str, str]], first: int, command: str, caught: "Caught"
) -> int:
    start_jax()
    parallelism = parallelism_of(options)
    caught.install()
    watch_group("sweep", 0.0)
    from zoo.distributed import processes, watch
    from zoo.inference.examples import write_csv
    from zoo.training import sweep
    from zoo.training.loop import InterruptedRunError
    from zoo.training.trackers import parse_trackers

    def command_of(setting: dict[str, str], seed: int) -> str:
        """Return the command that trains this run alone."""
        sets = [word for field, value in setting.items() for word in ("--set", f"{field}={value}")]
        return shlex.join(["zoo", "train", *words, *sets, "--seed", str(seed)])

    words = words_without(options.words[1:], OWN_OPTIONS)
    options.set = []
    trackers = parse_trackers(options.log)
    request = train_request(options, parallelism)
    seeds = range(first, first + options.seeds)
    say = partial(print, flush=True) if processes.is_primary() else (lambda line: None)
    try:
        trials = sweep.run_sweep(
            request, settings, seeds, say, folder=options.workdir, command=command_of,
            workers=options.workers, caught=caught, log=trackers,
        )  # fmt: skip
    except InterruptedRunError as stop:
        watch.stop()
        if processes.is_primary():
            print(f"zoo sweep: Interrupted; {stop}. {resume_advice(command)}", file=sys.stderr)
        return exit_code(stop.signum)
    watch.stop()
    if not processes.is_primary():
        return 0
    print("\n".join(sweep.format_table(trials)))
    if options.output:
        columns = ("validation accuracy", "standard deviation", "seeds", "failures", "runs")
        write_csv(Path(options.output), (*settings[0], *columns), sweep.rows(trials))
        print(f"table: {options.output}")
    return 0
