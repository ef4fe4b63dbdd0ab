"""Recipes: the table, the words a user may write, and the answers to what makes no sense."""

import dataclasses
import json

import pytest

from zoo.models import MODELS
from zoo.training import recipe as recipe_module
from zoo.training import recipes
from zoo.training.recipe import Recipe
from zoo.training.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json_and_says_where_it_is_from(name):
    recipe = RECIPES[name]
    assert recipe_module.recipe_from_json(json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe
    assert recipe.source


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("data", ["digits", "tfds:mnist", "tfds:cifar10", "photos"])
def test_every_model_has_a_default_recipe(model, data):
    assert recipes.default_recipe(model, data) in RECIPES


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_digits_are_never_mirrored(name):
    assert not any(op.startswith("flip") for op in RECIPES[name].augment)


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"optimizer": "adamm"}, "did you mean adam"),
        ({"schedule": "x"}, "choose from constant"),
        ({"epochs": 0}, "epochs=0: must be positive"),
        ({"epochs": float("nan")}, "epochs=nan"),
        ({"epochs": float("inf")}, "epochs=inf"),
        ({"seed": 2**32}, "below"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"batch_size": -4}, "batch_size=-4"),
        ({"batch_size": 2.5}, "batch_size=2.5: must be of type int"),
        ({"label_smoothing": 1.0}, r"\[0, 1\)"),
        ({"ema": 1.5}, "ema=1.5"),
        ({"warmup_epochs": 30.0}, "warmup_epochs=30.0: must not exceed epochs=20"),
        ({"milestones": (0.7, 0.5)}, r"milestones=\(0.7, 0.5\)"),
        ({"milestones": (1.5,)}, r"milestones=\(1.5,\)"),
        ({"micro_batch": 48}, "must divide batch_size=64"),
        ({"batch_size": 12, "micro_batch": 8}, "must divide batch_size=12"),
        ({"layer_decay": 0.0}, "layer_decay=0.0"),
        ({"unfreeze_at": 2.0}, "unfreeze_at=2.0: nothing is frozen"),
        ({"augment": ("flop",)}, "flip"),
        ({"augment": "flip"}, "tuple"),
        ({"seed": True}, "seed=True"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(fields, answer):
    with pytest.raises(ValueError, match=answer) as error:
        Recipe(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("epochs", "2.5", 2.5),
        ("batch_size", "32", 32),
        ("decay_bias_and_norm", "true", True),
        ("milestones", "0.3, 0.6", (0.3, 0.6)),
        (
            "augment",
            "flip,affine(rotate=10, shift=2), cutout(size=4)",
            ("flip", "affine(rotate=10, shift=2)", "cutout(size=4)"),
        ),
        ("augment", "", ()),
        ("optimizer", "lion", "lion"),
    ],
)
def test_fields_as_written_on_a_command_line(field, text, value):
    assert recipe_module.parse_field(field, text) == value


@pytest.mark.parametrize(
    ("field", "text"), [("epochs", "many"), ("batch_size", "3.5"), ("decay_bias_and_norm", "maybe")]
)
def test_fields_written_wrongly(field, text):
    with pytest.raises(ValueError, match=field):
        recipe_module.parse_field(field, text)


def test_unknown_names_get_near_ones():
    with pytest.raises(ValueError, match="mnist"):
        recipes.find_recipe("mnits")
    with pytest.raises(ValueError, match="colour"):
        recipe_module.recipe_from_json({"colour": 1})
