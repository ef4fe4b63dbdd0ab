"""Functions of zoo.models: creating, initialising, naming and re-running models."""

import re
from typing import get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import SMALL

import zoo.models as models
from zoo.models import MODELS, create


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("lenet5", "dropout", 0),
        ("lenet5", "dropout", 0.99),
        ("resnet20", "stochastic_depth", 0.0),
        ("lenet5", "num_classes", 1),
        ("lenet5", "num_classes", None),
        ("resnet20", "width", 1),
        ("resnet20", "epsilon", 1),
        ("mlp", "image_width", 0),
        ("highway", "layers", 0),
        ("inception_v4", "blocks", (0, 9, 0)),
        ("highway", "gate_bias", -3.5),
        ("resnet20", "squeeze", 4),
        ("resnet_rs50", "squeeze", None),
        ("se_resnet50", "squeeze", None),
        ("mlp", "widths", ()),
    ],
)
def test_suitable_field_values(name, field, value):
    assert getattr(create(name, **{field: value}), field) == value


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("lenet5", "dropout", 1),
        ("lenet5", "dropout", -0.01),
        ("lenet5", "dropout", True),
        ("lenet5", "dropout", "0.5"),
        ("googlenet", "aux_dropout", 1.0),
        ("resnet20", "stochastic_depth", 1.0),
        ("lenet5", "num_classes", 0),
        ("lenet5", "num_classes", 2.0),
        ("lenet5", "num_classes", True),
        ("resnet20", "width", -1),
        ("resnet20", "width", 0),
        ("resnet50_small", "groups", 0),
        ("googlenet", "width", 0),
        ("resnet20", "epsilon", -1e-3),
        ("resnet20", "width", 8.0),
        ("resnet20", "width", True),
        ("resnet20", "epsilon", float("nan")),
        ("resnet20", "epsilon", float("inf")),
        ("resnet20", "bottleneck", 1),
        ("resnet20", "squeeze", "4"),
        ("resnet20", "squeeze", 0),
        ("se_resnet50", "squeeze", 0),
        ("resnet20", "stem", 3),
        ("mlp", "widths", 16),
        ("mlp", "widths", (16, -1)),
        ("mlp", "widths", (16, 0)),
        ("xception", "blocks", ()),
        ("googlenet", "blocks", (2, 5)),
        ("inception_v4", "blocks", (4, 7, 3, 1)),
        ("mlp", "widths", (16, 8.0)),
    ],
)
def test_unsuitable_field_values_raise(name, field, value):
    with pytest.raises(ValueError, match=name) as caught:
        create(name, **{field: value})
    assert f"{field}={value!r}" in str(caught.value)


def test_every_class_has_a_small_network():
    assert {type(create(name)) for name in SMALL} == {type(build()) for build in MODELS.values()}


def limits(kind, default):
    """Return values of a field at and beyond the limits of its type."""
    if get_origin(kind) is tuple:
        return [(), *((number,) * len(default) for number in (-1, 0, 1)), default[:-1], (*default, 1)]
    return [-1, 0, 1] if kind in (int, float, int | None) else []


#: Tracing the other networks takes longer.
QUICK = (
    "mlp", "highway", "highway_conv", "lenet1", "lenet4", "lenet5", "alexnet_small", "alexnet_owt_small", "airbench",
    "resnet9", "resnet20", "resnet50_v2_small", "bit_r50x1", "wide_resnet16_8",
)  # fmt: skip


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SMALL])
def test_every_field_value_gives_a_network_or_one_line(name):
    small = create(name, **SMALL[name])
    for field, default in models.defining_fields(small).items():
        for value in limits(small.__dataclass_fields__[field].type, default):
            try:
                models.abstract_variables(create(name, **SMALL[name] | {field: value}))
            except ValueError as error:
                assert "\n" not in str(error), (field, value)


def unsuitable(field, kind, default):
    """Return values that no field of this name and type takes."""
    lowest = 0 if field in ("layers", "blocks", "image_width") else 1
    if kind in (int, int | None):
        return [lowest - 1]
    if get_origin(kind) is tuple:
        lengths = [] if get_args(kind)[-1] is Ellipsis else [default[:-1], (*default, 1)]
        return [(*default[:-1], lowest - 1), *lengths]
    return [0, -1.0] if field == "width" else []


@pytest.mark.parametrize("name", SMALL)
def test_counts_below_the_lowest_and_tuples_of_another_length_are_refused(name):
    small = create(name, **SMALL[name])
    for field, default in models.defining_fields(small).items():
        for value in unsuitable(field, small.__dataclass_fields__[field].type, default):
            with pytest.raises(ValueError, match=re.escape(f"{name}: {field}={value!r} is not a ")):
                create(name, **{field: value})


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn", "inception_v2", "inception_v3"])
def test_more_blocks_than_the_published_network_has_are_refused(name):
    """They would have no effect, but the card would state them."""
    most = create(name).blocks
    for i in range(3):
        more = tuple(count + (i == j) for j, count in enumerate(most))
        model = create(name, blocks=more)
        for use in (lambda model=model: model.stages, lambda model=model: models.abstract_variables(model)):
            with pytest.raises(ValueError, match=re.escape(f"blocks={most}")):
                use()


@pytest.mark.parametrize(
    ("name", "fields", "answer"),
    [("resnet50d", {"width": 1}, "width=2"), ("resnet50d", {"width": 2, "stem": "tiered"}, "width=3"),
     ("resnet50_v2", {"width": 1, "stem": "deep"}, "width=2")],
)  # fmt: skip
def test_deep_stems_need_a_channel_in_each_convolution(name, fields, answer):
    with pytest.raises(ValueError, match=answer):
        models.abstract_variables(create(name, **fields))


def test_every_defining_field_has_a_type_that_create_checks():
    fields = [(model, model.__dataclass_fields__[name]) for model in (b() for b in MODELS.values())
              for name in models.defining_fields(model)]  # fmt: skip
    for model, field in fields:
        assert field.type in (bool, int, float, str, int | None) or get_origin(field.type) is tuple, (model, field.name)


def test_lists_become_tuples():
    """JSON has no tuples, and a model must be hashable."""
    model = create("mlp", widths=[3, 2])
    assert model.widths == (3, 2) and hash(model) == hash(create("mlp", widths=(3, 2)))


def test_unknown_names_without_a_similar_one():
    with pytest.raises(ValueError, match="zoo list"):
        create("zzzzzz")
    with pytest.raises(ValueError, match=r"widths, activation"):
        create("mlp", zzzzzz=1)


def test_init_takes_a_seed_or_a_key_and_an_image_shape():
    model = create("mlp", widths=(4,), image_size=3)
    seeded, keyed = models.init(model, 7), models.init(model, jax.random.key(7))
    assert set(seeded) == {"params", "batch_stats"} and seeded["batch_stats"] == {}
    jax.tree.map(np.testing.assert_array_equal, seeded, keyed)
    assert not np.array_equal(
        seeded["params"]["hidden1"]["kernel"], models.init(model, 8)["params"]["hidden1"]["kernel"]
    )
    assert models.init(model, 7, [3, 3, 2])["params"]["hidden1"]["kernel"].shape == (18, 4)
    inside_jit = jax.jit(lambda: models.init(model, 7))()
    jax.tree.map(np.testing.assert_array_equal, seeded, inside_jit)
    assert jax.vmap(lambda key: models.init(model, key))(jax.random.split(jax.random.key(0), 2))["params"]


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_init_refuses_seeds_that_would_give_the_network_of_another_one(seed):
    with pytest.raises(ValueError, match=rf"init: key={seed} must be from 0 to {2**32 - 1}"):
        models.init(create("softmax", image_size=1), seed)


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg"])
def test_init_takes_raw_keys_of_the_default_generator(generator):
    with jax.default_prng_impl(generator):
        model, key = create("mlp", widths=(4,), image_size=3), jax.random.PRNGKey(7)
        assert models.init(model, key)["params"]
        for wrong in (key[None], key[:1], np.zeros(key.shape, np.float32)):
            with pytest.raises(ValueError, match="init: key is"):
                models.init(model, wrong)


def test_abstract_variables_are_those_of_init_and_may_be_changed():
    model = create("mlp", widths=(4,), image_size=3)
    abstract = models.abstract_variables(model)
    assert jax.tree.map(jnp.shape, models.init(model, 0)) == jax.tree.map(jnp.shape, abstract)
    del abstract["params"]["head"]
    assert "head" in models.abstract_variables(model)["params"]


def test_batch_statistics_are_not_parameters():
    variables = {"params": {"a": np.zeros((2, 3)), "b": {"c": np.zeros(4)}}, "batch_stats": {"mean": np.zeros(5)}}
    assert models.count_parameters(variables) == 10


def test_defining_and_runtime_fields_share_no_field_and_leave_none_out():
    model = create("resnet20", dtype=jnp.bfloat16, remat=True)
    defining, runtime = models.defining_fields(model), models.runtime_fields(model)
    assert runtime == {"axis_name": None, "dtype": jnp.bfloat16, "remat": True}
    assert defining["blocks"] == (3, 3, 3) and not defining.keys() & {*runtime, "parent", "name"}
    assert models.runtime_fields(create("lenet5")) == {"dtype": jnp.float32}


@pytest.mark.parametrize("name", MODELS)
def test_names_are_recovered_from_fields(name):
    named = models.name_of(create(name))
    assert models.defining_fields(create(named)) == models.defining_fields(create(name))


def test_cards_leave_out_added_fields_that_have_the_value_of_the_entry():
    """Cards from before these fields stay the same to the byte, and every card rebuilds its model."""
    old = {"blocks", "bottleneck", "width", "widen", "groups", "squeeze", "stem", "shortcut", "stride_in",
           "stochastic_depth", "zero_init", "epsilon", "num_classes"}  # fmt: skip
    assert set(models.card_fields("resnet20", create("resnet20"))) == old
    changed = [
        ("resnet50_gn", {}),
        ("resnet50_gn", {"norm": "batch"}),
        ("resnet50", {"norm": "group"}),
        ("eca_resnet50d", {"eca": False, "squeeze": 16}),
        ("resnet200_v2", {"stem_norm": False}),
    ]
    for name, fields in changed:
        model = create(name, **fields)
        stated = models.card_fields(name, model)
        assert set(stated) & set(model.added_fields) == set(fields) & set(model.added_fields)
        assert create(name, **stated) == model
    for name in MODELS:
        assert create(name, **models.card_fields(name, create(name))) == create(name)


def test_names_of_changed_models_are_the_nearest():
    assert models.name_of(create("resnet50d", num_classes=3)) == "resnet50d"
    with pytest.raises(ValueError, match="Dense"):
        models.name_of(nn.Dense(3))


def test_runtime_fields_that_a_model_lacks_are_ignored():
    model = models.with_runtime(create("lenet5"), dtype=jnp.bfloat16, remat=True, axis_name="batch")
    assert model == create("lenet5", dtype=jnp.bfloat16)
    assert models.with_runtime(create("resnet20"), axis_name="batch").axis_name == "batch"


FAMILIES = sorted(name for name in MODELS if f"{name}_small" in MODELS and "next" not in name and "wide" not in name)


@pytest.mark.parametrize("name", FAMILIES)
def test_unknown_stems_raise(name):
    with pytest.raises(ValueError, match="'tiny'") as caught:
        models.abstract_variables(create(name, stem="tiny"))
    classes = {"_v2": "ResNetV2", "bit": "BiT", "resnet": "ResNet"}
    label = name if "inception" in name else next((classes[part] for part in classes if part in name), name)
    assert str(caught.value).startswith((f"{label} has ", f"{label}'s ")) and "small" in str(caught.value)


FIXED_SIZE = [name for name in MODELS if "image_size" in models.defining_fields(create(name))]


@pytest.mark.parametrize("name", [*FIXED_SIZE, "lenet5_1998"])
def test_models_with_a_fixed_size_refuse_all_others(name):
    model = create(name)
    height, width, channels = model.input_shape
    for shape in [(height + 1, width, channels), (height, width + 1, channels)]:
        with pytest.raises(ValueError, match=f"{height}x{width}"):
            models.abstract_variables(model, shape)
    if name != "lenet5_1998":
        assert create(name, image_size=height + 1).input_shape == (height + 1, width + 1, channels)


@pytest.mark.parametrize("name", [*FIXED_SIZE, "lenet5_1998"])
def test_the_error_for_another_size_names_fields_that_the_model_has(name):
    height, width, channels = create(name).input_shape
    for shape in [(height + 8, width + 8, channels), (height + 8, width, channels)]:
        with pytest.raises(ValueError, match="resize the images") as caught:
            models.abstract_variables(create(name), shape)
        fields = {field: int(side) for field, side in re.findall(r"(image_\w+)=(\d+)", str(caught.value))}
        assert bool(fields) == (name != "lenet5_1998" and (shape[0] == shape[1] or type(create(name)) is models.MLP))
        if fields:
            assert create(name, **fields).input_shape == shape
