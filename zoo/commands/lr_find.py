"""`zoo lr-find`: suggest a learning rate by a short training in which the rate grows."""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path

from zoo.commands import count, counter, start_jax, words_without, write_extra
from zoo.commands.devices import parallelism_of
from zoo.commands.train import add_request_arguments, train_request
from zoo.files import require_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser)
    add = parser.add_argument
    add("--from", dest="start", metavar="RATE", type=float, default=1e-7, help="First learning rate (default: 1e-7).")
    add("--to", dest="stop", metavar="RATE", type=float, default=10.0, help="Last learning rate (default: 10).")
    add("--steps", metavar="N", type=count, default=100, help="Steps of the test (default: 100).")
    add("-o", "--output", metavar="FILE.png", help="Picture of the test (default: a file in the cache folder).")
    add("--json", action="store_true", help="Print rates, losses and suggestions as JSON.")


def run(options: argparse.Namespace) -> int:
    if options.output:
        require_writable(Path(options.output), ".png")
    start_jax()
    parallelism = parallelism_of(options)
    import json

    from zoo.distributed import processes
    from zoo.training.lr_find import find_learning_rate
    from zoo.training.plan import make_plan
    from zoo.training.plots import draw_range_test

    printed = partial(print, flush=True, file=sys.stderr if options.json else sys.stdout)
    say = printed if processes.is_primary() else (lambda line: None)
    plan = make_plan(train_request(options, parallelism), say)
    name = f"{plan.config.model} on {plan.dataset.name}"
    say(f"{name}: learning rates from {options.start:g} to {options.stop:g} in {options.steps} steps of "
        f"{plan.batch_size} images; nothing is written into runs/")  # fmt: skip
    result = find_learning_rate(
        plan, say, start=options.start, stop=options.stop, steps=options.steps, workers=options.workers,
        on_step=counter("step"),
    )  # fmt: skip
    if not processes.is_primary():
        return 0

    def draw() -> Path | None:
        title = f"{name}, {result.trained}"
        write = partial(draw_range_test, *result[:4], title=title)
        default = f"{plan.config.default_name()}-lr-find.png"
        return write_extra(write, options.output, default, "picture", "-o FILE.png")

    if options.json:
        arrays = {field: getattr(result, field).tolist() for field in ("rates", "losses", "smoothed")}
        file = draw()
        print(json.dumps({"suggestions": result.suggestions, "picture": file and str(file), **arrays}, indent=1))
        return 0
    others = ", ".join(f"{rule} {rate:.2g}" for rule, rate in result.suggestions.items() if rule != "valley")
    print(
        f"suggested learning rate: {result.rate:.2g} (valley); {others}; the recipe has {plan.recipe.learning_rate:g}"
    )
    if file := draw():
        print(f"picture: {file}")
    own = ("--from", "--to", "--steps", "-o", "--output", "--learning-rate")
    words = words_without(options.words[1:], own, fields=("learning_rate",))
    print(shlex.join(["try:", "zoo", "train", *words, "--learning-rate", f"{result.rate:.2g}"]))
    return 0
