"""The fields of a recipe: their ranges, how they combine, and how they are read from text and JSON."""

import dataclasses
import json

import pytest

from zoo.training import recipe as recipe_module
from zoo.training.recipe import OMITTED_DEFAULTS, Recipe, choices_of, parse_field, recipe_from_json, recipe_to_json

TINY = 1e-9

#: (field, smallest or largest valid values, values just outside).
RANGES = [
    *((field, (TINY,), (0.0, -TINY)) for field in ("epochs", "learning_rate", "eval_every_epochs", "epsilon",
                                                   "decay_every_epochs")),
    *((field, (0, 1), (-1,)) for field in ("batch_size", "min_epoch_steps", "image_size", "test_size", "patience",
                                           "seed")),
    *((field, (0.0, 2.0), (-TINY,)) for field in ("head_epochs", "head_lr", "l1", "l2", "weight_decay", "clip_norm",
                                                  "warmup_epochs", "aux_weight", "decay_factor", "final_lr_fraction",
                                                  "bias_lr_factor", "norm_lr_factor")),
    *((field, (0.0, 1 - TINY), (-TINY, 1.0)) for field in ("momentum", "b2", "label_smoothing", "ema",
                                                           "norm_momentum")),
    *((field, (0.0, 0.5, 1.0), (-TINY, 1 + TINY)) for field in ("eval_crop", "warmup_lr_fraction")),
    *((field, (1, 4), (0, -1)) for field in ("augment_repeats", "ema_every")),
    ("target_threshold", (0.0,), (-TINY, 0.2, 1.0)),  # needs loss="sigmoid"
    ("model_fields", ((), ("dropout=0.3",), ("a=1", "b=x")), (("dropout",), ("=1",), ("dropout=",), ("a b=1",))),
    ("micro_batch", (0, 32, 64), (-1, 48, 128)),
    ("layer_decay", (TINY, 1.0), (0.0, 1 + TINY)),
    ("unfreeze_at", (0.0,), (-TINY, 2.0)),  # nothing is frozen
    ("seed", (2**32 - 1,), (2**32,)),
    ("warmup_epochs", (20.0,), (20 + TINY,)),
    ("milestones", ((), (0.5,), (TINY, 1 - TINY)), ((0.0,), (1.0,), (0.5, 0.5), (0.7, 0.5))),
    ("progressive", ((), (8,), (8, 9)), ((0,), (8, 8), (16, 8))),
    ("progressive_at", ((),), ((1.0,),)),  # needs progressive
]  # fmt: skip

WRONG_TYPES = [
    {"epochs": "3"},
    {"epochs": float("nan")},
    {"epochs": float("inf")},
    {"epochs": True},
    {"batch_size": 2.5},
    {"batch_size": True},
    {"seed": None},
    {"remat": 1},
    {"decay_bias_and_norm": "true"},
    {"milestones": [0.5]},
    {"milestones": ("half",)},
    {"augment": "flip"},
    {"freeze": (1,)},
    {"source": 3},
]


@pytest.mark.parametrize(("field", "valid", "invalid"), RANGES, ids=[f"{row[0]} {row[1]}" for row in RANGES])
def test_ranges(field, valid, invalid):
    for value in valid:
        assert getattr(Recipe(**{field: value}), field) == value
    for value in invalid:
        with pytest.raises(ValueError, match=f"recipe field {field}=") as caught:
            Recipe(**{field: value})
        assert "\n" not in str(caught.value)


def test_every_number_has_a_range():
    numbers = {
        field.name
        for field in dataclasses.fields(Recipe)
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool)
    }
    assert {row[0] for row in RANGES} >= numbers


@pytest.mark.parametrize("fields", WRONG_TYPES, ids=str)
def test_types(fields):
    field = next(iter(fields))
    with pytest.raises(ValueError, match=f"recipe field {field}="):
        Recipe(**fields)


def test_whole_numbers_are_accepted_for_fractional_fields():
    assert Recipe(epochs=3, milestones=(0.5,), progressive=(8, 16), progressive_at=(1,)).progressive_at == (1,)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"optimizer": "adamm"}, ("optimizer='adamm'", "adam")),
        ({"schedule": "x"}, ("schedule='x'", "constant", "one-cycle")),
        ({"warmup_epochs": 30.0}, ("warmup_epochs=30.0", "epochs=20", "--set warmup_epochs=2")),
        ({"micro_batch": 48}, ("micro_batch=48", "batch_size=64")),
        ({"unfreeze_at": 2.0}, ("unfreeze_at=2.0", "freeze", "head_epochs")),
        ({"augment": ("flop",)}, ("flop", "flip")),
        ({"progressive": (8, 16), "image_size": 24}, ("progressive=(8, 16)", "image_size=24")),
        ({"progressive": (8, 16), "progressive_at": (1.0, 2.0)}, ("progressive_at=(1.0, 2.0)", "1 increasing")),
        ({"progressive": (8, 16), "progressive_at": (20.0,)}, ("progressive_at=(20.0,)", "epochs=20")),
        ({"progressive": (8, 16), "progressive_at": (0.0,)}, ("progressive_at=(0.0,)",)),
        ({"progressive": (8, 12, 16), "progressive_at": (2.0, 2.0)}, ("progressive_at=(2.0, 2.0)", "2 increasing")),
        ({"progressive_at": (1.0,)}, ("progressive_at=(1.0,)", "progressive")),
    ],
)
def test_errors_name_the_field_and_valid_values(fields, parts):
    with pytest.raises(ValueError, match=r"recipe field|augment") as caught:
        Recipe(**fields)
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


def test_the_final_image_size_is_the_last_of_progressive():
    assert Recipe().final_image_size == 0 and Recipe(image_size=24).final_image_size == 24
    assert Recipe(progressive=(8, 16)).final_image_size == 16
    assert Recipe(progressive=(8, 16), image_size=16).final_image_size == 16


def test_full_batches_may_have_any_micro_batch():
    assert Recipe(batch_size=0, micro_batch=7).micro_batch == 7


# --- from text and JSON -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("epochs", "2.5", 2.5),
        ("batch_size", "32", 32),
        ("decay_bias_and_norm", "true", True),
        ("remat", "False", False),
        ("milestones", "0.3, 0.6", (0.3, 0.6)),
        ("progressive", "8,16,", (8, 16)),
        ("freeze", "stem, stage1/.*", ("stem", "stage1/.*")),
        ("augment", "flip,affine(rotate=10, shift=2), cutout(size=4)",
         ("flip", "affine(rotate=10, shift=2)", "cutout(size=4)")),
        ("augment", "", ()),
        ("optimizer", "lion", "lion"),
        ("source", "a, b", "a, b"),
    ],
)  # fmt: skip
def test_fields_from_a_command_line(field, text, value):
    parsed = parse_field(field, text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("field", "text"),
    [("epochs", "many"), ("batch_size", "3.5"), ("decay_bias_and_norm", "maybe"), ("milestones", "0.5,half")],
)
def test_misspelt_values_are_named_with_their_option(field, text):
    with pytest.raises(ValueError, match=rf"recipe field {field} '.*{text.split(',')[-1]}'"):
        parse_field(field, text)
    with pytest.raises(ValueError, match=r"^--my-option '"):
        parse_field(field, text, "--my-option")


def test_choices():
    assert choices_of("loss") == ("softmax", "sigmoid") and choices_of("channels") == ("", "L", "RGB", "BGR")
    assert choices_of("epochs") == choices_of("augment") == choices_of("source") == ()


@pytest.mark.parametrize("to_json", [dataclasses.asdict, recipe_to_json])
def test_json(to_json):
    recipe = Recipe(progressive=(8, 16), progressive_at=(1.5,), test_size=24, augment=("flip",), model_fields=("a=1",))
    assert recipe_from_json(json.loads(json.dumps(to_json(recipe)))) == recipe
    with pytest.raises(ValueError, match="colour, shape"):
        recipe_module.recipe_from_json({"shape": 1, "colour": 1})


def test_later_fields_are_written_only_where_they_differ_from_the_default():
    """Older cards and configurations lack them, and must stay the same to the byte."""
    assert set(recipe_to_json(Recipe())).isdisjoint(OMITTED_DEFAULTS)
    assert set(recipe_to_json(Recipe())) | set(OMITTED_DEFAULTS) == set(dataclasses.asdict(Recipe()))
    assert recipe_to_json(Recipe(ema_every=2)) == {**recipe_to_json(Recipe()), "ema_every": 2}


def test_a_threshold_of_targets_needs_the_sigmoid_loss():
    assert Recipe(loss="sigmoid", target_threshold=0.2).target_threshold == 0.2
    with pytest.raises(ValueError, match=r"target_threshold=0\.2: needs loss"):
        Recipe(target_threshold=0.2)
