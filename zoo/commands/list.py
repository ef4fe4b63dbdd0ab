"""`zoo list`: the models, by family, or the recipes."""

import argparse

from zoo.commands import amount


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipes", action="store_true", help="the recipes instead of the models")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(options: argparse.Namespace) -> int:
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
            f"  {row['model']:<22}{row['parameters']:>14,}{amount(row['multiply_adds']):>15}  {size:<12}{row['paper']}"
        )
    return 0
