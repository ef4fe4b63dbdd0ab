"""`zoo train`: train a model, or go on with a run."""

import argparse
import difflib
import os
import shlex
import sys
from functools import partial
from typing import Any

from zoo.commands import SIGNAL_EXIT, count, seconds, start_jax
from zoo.commands.devices import add_device_options, parallelism_of

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
    from zoo.training import loop, report
    from zoo.training import plan as planning
    from zoo.training.run import folder_of

    config, start = config_of(options)
    about = {
        "init": start, "fields": config.fields, "data_dir": config.data_dir, "limit": config.limit,
        "parallelism": parallelism,
    }  # fmt: skip
    auto = options.micro_batch == "auto"
    if options.dry_run:
        job = planning.plan(config.model, config.data, config.recipe, **about)
        say = partial(print, flush=True) if processes.is_primary() else lambda line: None
        report.describe(job, folder_of(options.workdir, job.config), say)
        loop.dry_run(job, say, auto_micro_batch=auto)
        return 0
    command = shlex.join(["zoo", *os.environ.get("ZOO_LAUNCHED", "").split(), *options.words])
    try:
        loop.fit(
            config.model, config.data, config.recipe, **about, workdir=options.workdir, command=command,
            auto_micro_batch=auto,
            save_seconds=options.save_every, save_steps=options.save_steps, quiet=options.quiet,
            workers=options.workers,
        )  # fmt: skip
    except loop.InterruptedRunError as stop:
        if processes.is_primary():
            print(f"zoo train: {stop}; the same command goes on from there: {command}", file=sys.stderr)
        return SIGNAL_EXIT + stop.signum
    return 0


def _field(flag: str) -> str:
    return flag.replace("-", "_")


def config_of(options: argparse.Namespace) -> Any:
    """(the run that flags, `--set` and `--config` describe together, the checkpoint it starts from or None).

    What is given on the command line wins over the file.
    """
    import dataclasses

    from zoo import models
    from zoo.training import finetune
    from zoo.training import recipe as recipe_module
    from zoo.training.run import Config, read_config

    base = read_config(options.config) if options.config else None
    if base and base.data == "arrays" and not options.data:
        raise ValueError(f"{options.config}: trained on arrays in memory, which are not in the file; give --data")
    start = open_start(options, base)
    if options.init and not (options.data or base):
        raise ValueError(f"--init {options.init}: say with --data what it is to be trained on")
    data = options.data or (base.data if base else "digits")
    if start is not None:
        model, fields = finetune.model_and_fields(start, options.model, {})
    else:
        model, fields = options.model or (base.model if base else "lenet5"), {}
    if base and base.model == model and not options.init:
        fields = dict(base.fields)
    known = models.defining_fields(models.create(model, **fields))
    if options.data and base and options.data != base.data:
        fields.pop("num_classes", None)
    if base and not options.recipe:
        recipe = base.recipe
    else:
        recipe = finetune.recipe_for(options.recipe, start, model, data)
    changes: dict[str, Any] = {}
    for field in map(_field, RECIPE_FLAGS):
        text = getattr(options, field)
        if text is not None:
            changes[field] = recipe_module.parse_field(field, text)
    if options.micro_batch is not None:
        size = "0" if options.micro_batch == "auto" else options.micro_batch
        changes["micro_batch"] = recipe_module.parse_field("micro_batch", size)
    recipe_fields = [field.name for field in dataclasses.fields(recipe_module.Recipe)]
    for assignment in options.set:
        where, field, text = split_assignment(assignment, recipe_fields, list(known))
        if where == "recipe":
            changes[field] = recipe_module.parse_field(field, text)
        else:
            fields[field] = parse_model_field(field, text, known[field])
    recipe = dataclasses.replace(recipe, **changes)
    limit = options.limit if options.limit is not None else (base.limit if base else 0)
    data_dir = options.data_dir or (base.data_dir if base else None)
    return Config(model, fields, data, recipe, limit, data_dir=data_dir), start


def open_start(options: argparse.Namespace, base: Any) -> Any:
    """The checkpoint that `--init` names, or that the run in `--config` started from, or None."""
    spec = options.init or (base.init if base else None)
    if spec is None:
        return None
    from zoo import api

    start = api.start_from(spec, options.model or (base.model if base else None))
    if base and not options.init and start.digest() != base.init_digest:
        raise ValueError(f"{spec}: is not the checkpoint that the run in {options.config} started from; give --init")
    return start


def split_assignment(text: str, recipe_fields: list[str], model_fields: list[str]) -> tuple[str, str, str]:
    """("recipe" | "model", field, value) of "field=value", "recipe.field=value" or "model.field=value"."""
    name, separator, value = text.partition("=")
    name = name.strip()
    if not separator:
        raise ValueError(f"--set {text}: write it as field=value")
    if name == "image_size":  # the recipe's size also sets the model's
        return "recipe", name, value
    prefix, dot, field = name.partition(".")
    homes = {"recipe": recipe_fields, "model": model_fields}
    if not dot:
        prefix, field = next((home for home, names in homes.items() if name in names), ""), name
    if prefix not in homes or field not in homes[prefix]:
        near = difflib.get_close_matches(field, [*recipe_fields, *model_fields], n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"fields: {', '.join([*recipe_fields, *model_fields])}"
        raise ValueError(f"--set {text}: no field of the recipe or the model is called {name!r}; {hint}")
    return prefix, field, value


def parse_model_field(name: str, text: str, current: Any) -> Any:
    """The value of a model's field as written on a command line; its kind is that of the present value."""
    import ast

    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(current, tuple) and not isinstance(value, tuple):
        value = (value,)
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if current is not None and value is not None and type(value) is not type(current):
        raise ValueError(f"--set {name}={text}: should be of type {type(current).__name__}, like {current!r}")
    return value
