"""Render docs/recipes.md from the table of recipes.

    python -m benchmarks.recipes

`tests/training/test_recipes.py` checks that the page is current.
"""

from pathlib import Path

from benchmarks.links import link_papers, link_projects
from zoo.training.origins import ORIGINS, settings_of
from zoo.training.published import bit_hyperrule
from zoo.training.recipe import Recipe
from zoo.training.recipes import RECIPES

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"

#: Units of fields, and how a field is called in the page if not by its name.
_LABELS = {
    "optimizer": "{}",
    "epochs": "{} epochs",
    "batch_size": "batch {}",
    "learning_rate": "rate {}",
    "schedule": "schedule {}",
}
#: Sizes of data sets at which the page shows BiT's rule: images, and their usual height and width.
_RULE_EXAMPLES = ((5_000, 32), (5_000, 300), (50_000, 32), (100_000, 300), (1_000_000, 300))


def format_value(value: object) -> str:
    """Return a value in at most six digits; tuples are separated by commas."""
    if isinstance(value, tuple):
        return ", ".join(map(format_value, value))
    return f"{value:.6g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def describe(recipe: Recipe, fields: list[str]) -> str:
    """Return the settings of a recipe as the text of a table cell."""
    parts = []
    for name in fields:
        text = format_value(getattr(recipe, name))
        parts.append(_LABELS[name].format(text) if name in _LABELS else f"`{name}={text}`")
    return ", ".join(parts)


def row(name: str, recipe: Recipe) -> str:
    """Return the row of a recipe: its settings from the paper, from code, and this project's own."""
    settings = settings_of(recipe)
    origins = ORIGINS.get(name, {"ours": " ".join(settings)})
    cells = []
    for origin in ("paper", "code", "ours"):
        known = origins.get(origin, "").split()
        cells.append(describe(recipe, [field for field in settings if field in known]) or "–")
    return f"| `{name}` | {' | '.join(cells)} |"


def rule_row(images: int, side: int) -> str:
    recipe = bit_hyperrule(images, side, side)
    steps = round(recipe.epochs * max(images / recipe.batch_size, 1))
    warmup = round(recipe.warmup_epochs * max(images / recipe.batch_size, 1))
    drops = ", ".join(f"{milestone * steps:,.0f}" for milestone in recipe.milestones)
    mixup = "0.1" if any(op.startswith("mixup") for op in recipe.augment) else "none"
    return f"| {images:,} of {side}x{side} | {steps:,} | {warmup} | {drops} | {recipe.image_size} | {mixup} |"


def render() -> str:
    """Return docs/recipes.md."""
    lines = [
        "# Recipes",
        "",
        "Written by `python -m benchmarks.recipes`. `zoo train --recipe NAME` uses a recipe; flags and `--set` change",
        "its fields. A row shows every field that differs from the defaults, in the column of its origin: the paper,",
        "the code that the authors or the authors of a known reproduction published, or this project (ours). What a",
        "published recipe does otherwise than its source is in the list below the table.",
        "",
        "| recipe | paper | code | ours |",
        "|---|---|---|---|",
        *(row(name, recipe) for name, recipe in RECIPES.items()),
        "",
        "## Sources",
        "",
        *(f"- `{name}`: {link_projects(link_papers(recipe.source))}" for name, recipe in RECIPES.items()),
        "",
        "## Fine-tuning by the size of the data: `bit-hyperrule`",
        "",
        f"{link_papers('Kolesnikov et al. 2019 (arXiv:1912.11370)')}, section 3.3, fine-tune every network on every",
        "data set by one rule: SGD with momentum 0.9, batch 512 and a rate of 0.003, which rises during the warm-up",
        "and is divided by 10 three times. Length, image size and mixup follow from the data. Any model can be",
        "fine-tuned with it:",
        "`zoo train --recipe bit-hyperrule --init CKPT`.",
        "",
        "| training images | steps | warm-up | divided by 10 after | image size | mixup |",
        "|---|---|---|---|---|---|",
        *(rule_row(images, side) for images, side in _RULE_EXAMPLES),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
