"""`zoo train`: train a model, or resume a run."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from zoo.commands import UNFINISHED_EXIT, count, seconds, start_jax
from zoo.commands.devices import add_device_options, parallelism_of
from zoo.commands.interruption import exit_code, interruptible, resume_advice, tell_others, watch_group
from zoo.commands.streams import end_on_signal
from zoo.text import one_line

if TYPE_CHECKING:
    from zoo.distributed.mesh import Parallelism
    from zoo.training.interruption import Caught
    from zoo.training.request import TrainRequest
    from zoo.training.run import RunConfig

#: option -> (metavar, help text) for the fields of Recipe with an option of their own; `--set` sets any field.
RECIPE_FLAGS = {
    "epochs": ("N", "Passes over the training images."),
    "batch-size": ("N", "Images per step; 0: the whole training split."),
    "optimizer": ("NAME", "Optimiser: {choices}."),
    "learning-rate": ("RATE", "Peak learning rate."),
    "schedule": ("NAME", "Learning-rate schedule: {choices}."),
    "weight-decay": ("RATE", "Decoupled weight decay; --set l2=… is the classic L2 penalty."),
    "augment": ("OPS", "Comma-separated augmentation operations, such as flip,pad_crop(pad=4); none: no augmentation."),
    "precision": ("DTYPE", "Type of the computation: {choices}."),
    "image-size": ("PIXELS", "Side of the input."),
    "progressive": ("PIXELS,…", "Sides of the input in consecutive, equal parts of training, such as 128,160,192."),
    "test-size": ("PIXELS", "Side of the input for validation, test and the checkpoint; 0: as in training."),
    "eval-crop": ("FRACTION", "Side of the centre crop of validation and test by the side of the resized image."),
    "normalisation": ("NAME", "Normalisation of inputs: {choices} (default: that of --init, or of the model)."),
    "monitor": ("METRIC", "Validation metric that selects the best checkpoint: {choices}."),
    "patience": ("N", "Stop after N evaluations without improvement; 0: never."),
    "seed": ("N", "Random seed."),
    "head-epochs": ("N", "With --init: epochs at the start in which only the new head is trained."),
    "head-lr": ("RATE", "Peak learning rate of the head; 0: that of the other parameters."),
    "layer-decay": ("FACTOR", "Ratio of the learning rates of each stage and the one after it."),
    "freeze": (
        "PARTS",
        "Comma-separated parts to freeze: stages, body (all but the head), or regexes of paths.",
    ),
    "unfreeze-at": ("EPOCH", "Epoch at which frozen parts start to be trained; 0: never."),
}

#: Fields that `--set` may change with --quick.
QUICK_FIELDS = ("class_weights", "recipe.class_weights")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser)
    add = parser.add_argument
    add("--workdir", metavar="DIR", help="Folder of the run, on disk, gs:// or s3:// (default: one under runs/).")
    add("--folds", metavar="K", help="Cross-validate: train K times, testing every image once.")
    add("--group", metavar="COLUMN", help="With --folds: column of the table whose images stay together; none: no "
        "column (default: a column named patient, subject, group, …).")  # fmt: skip
    add("--quick", action="store_true",
        help="Fit only a linear head to frozen features: seconds instead of hours on a CPU.")  # fmt: skip
    add("--dry-run", action="store_true", help="Print shapes, memory and a time estimate without training.")
    add("--save-every", metavar="SECONDS", type=seconds, default=60.0,
        help="Time between saves of the run's state (default: 60).")  # fmt: skip
    add("--save-steps", metavar="N", type=count, default=0, help="Also save every N steps; 0: by time only.")
    add(
        "--deterministic",
        action="store_true",
        help="Reproduce results to the bit on GPU too, at some cost in speed.",
    )
    add_log_option(parser)
    add("--hang-timeout", metavar="SECONDS", type=seconds, default=1800.0,
        help="With several processes: end when none advances for this long (default: 1800; 0: never).")  # fmt: skip
    add("--quiet", action="store_true", help="Print errors only.")
    add("--no-report", dest="report", action="store_false", help="Write no report.html at the end.")


def add_log_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names experiment trackers, which `zoo sweep` shares."""
    parser.add_argument("--log", metavar="TRACKER", default="",
        help="Log to an experiment tracker as well: wandb, mlflow, or both with a comma between.")  # fmt: skip


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe what is trained, which `zoo lr-find` and `zoo sweep` share."""
    from zoo.training.recipe import choices_of

    add = parser.add_argument
    add("--model", metavar="NAME", help="Model, see `zoo list` (default: that of --init, or what suits the images).")
    add("--init", metavar="CKPT", help="Checkpoint to fine-tune: a folder, a run, or a name that zoo.load takes.")
    add("--data", metavar="DATA", help="Folder of class folders, .csv, .tar, .npz, tfds:NAME, … (default: digits).")
    add("--data-dir", metavar="DIR", help="Folder of TensorFlow Datasets and Hugging Face datasets.")
    add("--recipe", metavar="NAME", help="Recipe, see `zoo list --recipes` (default: chosen by model and data).")
    for flag, (metavar, text) in RECIPE_FLAGS.items():
        add(f"--{flag}", metavar=metavar, help=text.format(choices=", ".join(filter(None, choices_of(_field(flag))))))
    add(
        "--micro-batch",
        metavar="N",
        help="Images per pass, with accumulated gradients; auto: the most that fit in memory.",
    )
    add("--set", metavar="FIELD=VALUE", action="append", default=[],
        help="Set any field of the recipe or the model; may be repeated.")  # fmt: skip
    add("--config", metavar="FILE", help="Train the config.json of a run anew; other options override it.")
    add("--limit", metavar="N", type=count, default=None, help="Use at most N records of each split; 0: all.")
    add("--workers", metavar="N", type=count, default=None, help="Threads that read images (default: one per core).")
    add("--device-data", metavar="WHEN", default="auto",
        help="Keep the training images on the devices: on, off, or auto: where they fit, except on CPUs.")  # fmt: skip
    add_device_options(parser)


def run(options: argparse.Namespace) -> int:
    command = shlex.join(["zoo", *os.environ.get("ZOO_LAUNCHED", "").split(), *options.words])
    with interruptible("train", command) as caught:
        return _train(options, command, caught)


def _train(options: argparse.Namespace, command: str, caught: "Caught") -> int:
    if options.deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    start_jax()
    parallelism = parallelism_of(options)
    caught.install()  # JAX has installed a handler of SIGTERM, if there are several processes
    watch_group("train", options.hang_timeout)
    from zoo.analysis.report import page_writer
    from zoo.data.folds import Fold
    from zoo.distributed import processes, watch
    from zoo.training import cross_validation, dry_run, loop, plan, report
    from zoo.training.run_store import UnmirroredRunError
    from zoo.training.trackers import parse_trackers

    folds = 0
    if options.folds is not None:
        folds = cross_validation.require_folds(options.folds, "--folds")
    elif options.group is not None:
        raise ValueError(f"--group {options.group} belongs to a cross-validation; add --folds 5")
    trackers = parse_trackers(options.log)
    request = train_request(options, parallelism)
    silent = not processes.is_primary() or (options.quiet and not options.dry_run)
    say = (lambda line: None) if silent else partial(print, flush=True)
    if options.dry_run:
        if folds:
            request, group = cross_validation.prepare(request, options.group, say)
            say(f"The first of {folds} runs, which differ in their training images only:")
            training_plan = cross_validation.fold_plan(request, Fold(1, folds, group), None, say)
        else:
            training_plan = plan.make_plan(request, say)
        report.describe(training_plan, say)
        dry_run.dry_run(training_plan, say, options.workers)
        watch.stop()
        return 0
    for line in watch.describe_hosts(watch.hosts()):
        say(line)
    fit: Callable[[plan.Plan], Any] = partial(
        loop.fit, save_seconds=options.save_every, save_steps=options.save_steps, command=command,
        quiet=options.quiet, workers=options.workers, caught=caught,
        write_page=page_writer() if options.report else None, log=trackers,
    )  # fmt: skip
    if request.head:
        from zoo.analysis import quick

        request = quick.prepare(request)
        fit = partial(quick.fit_plan, command=command, quiet=options.quiet, workers=options.workers, log=trackers)
    try:
        if folds:
            cross_validation.cross_validate(request, folds, options.group, fit, say)
        else:
            fit(plan.make_plan(request, say))
    except UnmirroredRunError as error:
        watch.stop()
        message = one_line(f"zoo train: {error}")
        tell_others(UNFINISHED_EXIT, message)
        print(message, file=sys.stderr)
        return UNFINISHED_EXIT
    except loop.InterruptedRunError as stop:
        watch.stop()
        end_on_signal(exit_code(stop.signum))
        if processes.is_primary():
            print(f"zoo train: Interrupted; {stop}. {resume_advice(command)}", file=sys.stderr)
        return exit_code(stop.signum)
    watch.stop()
    return 0


def train_request(options: argparse.Namespace, parallelism: "Parallelism | None" = None) -> "TrainRequest":
    """Build the request that flags, `--set` and `--config` describe; flags override the file."""
    from zoo import loading
    from zoo.training.request import TrainRequest
    from zoo.training.run import read_config
    from zoo.training.settings import Setting, parse_assignment

    base = read_config(options.config) if options.config else None
    init = options.init or (base.init if base else None)
    head = "linear" if getattr(options, "quick", False) or (base and base.head) else ""
    if head:
        if not hasattr(options, "quick"):  # of a command that tries learning rates or other fields of the recipe
            raise ValueError(
                f"--config {options.config}: fits only a head, by no recipe; train on from it with --init RUN/best"
            )
        _require_quick_options(options, base)
    flags = {flag: getattr(options, _field(flag)) for flag in (*RECIPE_FLAGS, "micro-batch")}
    settings = [
        Setting(f"--{flag}", f"recipe.{_field(flag)}", text) for flag, text in flags.items() if text is not None
    ]
    return TrainRequest(
        model=options.model,
        data=options.data,
        recipe=options.recipe,
        init=None if init is None else loading.open_init(init, options.model or (base.model if base else None)),
        base=base,
        settings=[*settings, *map(parse_assignment, options.set)],
        data_dir=options.data_dir,
        limit=options.limit,
        parallelism=parallelism,
        device_data=options.device_data,
        workdir=getattr(options, "workdir", None),
        open_init=loading.open_init,
        head=head,
    )


def _require_quick_options(options: argparse.Namespace, base: "RunConfig | None") -> None:
    """Raise ValueError for options that do not apply to fitting a head."""
    if base and not base.head:
        raise ValueError(f"--config {options.config}: trains the whole network; remove --quick or --config")
    if options.model and not options.init:
        raise ValueError(
            f"--quick --model {options.model}: the features need pretrained weights; give them with --init instead "
            "(`zoo list --weights`), or remove --model for the default"
        )
    flags = [f for f in (*RECIPE_FLAGS, "recipe", "micro-batch", "mesh", "dry-run") if getattr(options, _field(f))]
    flags += ["save-steps"] * bool(options.save_steps) + ["parallel"] * (options.parallel != "jit")
    names = [f"--{flag}" for flag in flags]
    names += [f"--set {text}" for text in options.set if text.partition("=")[0].strip() not in QUICK_FIELDS]
    if names:
        raise ValueError(
            f"--quick fits only a linear head; remove {', '.join(names)}, or --quick to train the whole network"
        )


def _field(flag: str) -> str:
    return flag.replace("-", "_")
