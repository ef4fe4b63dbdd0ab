"""The `zoo` command. Each subcommand imports what it needs when it runs, so that help is quick."""

import argparse
import difflib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

SIGNAL_EXIT = 128


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_with_nearest(self, message)}\n")


def _with_nearest(parser: argparse.ArgumentParser, message: str) -> str:
    if message.startswith("unrecognized arguments: "):
        word = message.split(": ", 1)[1].split()[0]
        near = difflib.get_close_matches(word, parser._option_string_actions, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; `{parser.prog} --help` lists them"
        return f"there is no option {word!r}{hint}"
    return message


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code. A user's mistake is one line on stderr and code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(prog="zoo", description="LeNet, AlexNet, Inception and residual networks in JAX.")
    from zoo import __version__

    parser.add_argument("--version", action="version", version=f"zoo {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (help_text, add_arguments, run) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=help_text, description=help_text)
        add_arguments(sub)
        sub.set_defaults(run=run)
    if not words:
        parser.print_help()
        return 0
    options, unknown = parser.parse_known_args(words)
    if options.command is None:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}" if unknown else "no command is given")
    if unknown:
        subparsers.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    options.words = words
    try:
        return options.run(options) or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("ZOO_TRACEBACK"):
            raise
        print(f"zoo {options.command}: {_one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or os.environ.get("ZOO_TRACEBACK"):
            raise
        what = "the memory does not suffice; try a smaller --batch-size or --set micro_batch=N, which accumulates"
        print(f"zoo {options.command}: {what}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return SIGNAL_EXIT + 2


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split()) or type(error).__name__


def start_jax() -> None:
    """What the command line sets for itself: the compilation cache in the user's cache folder."""
    import jax

    from zoo.data.sources import cache_folder

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder() / "compiled"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # a home that cannot be written to: compile every time
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# --- train -----------------------------------------------------------------------------------------------------

#: Flags that are a recipe field under another or the same name; `--set` reaches the rest.
RECIPE_FLAGS = {
    "epochs": "epochs", "batch-size": "batch_size", "optimizer": "optimizer", "learning-rate": "learning_rate",
    "schedule": "schedule", "weight-decay": "weight_decay", "augment": "augment", "precision": "precision",
    "image-size": "image_size", "monitor": "monitor", "patience": "patience", "seed": "seed",
}  # fmt: skip


def train_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="NAME", help="a name of `zoo list` (default: lenet5)")
    add("--data", metavar="DATA", help="digits, tfds:NAME, a .npz file or an IDX folder (default: digits)")
    add("--data-dir", metavar="DIR", help="where TensorFlow Datasets keeps its data")
    add("--recipe", metavar="NAME", help="a name of RECIPES (default: the one that suits model and data)")
    for flag, field in RECIPE_FLAGS.items():
        add(f"--{flag}", metavar="X", help=f"recipe field {field}")
    add("--set", metavar="FIELD=VALUE", action="append", default=[], help="any field of the recipe or the model")
    add("--config", metavar="FILE", help="a run's config.json: train it anew, with what else is given changed")
    add("--workdir", metavar="DIR", help="the run's folder (default: one under runs/)")
    add("--limit", metavar="N", type=_count, default=None, help="use at most N records of each split")
    add("--dry-run", action="store_true", help="shapes, memory and a time estimate; nothing is trained")
    add(
        "--save-every", metavar="SECONDS", type=_seconds, default=60.0, help="commit the state this often (default: 60)"
    )
    add("--save-steps", metavar="N", type=_count, default=0, help="and every N steps")
    add("--deterministic", action="store_true", help="the same bits every time on a GPU too, where that is slower")
    add("--quiet", action="store_true", help="print nothing but errors")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return value


def train(options: argparse.Namespace) -> int:
    if options.deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    start_jax()
    from zoo.training import loop
    from zoo.training.run import folder_of

    config = train_config(options)
    about = {
        "fields": config.fields, "data_dir": config.data_dir, "limit": config.limit,
    }  # fmt: skip
    if options.dry_run:
        job = loop.plan(config.model, config.data, config.recipe, **about)
        loop.describe(job, folder_of(options.workdir, job.config), print)
        for line in loop.dry_run(job):
            print(line, flush=True)
        return 0
    command = shlex.join(["zoo", *options.words])
    try:
        loop.fit(
            config.model, config.data, config.recipe, **about, workdir=options.workdir, command=command,
            save_seconds=options.save_every, save_steps=options.save_steps, quiet=options.quiet,
        )  # fmt: skip
    except loop.Interrupted as stop:
        print(f"zoo train: {stop}; the same command goes on from there: {command}", file=sys.stderr)
        return SIGNAL_EXIT + stop.signum
    return 0


def train_config(options: argparse.Namespace) -> Any:
    """The run that flags, `--set` and `--config` describe together; later ones win over the file."""
    import dataclasses

    from zoo import models
    from zoo.training import recipes
    from zoo.training.run import Config, read_config

    base = read_config(options.config) if options.config else None
    model = options.model or (base.model if base else "lenet5")
    data = options.data or (base.data if base else "digits")
    fields = dict(base.fields) if base and base.model == model else {}
    known = models.defining_fields(models.create(model, **fields))
    if options.data and base and options.data != base.data:
        fields.pop("num_classes", None)
    if base and not options.recipe:
        recipe = base.recipe
    else:
        recipe = recipes.find_recipe(options.recipe or recipes.default_recipe(model, data))
    changes: dict[str, Any] = {}
    for flag, field in RECIPE_FLAGS.items():
        text = getattr(options, flag.replace("-", "_"))
        if text is not None:
            changes[field] = recipes.parse_field(field, text)
    recipe_fields = [field.name for field in dataclasses.fields(recipes.Recipe)]
    for assignment in options.set:
        where, field, text = split_assignment(assignment, recipe_fields, list(known))
        if where == "recipe":
            changes[field] = recipes.parse_field(field, text)
        else:
            fields[field] = parse_model_field(field, text, known[field])
    recipe = dataclasses.replace(recipe, **changes)
    limit = options.limit if options.limit is not None else (base.limit if base else 0)
    data_dir = options.data_dir or (base.data_dir if base else None)
    return Config(model, fields, data, recipe, limit, data_dir=data_dir)


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


# --- eval and predict ------------------------------------------------------------------------------------------


def eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint's folder")
    parser.add_argument("--data", metavar="DATA", help="default: what it was trained on")
    parser.add_argument("--data-dir", metavar="DIR", help="where TensorFlow Datasets keeps its data")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument("--limit", metavar="N", type=_count, default=0, help="use at most N records")
    parser.add_argument("--batch-size", metavar="N", type=_count, default=256, help="changes nothing but the speed")
    parser.add_argument("--json", action="store_true", help="every number, the confusion matrix too, as JSON")


def evaluate(options: argparse.Namespace) -> int:
    start_jax()
    import json

    from zoo import api
    from zoo.data.sources import open_dataset
    from zoo.training import metrics

    loaded = api.load(options.checkpoint)
    data = options.data or (loaded.card.data or {}).get("source")
    if not data:
        raise ValueError(f"{options.checkpoint}: the card does not say what it was trained on; give --data")
    if options.batch_size < 1:
        raise ValueError("--batch-size must be at least 1")
    try:
        dataset = open_dataset(data, options.data_dir)
    except (ValueError, OSError) as error:
        if options.data:
            raise
        raise ValueError(f"{options.checkpoint} was trained on {data!r}; give --data ({_one_line(error)})") from None
    result = api.evaluate(
        loaded, dataset, options.split, limit=options.limit, batch_size=options.batch_size,
        on_batch=_counter("evaluated"),
    )  # fmt: skip
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{options.checkpoint} on {data}, {options.split} split, single crop")
        print(metrics.format_report(result))
    return 0


def _counter(what: str) -> Callable[[int], None]:
    """A count on stderr where that is a terminal, at most ten times a second."""
    import time

    last = [time.monotonic()]

    def show(done: int) -> None:
        if sys.stderr.isatty() and time.monotonic() - last[0] > 0.1:
            last[0] = time.monotonic()
            print(f"\r{what} {done:,}", end="\r", file=sys.stderr, flush=True)

    return show


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint's folder")
    parser.add_argument("images", metavar="IMAGE|FOLDER", nargs="+", help="image files, or folders of them")
    parser.add_argument("--top", metavar="N", type=_count, default=5, help="how many classes to show (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object per image and line")
    parser.add_argument("-o", "--output", metavar="FILE.csv", help="write a table")


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")


def predict(options: argparse.Namespace) -> int:
    start_jax()
    import csv
    import json

    from zoo import api

    if options.output and not options.output.lower().endswith(".csv"):
        raise ValueError(f"-o {options.output}: writes a table; the name should end in .csv")
    if options.top < 1:
        raise ValueError("--top must be at least 1")
    loaded = api.load(options.checkpoint)
    files = image_files(options.images)
    rows, problems = [], []
    for start in range(0, len(files), 64):
        group, pixels = [], []
        for file in files[start : start + 64]:
            try:
                pixels.append(api.read_image(file))
                group.append(file)
            except (ValueError, OSError) as error:
                problems.append(_one_line(error))
        predictions = loaded.predict(pixels, options.top) if pixels else []
        for file, prediction in zip(group, predictions, strict=True):
            rows.append((str(file), prediction))
            print(json.dumps({"file": str(file), "top": [list(pair) for pair in prediction.top]})
                  if options.json else _line(str(file), prediction), flush=True)  # fmt: skip
    if options.output:
        with open(options.output, "w", newline="", encoding="utf-8") as table:
            writer = csv.writer(table)
            width = min(options.top, len(loaded.card.classes))
            writer.writerow(["file", *(f"{what}{i}" for i in range(1, width + 1) for what in ("class", "probability"))])
            for name, prediction in rows:
                writer.writerow([name, *(cell for pair in prediction.top for cell in pair)])
    for problem in problems:
        print(f"zoo predict: {problem}", file=sys.stderr)
    return 2 if problems else 0


def _line(name: str, prediction: Any) -> str:
    return f"{name}  " + "  ".join(f"{label} {100 * probability:.1f} %" for label, probability in prediction.top)


def image_files(names: Sequence[str]) -> list[Path]:
    """The files named, and the images in the folders named, sorted. FileNotFoundError, ValueError for none."""
    files = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise ValueError(f"{path}: has no images ({' '.join(IMAGE_SUFFIXES)})")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path}: there is no such file or folder")
    return files


# --- list and info ---------------------------------------------------------------------------------------------


def list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipes", action="store_true", help="the recipes instead of the models")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def list_models(options: argparse.Namespace) -> int:
    import json

    if options.recipes:
        import dataclasses

        from zoo.training.recipes import RECIPES

        if options.json:
            print(json.dumps({name: dataclasses.asdict(recipe) for name, recipe in RECIPES.items()}, indent=1))
        else:
            for name, recipe in RECIPES.items():
                length = f"{recipe.epochs:g} epochs of batch {recipe.batch_size}"
                print(f"{name:<22} {recipe.optimizer:<9} {length:<26} {recipe.source}")
        return 0
    from zoo.models import create
    from zoo.models.summary import figures

    rows = []
    for name, total in figures().items():
        model = create(name)
        about = {"input": list(model.input_shape), "paper": model.paper}
        rows.append({"family": model.family, "model": name, **total, **about})
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    family = None
    print(f"{'model':<24}{'parameters':>14}{'multiply-adds':>15}  {'input':<12}paper")
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            print(f"\n{family}")
        size = "x".join(map(str, row["input"]))
        print(
            f"  {row['model']:<22}{row['parameters']:>14,}{_amount(row['multiply_adds']):>15}  {size:<12}{row['paper']}"
        )
    return 0


def _amount(number: float) -> str:
    """4089184256 -> "4.09 G"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME|CKPT", help="a model's name, or a checkpoint's folder")
    parser.add_argument("--json", action="store_true", help="the layers, or the card, as JSON")


def info(options: argparse.Namespace) -> int:
    import json

    from zoo import checkpoint
    from zoo.models import MODELS, create
    from zoo.models.summary import layers, totals

    card = None
    if options.name not in MODELS and Path(options.name).exists():
        card = checkpoint.read_card(options.name)
        model, shape = create(card.model, **card.fields), (*card.preprocess.size, card.preprocess.num_channels)
    elif options.name not in MODELS and (os.sep in options.name or options.name.startswith(".")):
        raise FileNotFoundError(f"{options.name}: there is no such checkpoint folder")
    else:
        model = create(options.name)
        shape = model.input_shape
    rows = layers(model, shape)
    if options.json:
        print(json.dumps(card.to_json() if card else [row._asdict() for row in rows], indent=1))
        return 0
    if card:
        print_card(options.name, card)
    width = max(len(row.path) for row in rows)
    print(f"{'layer':<{width}}  {'kind':<14}{'output':<16}{'parameters':>12}{'multiply-adds':>16}")
    for row in rows:
        output = "x".join(map(str, row.output))
        print(f"{row.path:<{width}}  {row.kind:<14}{output:<16}{row.parameters:>12,}{row.multiply_adds:>16,}")
    total, size = totals(rows), "x".join(map(str, shape))
    work = _amount(total["multiply_adds"])
    print(f"\n{total['parameters']:,} parameters, {work} multiply-adds for an image of {size}")
    print(model.paper)
    return 0


def print_card(path: str, card: Any) -> None:
    """What a checkpoint says about itself, shortly."""
    more = ", …" if len(card.classes) > 10 else ""
    print(f"{path}: {card.model}, {len(card.classes)} classes ({', '.join(card.classes[:10])}{more})")
    changed = {key: value for key, value in card.fields.items() if key != "num_classes"}
    lines = {
        "fields": ", ".join(f"{key}={value}" for key, value in changed.items()),
        "preprocess": ", ".join(f"{key}={value}" for key, value in vars(card.preprocess).items()),
        "trained on": (card.data or {}).get("source"),
        "licence": card.licence,
        "source": card.source,
    }
    for split in ("validation", "test"):
        if split in card.metrics:
            result = card.metrics[split]
            lines[split] = f"accuracy {100 * result['accuracy']:.2f} %, loss {result['loss']:.4f}"
    for key, value in lines.items():
        if value:
            print(f"  {key:<12}{value}")
    print()


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "train": ("train a model, or go on with a run", train_arguments, train),
    "eval": ("every metric of a checkpoint on a split of a data set", eval_arguments, evaluate),
    "predict": ("classify images with a checkpoint", predict_arguments, predict),
    "list": ("the models, by family", list_arguments, list_models),
    "info": ("a model's layers, or a checkpoint's card", info_arguments, info),
}


if __name__ == "__main__":
    sys.exit(main())
