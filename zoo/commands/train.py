"""`zoo train`: train a model, or resume a run."""

import argparse
import os
import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING

from zoo.commands import SIGNAL_EXIT, count, seconds, start_jax
from zoo.commands.devices import add_device_options, parallelism_of
from zoo.commands.streams import exit_at_once

if TYPE_CHECKING:
    from zoo.distributed.mesh import Parallelism
    from zoo.training.plan import TrainRequest

#: Flags that are recipe fields, and what help says of them; `--set` reaches the rest.
RECIPE_FLAGS = {
    "epochs": "passes over the training images",
    "batch-size": "images per step; 0: all of them",
    "optimizer": "",
    "learning-rate": "the highest one",
    "schedule": "",
    "weight-decay": "decoupled; --set l2=… is the classic penalty",
    "augment": "operations with commas between, such as flip,pad_crop(pad=4)",
    "precision": "",
    "image-size": "side in pixels of what the model sees",
    "progressive": "sides in pixels that training grows through in equal parts, such as 128,160,192",
    "test-size": "side in pixels that validation, test and the checkpoint see; 0: as training",
    "monitor": "what on the validation split chooses the best checkpoint: ",
    "patience": "stop after so many evaluations without a better one; 0: never",
    "seed": "of everything that is drawn",
    "head-epochs": "with --init: the new head is trained alone for so long",
    "head-lr": "highest learning rate of the head; 0: as everything",
    "layer-decay": "each stage learns at so much times the rate of the one after it",
    "freeze": "stages, body (all but the head), or regular expressions for paths, with commas between",
    "unfreeze-at": "the epoch at which what is frozen joins; 0: never",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from zoo.training.recipe import choices_of

    add = parser.add_argument
    add("--model", metavar="NAME", help="a name of `zoo list` (default: lenet5, or that of --init)")
    add("--init", metavar="CKPT", help="fine-tune this checkpoint: a folder, or a name that zoo.load takes")
    add(
        "--data",
        metavar="DATA",
        help="a folder of class folders, .csv, .tar, .npz, tfds:NAME, … (default: digits)",
    )
    add("--data-dir", metavar="DIR", help="where TensorFlow Datasets keeps its data")
    add("--recipe", metavar="NAME", help="one of `zoo list --recipes` (default: the one that suits)")
    for flag, text in RECIPE_FLAGS.items():
        add(f"--{flag}", metavar="X", help=text + ", ".join(choices_of(_field(flag))))
    add("--micro-batch", metavar="N", help="images per pass, gradients are accumulated; auto: the most that fit")
    add("--set", metavar="FIELD=VALUE", action="append", default=[], help="any field of the recipe or the model")
    add("--config", metavar="FILE", help="a run's config.json: train it anew, with what else is given changed")
    add("--workdir", metavar="DIR", help="the run's folder (default: one under runs/)")
    add("--limit", metavar="N", type=count, default=None, help="use at most N records of each split")
    add(
        "--workers", metavar="N", type=count, default=None, help="threads that read images (default: one per processor)"
    )
    add("--dry-run", action="store_true", help="shapes, memory and a time estimate; nothing is trained")
    add("--save-every", metavar="SECONDS", type=seconds, default=60.0, help="commit the state this often (default: 60)")
    add("--save-steps", metavar="N", type=count, default=0, help="and every N steps")
    add_device_options(parser)
    add("--deterministic", action="store_true", help="the same bits every time on a GPU too, where that is slower")
    add("--quiet", action="store_true", help="print nothing but errors")


def run(options: argparse.Namespace) -> int:
    if options.deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    start_jax()
    parallelism = parallelism_of(options)
    from zoo.distributed import processes
    from zoo.training import dry_run, loop, plan, report

    request = train_request(options, parallelism)
    silent = not processes.is_primary() or (options.quiet and not options.dry_run)
    say = (lambda line: None) if silent else partial(print, flush=True)
    training_plan = plan.make_plan(request, say)
    if options.dry_run:
        report.describe(training_plan, say)
        dry_run.dry_run(training_plan, say)
        return 0
    command = shlex.join(["zoo", *os.environ.get("ZOO_LAUNCHED", "").split(), *options.words])
    try:
        loop.fit(
            training_plan, save_seconds=options.save_every, save_steps=options.save_steps, command=command,
            quiet=options.quiet, workers=options.workers, second_signal=exit_at_once,
        )  # fmt: skip
    except loop.InterruptedRunError as stop:
        if processes.is_primary():
            print(f"zoo train: Interrupted; {stop}. Repeat the command to resume: {command}", file=sys.stderr)
        return SIGNAL_EXIT + stop.signum
    return 0


def train_request(options: argparse.Namespace, parallelism: "Parallelism | None" = None) -> "TrainRequest":
    """Build the request that flags, `--set` and `--config` describe; flags override the file."""
    from zoo import api
    from zoo.training.plan import TrainRequest
    from zoo.training.run import read_config
    from zoo.training.settings import Setting, parse_assignment

    base = read_config(options.config) if options.config else None
    init = options.init or (base.init if base else None)
    flags = {flag: getattr(options, _field(flag)) for flag in (*RECIPE_FLAGS, "micro-batch")}
    settings = [
        Setting(f"--{flag}", f"recipe.{_field(flag)}", text) for flag, text in flags.items() if text is not None
    ]
    return TrainRequest(
        model=options.model,
        data=options.data,
        recipe=options.recipe,
        init=None if init is None else api.open_init(init, options.model or (base.model if base else None)),
        base=base,
        settings=[*settings, *map(parse_assignment, options.set)],
        data_dir=options.data_dir,
        limit=options.limit,
        parallelism=parallelism,
        workdir=options.workdir,
    )


def _field(flag: str) -> str:
    return flag.replace("-", "_")
