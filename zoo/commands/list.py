"""`zoo list`: list the models by family, the recipes, or the pretrained weights."""

import argparse
import dataclasses
import fnmatch
import json
import re
import shutil
import textwrap
from collections.abc import Collection
from typing import Any

from zoo.commands import amount
from zoo.suggest import did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", metavar="NAME", nargs="?", default="",
        help="List only models, or weights, with this in their name; may have wildcards: 'resnet*d'.")  # fmt: skip
    parser.add_argument("--recipes", metavar="NAME", nargs="?", const="",
        help="List the recipes instead of the models, or print the fields and the source of one.")  # fmt: skip
    parser.add_argument("--weights", action="store_true", help="List the weights that can be loaded by name.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(options: argparse.Namespace) -> int:
    if options.weights and options.recipes is not None:
        raise ValueError("--weights and --recipes are two lists; choose one of them")
    if options.weights:
        list_weights(options.json, options.pattern)
    elif options.recipes is not None:
        if options.pattern:
            raise ValueError(f"{options.pattern}: --recipes takes one name, or none for all")
        if options.recipes:
            show_recipe(options.recipes, options.json)
        else:
            list_recipes(options.json)
    else:
        list_models(options.json, options.pattern)
    return 0


def matching(names: Collection[str], pattern: str, kind: str) -> list[str]:
    """Return the names that a shell pattern matches, or that have a text without wildcards in them.

    Raises:
        ValueError: naming similar ones, if there are none.
    """
    whole = pattern if re.search(r"[*?[]", pattern) else f"*{pattern}*"
    if found := [name for name in names if fnmatch.fnmatch(name.lower(), whole.lower())]:
        return found
    hint = did_you_mean(pattern, names) or "`zoo list` lists all models, `zoo list --weights` all weights"
    raise ValueError(f"no {kind} called {pattern!r}; {hint}")


def line_width() -> int:
    """Return the columns of the terminal; 80 for a pipe or a file."""
    return shutil.get_terminal_size().columns


def list_models(as_json: bool, pattern: str = "") -> None:
    """Print the models that match, or all, with their parameters, multiply-adds, input shape and paper."""
    from zoo.models import create
    from zoo.models.summary import figures
    from zoo.pretrained.names import shipped
    from zoo.pretrained.registry import WEIGHTS

    rows, every = [], figures()
    if pattern not in every and pattern in (*shipped(), *WEIGHTS, *(name.partition(":")[2] for name in WEIGHTS)):
        raise ValueError(f"{pattern!r} are weights, not a model: `zoo list --weights {pattern}`")
    for name in matching(every, pattern, "model"):
        totals, model = every[name], create(name)
        shape_and_paper = {"input": list(model.input_shape), "paper": model.paper}
        rows.append({"family": model.family, "model": name, **totals, **shape_and_paper})
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    names, sizes = max(len(row["model"]) for row in rows), ["x".join(map(str, row["input"])) for row in rows]
    shapes = max(map(len, sizes))
    start = 2 + names + 12 + 10 + 1 + shapes + 2
    narrow = start + max(len(row["paper"]) for row in rows) > line_width()
    print(f"{'model':<{names + 2}}{'parameters':>12}{'mult-adds':>10} {'input':<{shapes}}  paper")
    for family, members in families.items():
        print(f"\n{family}")
        for row in members:
            size, work = "x".join(map(str, row["input"])), amount(row["multiply_adds"])
            paper = _authors_and_year(row["paper"]) if narrow else row["paper"]
            _print_columns(f"  {row['model']:<{names}}{row['parameters']:>12,}{work:>10} {size:<{shapes}}  ", paper)
    if narrow:
        print("\nzoo info NAME shows the layers of a model and the title of its paper")


def _authors_and_year(paper: str) -> str:
    """Return "Ioffe and Szegedy 2015" of "Ioffe and Szegedy 2015, Batch normalization …"."""
    return re.sub(r"^(\D*\d{4}).*", r"\1", paper)


def _print_columns(start: str, text: str) -> None:
    """Print a row whose last column continues below itself where the line is too short, between words."""
    width = max(line_width() - len(start), 16)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    print(start + f"\n{' ' * len(start)}".join(lines))


def list_recipes(as_json: bool) -> None:
    """Print every recipe with its optimiser, length and the beginning of its source; as JSON, with all its fields."""
    from zoo.training.display import format_count
    from zoo.training.recipes import RECIPES

    if as_json:
        print(json.dumps({name: dataclasses.asdict(recipe) for name, recipe in RECIPES.items()}, indent=1))
        return
    lengths = {
        name: f"{format_count(recipe.epochs, 'epoch')} of {recipe.batch_size}" for name, recipe in RECIPES.items()
    }
    names, optimizers, length = (
        max(map(len, column))
        for column in (RECIPES, [recipe.optimizer for recipe in RECIPES.values()], lengths.values())
    )
    for name, recipe in RECIPES.items():
        source = re.split(r" \(|; |(?<!this project), |(?<! al)\. ", recipe.source)[0]
        _print_columns(f"{name:<{names}}  {recipe.optimizer:<{optimizers}}  {lengths[name]:<{length}}  ", source)
    print("\nzoo list --recipes NAME prints the fields of a recipe and its source")


def show_recipe(name: str, as_json: bool) -> None:
    """Print the fields of a recipe that differ from the defaults, and its source; as JSON, all fields."""
    from zoo.training.recipe import Recipe
    from zoo.training.recipes import find_recipe

    recipe = find_recipe(name)
    fields = dataclasses.asdict(recipe)
    if as_json:
        print(json.dumps(fields, indent=1))
        return
    defaults = dataclasses.asdict(Recipe())
    source = fields.pop("source")
    print(f"{name}; fields that are not listed have their defaults:\n")
    for field, value in fields.items():
        if value != defaults[field]:
            values = value if isinstance(value, tuple) else (value,)
            text = ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)
            print(textwrap.fill(f"{field} = {text}", line_width(), initial_indent="  ", subsequent_indent="      "))
    print("\n" + textwrap.fill(f"source: {source}", line_width()))


def list_weights(as_json: bool, pattern: str = "") -> None:
    """Print shipped checkpoints and other projects' weights that match, or all, with a star at each model's default."""
    from zoo.pretrained.names import cached_folder, shipped
    from zoo.pretrained.registry import DEFAULTS, WEIGHTS
    from zoo.pretrained.weights import read_card

    chosen = set(matching([*shipped(), *WEIGHTS], pattern, "weights"))
    cards = {name: read_card(name) for name in shipped() if name in chosen}
    others = {name: weights for name, weights in WEIGHTS.items() if name in chosen}
    if as_json:
        rows = [{"name": name, "model": card.model, "fields": card.fields, "licence": card.licence}
                for name, card in cards.items()]  # fmt: skip
        rows += [dataclasses.asdict(weights) for weights in others.values()]
        print(json.dumps(rows, indent=1))
        return
    print(f"{'name':<46}{'model':<22}{'input':>8}{'top-1':>8}  {'licence':<14}data")
    for name, card in cards.items():
        accuracy = card.metrics.get("test", {}).get("accuracy")
        data = (card.data or {}).get("source", "")
        print(_weights_line(name, card.model, card.preprocess.size, accuracy and 100 * accuracy, card.licence, data))
    for name, weights in others.items():
        star = "*" if name in DEFAULTS.values() else ""
        cached = ", in the cache" if cached_folder(weights).exists() else ""
        size, top1 = weights.preprocess.size, weights.accuracy[0]
        print(_weights_line(f"{name}{star}", weights.model, size, top1, weights.licence, f"{weights.data}{cached}"))
    print("\n* default tag, which may be omitted: torchvision:resnet50 is torchvision:resnet50.IMAGENET1K_V2")


def _weights_line(name: str, model: str, size: tuple[int, int], top1: float | None, licence: str, data: str) -> str:
    accuracy = f"{top1:.2f}" if top1 is not None else "–"
    return f"{name:<46}{model:<22}{'x'.join(map(str, size)):>8}{accuracy:>8}  {licence:<14}{data}"
