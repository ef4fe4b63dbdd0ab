"""Settings from a command line become fields of the recipe or the model."""

import pytest

from zoo import models
from zoo.training.settings import Setting, apply_settings, in_terms_of_options, parse_assignment, parse_model_field

MLP = models.create("mlp", widths=(16,), image_size=8)


def apply(*texts, model=MLP):
    return apply_settings([parse_assignment(text) for text in texts], model)


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("epochs=3", Setting("--set epochs", "epochs", "3")),
        (" epochs =3", Setting("--set epochs", "epochs", "3")),
        ("augment=affine(rotate=8)", Setting("--set augment", "augment", "affine(rotate=8)")),
        ("augment=", Setting("--set augment", "augment", "")),
        ("recipe.epochs=3", Setting("--set recipe.epochs", "recipe.epochs", "3")),
    ],
)
def test_assignments(text, setting):
    assert parse_assignment(text) == setting


def test_an_assignment_needs_an_equals_sign():
    with pytest.raises(ValueError, match=r"--set epochs: .*field=value"):
        parse_assignment("epochs")


@pytest.mark.parametrize(
    ("texts", "recipe", "model"),
    [
        ((), {}, {}),
        (("epochs=3",), {"epochs": 3.0}, {}),
        (("recipe.epochs=3",), {"epochs": 3.0}, {}),
        (("dropout=0.5",), {}, {"dropout": 0.5}),
        (("model.dropout=0.5",), {}, {"dropout": 0.5}),
        (("widths=32",), {}, {"widths": (32,)}),
        (("widths=[32,16]",), {}, {"widths": (32, 16)}),
        (("dropout=1",), {}, {"dropout": 1.0}),
        (("image_size=24",), {"image_size": 24}, {}),
        (("model.image_size=24",), {}, {"image_size": 24}),
        (("recipe.image_size=24",), {"image_size": 24}, {}),
        (("micro_batch=auto",), {"micro_batch": "auto"}, {}),
        (("micro_batch=8",), {"micro_batch": 8}, {}),
        (("epochs=3", "epochs=4", "dropout=0.1"), {"epochs": 4.0}, {"dropout": 0.1}),
        (("optimizer=sgd", "augment=flip,cutout(size=4)"), {"optimizer": "sgd", "augment": ("flip", "cutout(size=4)")},
         {}),
    ],
)  # fmt: skip
def test_settings_go_to_the_recipe_or_the_model(texts, recipe, model):
    assert apply(*texts) == (recipe, model)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("epoch=3", ("--set epoch", "epochs")),
        ("model.epochs=3", ("--set model.epochs",)),
        ("recipe.widths=3", ("--set recipe.widths",)),
        ("optimiser.epochs=3", ("--set optimiser.epochs",)),
        ("epochs=many", ("--set epochs", "'many'")),
        ("batch_size=auto", ("--set batch_size", "'auto'")),
        ("dropout=yes", ("--set dropout", "'yes'", "float")),
        ("dropout=true", ("--set dropout", "'true'", "float")),
        ("xyz=3", ("--set xyz", "learning_rate", "widths")),
    ],
)
def test_errors_name_the_option(text, parts):
    with pytest.raises(ValueError, match="--set") as caught:
        apply(text)
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


def test_the_type_of_a_model_field_is_that_of_its_value():
    assert parse_model_field("--set x", "true", False) is True
    assert parse_model_field("--set x", "none", 3) is None
    assert parse_model_field("--set x", "anything", None) == "anything"
    assert parse_model_field("--set x", "resnet", "basic") == "resnet"
    assert parse_model_field("--set x", "(1, 2)", (3,)) == (1, 2)
    assert parse_model_field("--set x", "none", (3,)) == (None,)  # checked by the model
    for text, current in (("1", True), ("2.5", 1), ("3", "basic"), ("true", 1)):
        with pytest.raises(ValueError, match=rf"--set x '{text}'.*{type(current).__name__}"):
            parse_model_field("--set x", text, current)


def test_messages_about_fields_name_the_options_that_set_them():
    settings = [
        Setting("--learning-rate", "recipe.learning_rate", "-1"), Setting("--batch-size", "recipe.batch_size", "32"),
        parse_assignment("momentum=1.5"), Setting("--set widths", "widths", "3"),
    ]  # fmt: skip
    cases = {
        "recipe field learning_rate=-1.0: must be positive": "--learning-rate -1: must be positive",
        "recipe field momentum=1.5: must be in [0, 1)": "--set momentum=1.5: must be in [0, 1)",
        "recipe field micro_batch=7: must divide batch_size=32": (
            "recipe field micro_batch=7: must divide --batch-size 32"
        ),
        "recipe field epochs=0.0: must be positive": "recipe field epochs=0.0: must be positive",
    }
    for message, expected in cases.items():
        assert in_terms_of_options(message, settings) == expected
