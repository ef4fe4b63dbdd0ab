"""`zoo list`: list the models by family, the recipes, or the pretrained weights."""

import argparse
import dataclasses
import json

from zoo.commands import amount


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipes", action="store_true", help="List the recipes instead of the models.")
    parser.add_argument("--weights", action="store_true", help="List the weights that can be loaded by name.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(options: argparse.Namespace) -> int:
    if options.weights:
        list_weights(options.json)
    elif options.recipes:
        list_recipes(options.json)
    else:
        list_models(options.json)
    return 0


def list_models(as_json: bool) -> None:
    """Print every model with its parameters, multiply-adds, input shape and paper."""
    from zoo.models import create
    from zoo.models.summary import figures

    rows = []
    for name, totals in figures().items():
        model = create(name)
        shape_and_paper = {"input": list(model.input_shape), "paper": model.paper}
        rows.append({"family": model.family, "model": name, **totals, **shape_and_paper})
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    family = None
    print(f"{'model':<24}{'parameters':>14}{'multiply-adds':>15}  {'input':<12}paper")
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            print(f"\n{family}")
        size, work = "x".join(map(str, row["input"])), amount(row["multiply_adds"])
        print(f"  {row['model']:<22}{row['parameters']:>14,}{work:>15}  {size:<12}{row['paper']}")


def list_recipes(as_json: bool) -> None:
    """Print every recipe with its optimiser, length and source; as JSON, with all its fields."""
    from zoo.training.display import format_count
    from zoo.training.recipes import RECIPES

    if as_json:
        print(json.dumps({name: dataclasses.asdict(recipe) for name, recipe in RECIPES.items()}, indent=1))
        return
    for name, recipe in RECIPES.items():
        length = f"{format_count(recipe.epochs, 'epoch')} of batch {recipe.batch_size}"
        print(f"{name:<22} {recipe.optimizer:<9} {length:<26} {recipe.source}")


def list_weights(as_json: bool) -> None:
    """Print the shipped checkpoints and the table of other projects' weights, with a star at each model's default."""
    from zoo.pretrained.names import cached_folder, shipped
    from zoo.pretrained.registry import DEFAULTS, WEIGHTS
    from zoo.pretrained.weights import read_card

    cards = {name: read_card(name) for name in shipped()}
    if as_json:
        rows = [{"name": name, "model": card.model, "fields": card.fields, "licence": card.licence}
                for name, card in cards.items()]  # fmt: skip
        rows += [dataclasses.asdict(weights) for weights in WEIGHTS.values()]
        print(json.dumps(rows, indent=1))
        return
    print(f"{'name':<46}{'model':<22}{'input':>8}{'top-1':>8}  {'licence':<14}data")
    for name, card in cards.items():
        accuracy = card.metrics.get("test", {}).get("accuracy")
        data = (card.data or {}).get("source", "")
        print(_weights_line(name, card.model, card.preprocess.size, accuracy and 100 * accuracy, card.licence, data))
    for name, weights in WEIGHTS.items():
        star = "*" if name in DEFAULTS.values() else ""
        cached = ", in the cache" if cached_folder(weights).exists() else ""
        size, top1 = weights.preprocess.size, weights.accuracy[0]
        print(_weights_line(f"{name}{star}", weights.model, size, top1, weights.licence, f"{weights.data}{cached}"))
    print("\n* default tag, which may be omitted: torchvision:resnet50 is torchvision:resnet50.IMAGENET1K_V2")


def _weights_line(name: str, model: str, size: tuple[int, int], top1: float | None, licence: str, data: str) -> str:
    accuracy = f"{top1:.2f}" if top1 is not None else "–"
    return f"{name:<46}{model:<22}{'x'.join(map(str, size)):>8}{accuracy:>8}  {licence:<14}{data}"
