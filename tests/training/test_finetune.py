"""Fine-tuning: heads by class name, channels, freezing, rates by stage, and the same bits after a kill."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_plan, run_bits, train

import zoo
from zoo import checkpoint, loading, models
from zoo.checkpoint import Card
from zoo.data.images.measure import adapt_preprocess, preprocess_for
from zoo.data.images.preprocess import Preprocess, images_to_input
from zoo.data.sources import from_arrays
from zoo.inference.evaluate import make_eval_step
from zoo.training import finetune, loop, run
from zoo.training.finetune import InitCheckpoint
from zoo.training.optim import make_optimizer
from zoo.training.recipe import Recipe
from zoo.training.recipes import find_recipe
from zoo.training.step import TrainState, make_train_step, reset_optimizer
from zoo.training.timeline import Span, build_timeline
from zoo.trees import flatten

#: Small networks: dense, convolutions with and without batch norm, auxiliary heads, dropout.
SMALL = {
    "mlp": ({"widths": (12, 9), "image_size": 16}, 16),
    "lenet5": ({"image_size": 16}, 16),
    "resnet20": ({"blocks": (1, 1), "width": 8}, 16),
    "googlenet_bn_small": ({"width": 0.125, "blocks": (1, 1, 1)}, 16),
    "highway_conv": ({"layers": 3, "width": 4, "image_size": 16}, 16),
}
OLD, NEW = ("cat", "dog", "emu"), ("ape", "emu", "cat", "fox")
KEY = jax.random.key(0)
PLAIN = Recipe(optimizer="momentum", learning_rate=0.1, schedule="constant", batch_size=8)


def preprocess_of(side, channels="RGB"):
    count = len(channels)
    return Preprocess(
        size=(side, side), resize=(side, side), channels=channels, mean=(0.5,) * count, std=(0.25,) * count
    )


def variables_of(model, shape=(16, 16, 3), seed=0):
    """Return random variables, with statistics unlike those of a fresh network, without compiling anything."""
    rng = np.random.default_rng(seed)

    def leaf(path, like):
        if len(like.shape) > 1:
            return rng.normal(0, 1 / np.sqrt(np.prod(like.shape[:-1])), like.shape).astype(np.float32)
        return rng.uniform(0.5, 2.5, like.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, models.abstract_variables(model, shape))


def start_of(name, classes=OLD, channels="RGB", seed=3, **changes):
    fields, side = SMALL[name]
    model = models.create(name, **{**fields, **changes}, num_classes=len(classes))
    variables = variables_of(model, (side, side, len(channels)), seed)
    about = {"licence": "BSD-2-Clause", "source": "made for tests"}
    card = Card(name, models.defining_fields(model), classes, preprocess_of(side, channels), **about)
    return InitCheckpoint(name, card, variables)


def model_of(start, classes=None):
    fields = {**start.card.fields, "num_classes": len(classes or start.card.classes)}
    return models.create(start.card.model, **fields)


def answer(model, variables, images):
    forward = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})
    return np.asarray(forward(variables, images)[0])


def batch_of(side, count=8, channels=3, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (count, side, side, channels)).astype(np.uint8),
        "label": rng.integers(0, classes, count).astype(np.int32),
        "weight": np.ones(count, np.float32),
    }


# --- from the checkpoint ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_heads_keep_the_rows_of_shared_class_names(name):
    start = start_of(name)
    model = model_of(start, NEW)
    fresh = variables_of(model)
    merged = flatten(start.variables_for(model, start.card.preprocess, NEW, fresh))
    saved, fresh = flatten(start.variables), flatten(fresh)
    heads = [path for path in merged if merged[path].shape != saved[path].shape]
    assert {"params/head/kernel", "params/head/bias"} <= set(heads)
    assert len({path.split("/")[1] for path in heads}) == (2 if "googlenet" in name else 1)  # an auxiliary one too
    for path in heads:
        for i, label in enumerate(NEW):
            origin = saved[path][..., OLD.index(label)] if label in OLD else fresh[path][..., i]
            assert np.array_equal(merged[path][..., i], origin), (path, label)
    assert all(np.array_equal(merged[path], saved[path]) for path in merged.keys() - heads)
    report = " ".join(start.describe(model, start.card.preprocess, NEW))
    assert "2 of 4 classes: ape, fox" in report and "rows kept for emu, cat" in report


def test_classes_in_another_order_keep_the_head():
    start = start_of("lenet5")
    order = ("emu", "cat", "dog")
    model = model_of(start)
    merged = start.variables_for(model, start.card.preprocess, order, variables_of(model))
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    before, after = (answer(model, v, images) for v in (start.variables, merged))
    np.testing.assert_array_equal(after, before[:, [2, 0, 1]])
    assert not start.needs_new_rows(order) and start.needs_new_rows(NEW)


def test_a_subset_of_the_classes_needs_no_new_rows():
    """The rows of the other classes are dropped, so that no head is trained alone."""
    start, few = start_of("lenet5"), ("emu", "cat")
    assert not start.needs_new_rows(few) and start.needs_new_rows((*OLD, "fox"))
    model = model_of(start, few)
    merged = start.variables_for(model, start.card.preprocess, few, variables_of(model))
    for leaf in ("kernel", "bias"):
        saved = np.asarray(start.variables["params"]["head"][leaf])
        assert np.array_equal(merged["params"]["head"][leaf], saved[..., [2, 0]])
    (line,) = start.describe(model, start.card.preprocess, few)
    assert line.startswith("init: lenet5 (lenet5, 3 classes); head kept matched by class name, 1 class dropped")
    (line,) = start.describe(model_of(start), start.card.preprocess, OLD)
    assert line == "init: lenet5 (lenet5, 3 classes); head kept"
    lines = start.describe(model_of(start, NEW), start.preprocess(channels="L"), NEW)
    assert lines[-1].endswith("first layer adapted from RGB to L") and len(lines) == 3
    classes = tuple(f"class {n}" for n in range(12))
    (line,) = start.describe(model_of(start, classes), start.card.preprocess, classes)
    assert line.endswith("new head rows for 12 of 12 classes: " + ", ".join(classes[:10]) + " and 2 more")


@pytest.mark.parametrize(
    ("old", "new", "mean", "std"),
    [
        ("RGB", "L", (0.4,), (0.25,)),
        ("RGB", "BGR", (0.7, 0.3, 0.2), (0.3, 0.25, 0.2)),
        ("L", "RGB", (0.2,) * 3, (0.2,) * 3),
        ("RGB", "", (0.2, 0.3, 0.7), (0.2, 0.25, 0.3)),
    ],
)
def test_mean_and_std_of_other_channels(old, new, mean, std):
    count = len(old)
    preprocess = Preprocess(
        (16, 16), (16, 16), channels=old, mean=(0.2, 0.3, 0.7)[:count], std=(0.2, 0.25, 0.3)[:count]
    )
    card = dataclasses.replace(start_of("mlp").card, preprocess=preprocess)
    adapted = InitCheckpoint("x", card, {}).preprocess(channels=new)
    assert (adapted.channels, adapted.mean, adapted.std) == (new or old, mean, std)


def test_kernels_of_other_channels_undo_the_old_normalisation():
    """Grey is the sum over RGB, each times new std / old std."""
    start = start_of("resnet20")
    old = dataclasses.replace(start.card.preprocess, std=(0.2, 0.25, 0.5))
    start = dataclasses.replace(start, card=dataclasses.replace(start.card, preprocess=old))
    grey = dataclasses.replace(preprocess_of(16, "L"), std=(0.4,))
    model = model_of(start)
    merged = start.variables_for(model, grey, OLD, variables_of(model, (16, 16, 1)))
    kernel = np.asarray(start.variables["params"]["stem"]["conv"]["kernel"])
    expected = (kernel * np.array([2, 1.6, 0.8], np.float32)[:, None]).sum(2, keepdims=True)
    np.testing.assert_allclose(merged["params"]["stem"]["conv"]["kernel"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet20", "mlp"])
def test_a_model_adapted_to_other_channels_answers_alike(name):
    start = start_of(name)
    grey = start.preprocess(channels="L")
    assert (grey.channels, grey.mean, grey.std) == ("L", (0.5,), (0.25,))
    model = model_of(start)
    merged = start.variables_for(model, grey, OLD, variables_of(model, (16, 16, 1)))
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))
    expected = answer(model, start.variables, jnp.repeat(images, 3, axis=-1))
    np.testing.assert_allclose(answer(model, merged, images), expected, atol=1e-4)
    back = InitCheckpoint("back", Card(name, models.defining_fields(model), OLD, grey), merged)
    colour = back.variables_for(model, preprocess_of(16), OLD, variables_of(model))
    np.testing.assert_allclose(
        answer(model, colour, jnp.repeat(images, 3, axis=-1)), expected, atol=1e-4
    )  # a third of the sum, three times
    flipped = start.variables_for(model, preprocess_of(16, "BGR"), OLD, variables_of(model))
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    np.testing.assert_allclose(
        answer(model, flipped, images[..., ::-1]), answer(model, start.variables, images), atol=1e-4
    )


def test_other_differences_are_listed():
    start = start_of("resnet20")
    other = models.create("resnet20", **{**start.card.fields, "blocks": (2, 1)})
    with pytest.raises(ValueError, match=r"--init resnet20 .*batch_stats/stage1_block2"):
        start.variables_for(other, start.card.preprocess, OLD, variables_of(other))
    headless = dataclasses.replace(start, variables={**start.variables, "params": dict(start.variables["params"])})
    del headless.variables["params"]["head"]
    merged = headless.variables_for(model_of(start), start.card.preprocess, OLD, variables_of(model_of(start)))
    assert "head" in merged["params"]


def test_another_image_size_keeps_the_proportions_of_the_crop():
    card = dataclasses.replace(start_of("mlp").card, preprocess=Preprocess(size=(224, 224), resize=(256, 256)))
    plan = InitCheckpoint("x", card, {}).preprocess(image_size=112)
    assert (plan.size, plan.resize) == ((112, 112), (128, 128))


def test_drawings_of_the_other_polarity_are_inverted():
    rng = np.random.default_rng(0)
    paper = np.full((60, 12, 12), 250, np.uint8)
    paper[:, 4:8, 4:8] = rng.integers(0, 60, (60, 4, 4))
    ink = from_arrays((paper, np.arange(60) % 3), name="ink")
    dark = dataclasses.replace(preprocess_for(ink, (12, 12)), polarity="light-on-dark", ink_extent=0.5)
    adapted = adapt_preprocess(dark, ink)
    assert (adapted.polarity, adapted.ink_extent) == ("light-on-dark", 0.3333)
    for split in ink.splits.values():
        images = split.read(np.arange(len(split)))
        assert np.array_equal(images_to_input(images, adapted), 255 - images)


# --- stages and parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["lenet5_1998", "googlenet_small", "xception_small", "resnet50_v2_small", "highway",
     *(pytest.param(name, marks=pytest.mark.slow) for name in ("alexnet_small", "inception_v3_small",
       "inception_v4_small", "inception_resnet_v2_small", "resnet50d_small", "wide_resnet16_8"))],
)  # fmt: skip
def test_every_part_belongs_to_a_stage_and_every_stage_has_parts(name):
    model = models.create(name)
    params = models.abstract_variables(model)["params"]
    outside = [part for part in params if not any(part.startswith(stage) for stage in model.stages)]
    assert all(part.startswith("aux") for part in outside), outside
    stages = {finetune.stage_of(model, part) for part in params}
    assert stages == set(model.stages) - ({"head"} if name == "lenet5_1998" else set())


def test_parts_are_named_by_stage_body_or_pattern():
    model = models.create("resnet20", **SMALL["resnet20"][0])
    paths = finetune.paths_of(models.abstract_variables(model))
    select = lambda *names: {path.rsplit("/", 1)[0] for path in finetune.select_paths(model, paths, names)}  # noqa: E731
    assert select("stem") == {"stem/conv", "stem/norm"}
    assert select("body") | {"head"} == {path.rsplit("/", 1)[0] for path in paths} and "head" not in select("body")
    assert select("stage1", "stage2_block1/conv2") >= {"stage1_block1/conv1/conv", "stage2_block1/conv2/norm"}
    assert "stage2_block1/conv1/conv" not in select("stage1", "stage2_block1/conv2")
    assert all(part.endswith("norm") for part in select(".*/(mean|var)"))
    with pytest.raises(ValueError, match=r"freeze 'satge1' .*did you mean stage1"):
        finetune.select_paths(model, paths, ("satge1",))
    with pytest.raises(ValueError, match=r"freeze 'stage3' .*stem, stage1, stage2, head"):
        select("stage3")


ALL, BODY, STEM = frozenset(), "body", "stem"


@pytest.mark.parametrize(
    ("fields", "new_head", "expected"),
    [
        ({}, True, [(0, 50, ())]),
        ({"head_epochs": 1}, True, [(0, 10, (BODY,)), (10, 50, ())]),
        ({"head_epochs": 1}, False, [(0, 50, ())]),
        ({"head_epochs": 9}, True, [(0, 50, (BODY,))]),
        ({"head_epochs": 5}, True, [(0, 50, (BODY,))]),
        ({"head_epochs": 4.9}, True, [(0, 49, (BODY,)), (49, 50, ())]),
        ({"head_epochs": 0.04}, True, [(0, 50, ())]),  # rounds to no step
        ({"head_epochs": 0.06}, True, [(0, 1, (BODY,)), (1, 50, ())]),
        ({"freeze": (STEM,), "unfreeze_at": 9}, False, [(0, 50, (STEM,))]),
        ({"freeze": (STEM,), "unfreeze_at": 5}, False, [(0, 50, (STEM,))]),
        ({"freeze": (STEM,), "unfreeze_at": 4.9}, False, [(0, 49, (STEM,)), (49, 50, ())]),
        ({"freeze": (STEM,), "head_epochs": 2, "unfreeze_at": 2}, True, [(0, 20, (BODY,)), (20, 50, ())]),
        ({"freeze": (STEM,), "head_epochs": 2, "unfreeze_at": 1}, True, [(0, 20, (BODY,)), (20, 50, ())]),
        ({"freeze": (STEM,)}, False, [(0, 50, (STEM,))]),
        ({"freeze": (STEM,), "unfreeze_at": 2.5}, False, [(0, 25, (STEM,)), (25, 50, ())]),
        ({"freeze": (STEM,), "head_epochs": 1}, True, [(0, 10, (BODY,)), (10, 50, (STEM,))]),
        ({"freeze": (STEM,), "head_epochs": 1, "unfreeze_at": 3}, True,
         [(0, 10, (BODY,)), (10, 30, (STEM,)), (30, 50, ())]),
        ({"freeze": ("body",), "head_epochs": 1, "unfreeze_at": 3}, True, [(0, 30, (BODY,)), (30, 50, ())]),
    ],
)  # fmt: skip
def test_frozen_spans(fields, new_head, expected):
    model = models.create("resnet20", **SMALL["resnet20"][0])
    abstract = models.abstract_variables(model)
    spans = finetune.frozen_spans(dataclasses.replace(PLAIN, epochs=5, **fields), model, abstract, 50, 10, new_head)
    select = lambda names: finetune.select_paths(model, finetune.paths_of(abstract), names)  # noqa: E731
    assert spans == tuple(Span(start, stop, select(names)) for start, stop, names in expected)


def test_some_parameters_must_be_left_to_train():
    model = models.create("resnet20", **SMALL["resnet20"][0])
    with pytest.raises(ValueError, match=r"freeze head: .* from step 0"):
        recipe = dataclasses.replace(PLAIN, freeze=("head",), head_epochs=1)
        finetune.frozen_spans(recipe, model, models.abstract_variables(model), 50, 10, new_head=True)


def test_a_model_without_head_parameters_is_trained_whole():
    model = models.create("lenet5_1998")
    recipe = dataclasses.replace(PLAIN, epochs=5, head_epochs=1)
    spans = finetune.frozen_spans(recipe, model, models.abstract_variables(model), 50, 10, new_head=True)
    assert spans == (Span(0, 50, frozenset()),)


@pytest.mark.parametrize(
    ("fields", "factors"),
    [
        ({}, (1, 1, 1, 1)),
        ({"layer_decay": 0.5}, (0.125, 0.25, 0.5, 1)),
        ({"head_lr": 0.3}, (1, 1, 1, 3)),
        ({"layer_decay": 0.5, "head_lr": 0.01}, (0.125, 0.25, 0.5, 0.1)),
    ],
)
def test_learning_rate_multipliers(fields, factors):
    """layer_decay per stage before the head; head_lr is absolute, and also of auxiliary heads."""
    for name in ("resnet20", "googlenet_bn_small"):
        model = models.create(name, **SMALL[name][0])
        params = models.abstract_variables(model)["params"]
        multipliers = finetune.learning_rate_multipliers(dataclasses.replace(PLAIN, **fields), model, params)
        assert set(multipliers) == set(flatten(params))
        if name == "resnet20":
            stages = ("stem/conv", "stage1_block1/conv1/conv", "stage2_block1/conv1/conv", "head")
            assert [multipliers[f"{stage}/kernel"] for stage in stages] == pytest.approx(factors)
        else:
            aux = [factor for path, factor in multipliers.items() if path.startswith("aux")]
            assert aux and set(aux) == {multipliers["head/kernel"]}


def test_trainable_and_frozen_parameters_are_combined_again():
    params = {"a": {"kernel": 1, "bias": 2}, "b": {"kernel": 3}}
    frozen = frozenset({"a/bias", "b/kernel", "c/mean"})
    trainable = finetune.partition(params, frozen)
    assert trainable == {"a": {"kernel": 1}} and finetune.combine(params, trainable) == params
    assert finetune.combine(params, {"a": {"kernel": 5}}) == {"a": {"kernel": 5, "bias": 2}, "b": {"kernel": 3}}
    assert finetune.partition(params, frozenset()) == params


def test_a_path_belongs_to_the_longest_matching_stage():
    model = SimpleNamespace(stages=("stem", "stage1", "stage10", "head"))
    paths = ("stem/conv", "stage1_block1/conv", "stage10_block1/conv", "aux1/conv", "head/kernel", "other")
    assert [finetune.stage_of(model, path) for path in paths] == ["stem", "stage1", "stage10", "head", "head", "head"]


def test_segments_are_described_by_what_they_train():
    model = models.create("resnet20", **SMALL["resnet20"][0])
    abstract = models.abstract_variables(model)
    recipe = dataclasses.replace(PLAIN, epochs=5, head_epochs=1, freeze=("stem",), unfreeze_at=3)
    spans = finetune.frozen_spans(recipe, model, abstract, 50, 10, new_head=True)
    preprocess = Span(0, 50, preprocess_of(16))
    segments = build_timeline(spans, [preprocess], lambda preprocess: None)
    params = flatten(abstract["params"])
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in params.items()}
    lines = finetune.describe_frozen(segments, model, abstract["params"], 10)
    head = sum(size for path, size in sizes.items() if path.startswith("head"))
    stem = sum(size for path, size in sizes.items() if path.startswith("stem"))
    total = sum(sizes.values())
    assert lines == [
        f"epochs 0 to 1: training {head:,} parameters (head)",
        f"epochs 1 to 3: training {total - stem:,} parameters (stage1, stage2, head)",
        f"epochs 3 to 5: training {total:,} parameters (all)",
    ]
    unfrozen = build_timeline([Span(0, 50, frozenset())], [preprocess], lambda preprocess: None)
    assert finetune.describe_frozen(unfrozen, model, abstract["params"], 10) == []


# --- the default recipe and the identity of the checkpoint -----------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "polarity", "name"),
    [(64, None, "fine-tune-small"), (65, None, "fine-tune"), (224, None, "fine-tune"),
     (28, "light-on-dark", "fine-tune-drawings"), (224, "dark-on-light", "fine-tune-drawings")],
)  # fmt: skip
def test_the_default_recipe_of_a_fine_tuning(side, polarity, name):
    """Photographs of up to 64 pixels are shifted, larger ones cropped; drawings are not mirrored."""
    card = start_of("mlp").card
    card = dataclasses.replace(card, preprocess=dataclasses.replace(preprocess_of(side), polarity=polarity))
    init = InitCheckpoint("x", card, {})
    assert finetune.resolve_recipe(None, init, "mlp", "x") == find_recipe(name)
    assert finetune.resolve_recipe("mnist", init, "mlp", "x") == find_recipe("mnist")
    assert finetune.resolve_recipe(None, None, "lenet5", "tfds:mnist") == find_recipe("mnist")


def test_the_digest_covers_what_training_uses():
    start = start_of("lenet5")
    same = [
        dataclasses.replace(start, spec="another name"),
        dataclasses.replace(start, card=dataclasses.replace(start.card, licence="MIT", source="", metrics={"step": 3})),
    ]
    variables = jax.tree.map(np.copy, start.variables)
    variables["params"]["head"]["bias"][0] += 1e-6
    other = [
        dataclasses.replace(start, card=dataclasses.replace(start.card, classes=("cat", "dog", "fox"))),
        dataclasses.replace(start, card=dataclasses.replace(start.card, preprocess=preprocess_of(16, "BGR"))),
        dataclasses.replace(start, card=dataclasses.replace(start.card, fields={**start.card.fields, "dropout": 0.5})),
        dataclasses.replace(start, variables=variables),
    ]
    assert {init.digest() for init in same} == {start.digest()}
    assert len({init.digest() for init in other} | {start.digest()}) == 5


def test_the_origin_of_a_checkpoint():
    start = start_of("mlp")
    assert start.origin == "mlp (made for tests)"
    assert dataclasses.replace(start, card=dataclasses.replace(start.card, source="")).origin == "mlp"


# --- the step ---------------------------------------------------------------------------------------------------------


@functools.cache
def compile_train_step(name, freeze, **changes):
    """Return (state before, compiled step, frozen paths) of a small network that starts from `start_of(name)`."""
    start, recipe = start_of(name), dataclasses.replace(PLAIN, freeze=freeze, **changes)
    model, side = model_of(start), SMALL[name][1]
    abstract = models.abstract_variables(model, (side, side, 3))
    frozen = finetune.select_paths(model, finetune.paths_of(abstract), freeze)
    optimizer, _ = make_optimizer(recipe, 10, 5, finetune.learning_rate_multipliers(recipe, model, abstract["params"]))
    variables = jax.tree.map(jnp.asarray, start.variables)
    state = TrainState(jnp.int32(0), variables, (), variables if recipe.ema else None, jax.random.key_data(KEY))
    state = reset_optimizer(state, optimizer, frozen)
    step = jax.jit(
        make_train_step(model, recipe, preprocess_of(side), optimizer, frozen=frozen),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return state, step.lower(state, batch_of(side)).compile(), frozen


def one_step(name, freeze=(), count=1, **changes):
    """Return (state before, state after, metrics, frozen paths) of `count` steps."""
    before, step, frozen = compile_train_step(name, freeze, **changes)
    state = before
    for _ in range(count):
        state, report = step(state, batch_of(SMALL[name][1]))
    return jax.device_get(before), jax.device_get(state), jax.device_get(report), frozen


FREEZING = [
    ("mlp", ("hidden1",)),
    ("resnet20", ("stem",)),
    *(
        pytest.param(name, freeze, marks=pytest.mark.slow)
        for name, freeze in (
            ("lenet5", ("conv1",)),
            ("lenet5", ("dense1",)),
            ("resnet20", ("stage2",)),
            ("lenet5", ("head",)),
            ("resnet20", ("stage1",)),
            ("resnet20", ("head",)),
            ("resnet20", (".*/norm",)),
            ("googlenet_bn_small", ("inception4a",)),
            ("highway_conv", ("layer2",)),
        )
    ),
]


@pytest.mark.parametrize(("name", "freeze"), FREEZING)
def test_frozen_variables_keep_their_bits_and_the_others_learn(name, freeze):
    """Also with weight decay, momentum, a moving average and micro-batches."""
    before, after, _, frozen = one_step(name, freeze, count=2, weight_decay=0.1, ema=0.5, micro_batch=4)
    for tree in ("variables", "ema"):
        old, new = (flatten(getattr(state, tree)) for state in (before, after))
        for path in old:
            kept = np.array_equal(old[path], new[path])
            assert kept == (path.split("/", 1)[1] in frozen), path
    traced = {path.split("/trace/")[1] for path in map(_path, jax.tree_util.tree_leaves_with_path(after.opt_state))
              if "/trace/" in path}  # fmt: skip
    assert traced == {path.removeprefix("params/") for path in flatten(before.variables)
                      if path.startswith("params/")} - frozen  # fmt: skip


def _path(entry):
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in entry[0])


def test_frozen_parts_need_no_gradient():
    """By the operations of the compiled step: the head alone needs the forward pass and its own small gradient."""
    work = []
    for freeze in ((), ("stem", "stage1"), ("body",)):
        state, step, _ = compile_train_step("resnet20", freeze)
        cost = step.cost_analysis()
        work.append(((cost[0] if isinstance(cost, list) else cost)["flops"], len(jax.tree.leaves(state.opt_state))))
    whole, half, head = work
    assert head[0] < 0.45 * whole[0] and head[0] < half[0] < 0.8 * whole[0]
    assert head[1] == 2 + 1 < half[1] < whole[1]  # the momentum of kernel and bias, a count


def test_a_frozen_batch_norm_normalises_with_its_stored_statistics():
    """Its outputs in training are then those of evaluation."""
    start = start_of("resnet20")
    batch = batch_of(16)
    sums, _ = make_eval_step(model_of(start), preprocess_of(16))(start.variables, batch)
    _, _, frozen, _ = one_step("resnet20", ("body",))
    _, _, statistics, _ = one_step("resnet20", (".*/(mean|var)",))
    _, _, unfrozen, _ = one_step("resnet20")
    stored = float(sums["loss"]) / 8
    assert float(frozen["loss"]) == pytest.approx(stored, rel=1e-5)
    assert float(statistics["loss"]) == pytest.approx(stored, rel=1e-5)
    assert abs(float(unfrozen["loss"]) - stored) > 0.01


def test_each_stage_learns_at_its_own_rate():
    """One step down the gradient: the change of each parameter, against that without rates."""
    even, rated = (one_step("resnet20", count=1, **fields) for fields in ({}, {"layer_decay": 0.5, "head_lr": 0.3}))
    expected = {"stem": 0.125, "stage1_block1": 0.25, "stage2_block1": 0.5, "head": 3.0}
    for path in flatten(even[0].variables["params"]):
        changes = [
            flatten(after.variables["params"])[path] - flatten(before.variables["params"])[path]
            for before, after, _, _ in (even, rated)
        ]
        factor = expected[path.split("/")[0]]
        np.testing.assert_allclose(changes[1], factor * changes[0], rtol=1e-3, atol=1e-6)


def test_clipping_uses_the_norm_of_trained_parameters():
    _, _, report, frozen = one_step("mlp", ("hidden1",), clip_norm=0.01, learning_rate=1.0)
    assert float(report["update"]) == pytest.approx(0.01, rel=1e-4) and frozen


def test_micro_batches_of_a_fine_tuning_give_the_update_of_the_batch():
    """Eight images in micro-batches of three, three and two."""
    (_, whole, said, _), (_, pieces, says, _) = (
        one_step("mlp", ("hidden1",), batch_size=0, micro_batch=micro, l2=0.01) for micro in (0, 3)
    )
    for a, b in zip(jax.tree.leaves(whole.variables), jax.tree.leaves(pieces.variables), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    assert int(says["examples"]) == 8 and float(says["objective"]) == pytest.approx(float(said["objective"]), rel=1e-5)


# --- whole runs -------------------------------------------------------------------------------------------------------


def coloured(classes, count=90, seed=0):
    """Return squares in the colour of their class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), count)
    colours = np.random.default_rng(7).integers(30, 225, (8, 3))
    images = np.clip(colours[labels][:, None, None] + rng.normal(0, 20, (count, 16, 16, 3)), 0, 255).astype(np.uint8)
    return from_arrays((images, labels), class_names=classes, name="coloured")


TINY = {"blocks": (1,), "width": 4}


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory):
    start = start_of("resnet20", **TINY)
    folder = tmp_path_factory.mktemp("start") / "ckpt"
    checkpoint.save_checkpoint(folder, start.card, start.variables)
    return folder


TUNE = Recipe(
    epochs=3, batch_size=16, min_epoch_steps=6, head_epochs=1, freeze=("stem",), unfreeze_at=2, layer_decay=0.8,
    ema=0.9, learning_rate=0.01, monitor="loss",
)  # fmt: skip


def tune(folder, workdir, recipe=TUNE, **options):
    options = {"save_steps": 4, "quiet": True, **options}
    return train(None, coloured(NEW), recipe, init=loading.open_init(folder), workdir=workdir, **options)


@pytest.fixture(scope="module")
def tuned(checkpoint_folder, tmp_path_factory):
    return tune(checkpoint_folder, tmp_path_factory.mktemp("runs") / "alone")


def test_a_fine_tuned_model_inherits_from_the_card(tuned, checkpoint_folder):
    card = checkpoint.read_card(checkpoint_folder)
    network = models.create(card.model, **{**card.fields, "num_classes": 4})
    assert (tuned.card.model, tuned.card.preprocess) == (card.model, card.preprocess)
    assert models.create(card.model, **tuned.card.fields) == network and tuned.card.classes == NEW
    assert tuned.card.recipe["freeze"] == ["stem"] and tuned.card.recipe["head_epochs"] == 1
    assert tuned.card.licence == "BSD-2-Clause" and tuned.card.source.endswith(f"{checkpoint_folder} (made for tests)")
    config = run.read_config(tuned.workdir)
    assert config.init == str(checkpoint_folder) and len(config.init_digest) == 64
    assert [row["step"] for row in tuned.history] == [6, 12, 18]  # min_epoch_steps: six steps, not five


@pytest.mark.parametrize("deaths", [(6, 13), pytest.param((4, 5, 7, 12, 17), marks=pytest.mark.slow)])
def test_killed_around_the_segments_and_resumed(tmp_path, monkeypatch, tuned, checkpoint_folder, deaths):
    """The state of each segment is restored with its own structure, and what begins at a boundary begins the same."""

    class Killed(BaseException):
        pass

    settle = loop.Trainer.process_metrics
    for death in deaths:

        def settle_or_die(self, step, report, death=death):
            if step == death:
                raise Killed
            settle(self, step, report)

        with monkeypatch.context() as patch:
            patch.setattr(loop.Trainer, "process_metrics", settle_or_die)
            with pytest.raises(Killed):
                tune(checkpoint_folder, tmp_path / "run", save_steps=3)
    tune(checkpoint_folder, tmp_path / "run", save_steps=3)
    assert run_bits(tmp_path / "run") == run_bits(tuned.workdir)


@pytest.mark.slow
def test_patience_waits_for_the_last_segment(checkpoint_folder, tmp_path, monkeypatch):
    """A head that stops improving must not end the run before the body is trained."""
    monkeypatch.setattr(loop, "monitor_score", lambda result, monitor, step: [0.0])  # never better after the first
    done = tune(checkpoint_folder, tmp_path / "run", dataclasses.replace(TUNE, patience=1, monitor="accuracy"))
    steps = [row["step"] for row in done.history]
    assert steps[-1] > 6 and steps[:2] == [6, 12]


def test_patience_counts_anew_in_each_segment(checkpoint_folder, tmp_path, monkeypatch):
    """Of six evaluations without improvement only the two of the last segment count."""
    monkeypatch.setattr(loop, "monitor_score", lambda result, monitor, step: [0.0])
    recipe = dataclasses.replace(TUNE, patience=2, monitor="accuracy", eval_every_epochs=0.5)
    done = tune(checkpoint_folder, tmp_path / "run", recipe)
    assert [row["step"] for row in done.history] == [3, 6, 9, 12, 15, 18]


def test_another_checkpoint_of_the_same_name_is_another_run(tmp_path, tuned):
    other = start_of("resnet20", seed=4, **TINY)
    folder = tmp_path / "ckpt"
    checkpoint.save_checkpoint(folder, other.card, other.variables)
    with pytest.raises(ValueError, match="holds another run: it started from another checkpoint"):
        tune(folder, tuned.workdir)


def test_each_segment_starts_with_a_fresh_optimizer_and_schedule(checkpoint_folder):
    job = make_plan(None, coloured(NEW), TUNE, init=loading.open_init(checkpoint_folder))
    state = job.first_state()
    for segment in job.segments:
        state = reset_optimizer(state, job.optimizer(segment), segment.frozen)
        trained = len(jax.tree.leaves(finetune.partition(state.variables["params"], segment.frozen)))
        assert len(jax.tree.leaves(state.opt_state)) == 2 * trained + 2
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    assert [job.segment(step).start for step in (0, 5, 6, 11, 12, 17, 18)] == [0, 0, 6, 6, 12, 12, 12]
    assert job.learning_rate(6) == job.learning_rate(0) == pytest.approx(0.01)  # the schedule too


def test_zoo_fit_from_a_checkpoint_learns_and_chooses_its_recipe(tmp_path, tuned):
    fitted = zoo.fit(
        init=tuned, data=coloured(NEW), epochs=2, min_epoch_steps=12, learning_rate=0.03, augment=(), quiet=True,
        workdir=tmp_path / "run",
    )  # fmt: skip
    assert fitted.card.recipe["source"] == find_recipe("fine-tune-small").source
    assert len(fitted.history) == 2 and fitted.history[1]["train_loss"] < fitted.history[0]["train_loss"]
    assert fitted.card.metrics["step"] == fitted.history[-1]["step"]  # monitor "last"


def test_another_size_and_other_channels_on_request(checkpoint_folder):
    recipe = dataclasses.replace(TUNE, image_size=24, channels="L")
    job = make_plan(None, coloured(NEW), recipe, init=loading.open_init(checkpoint_folder))
    assert job.preprocess.input_shape == (24, 24, 1) and job.preprocess.resize == (24, 24)
    assert job.abstract_variables["params"]["stem"]["conv"]["kernel"].shape[2] == 1
    assert make_plan("lenet5", coloured(NEW), dataclasses.replace(PLAIN, channels="L")).preprocess.input_shape == (
        32,
        32,
        1,
    )


def test_errors_name_the_checkpoint_or_the_argument(tmp_path, checkpoint_folder):
    with pytest.raises(ValueError, match=r"resnet20.*lenet5"):
        zoo.fit("lenet5", coloured(NEW), init=checkpoint_folder)
    with pytest.raises(ValueError, match="init="):
        zoo.fit(data=coloured(NEW))
    with pytest.raises(ValueError, match=r"init=.* - missing batch_stats/stage1_block2"):
        zoo.fit(init=checkpoint_folder, data=coloured(NEW), fields={"blocks": (2,)}, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_fine_tunes_a_colour_model_on_grey_digits(tmp_path, capsys):
    from zoo.cli import main

    start = start_of("mlp", classes=("0", "7", "nothing"))
    checkpoint.save_checkpoint(tmp_path / "ckpt", start.card, start.variables)
    words = ["train", "--init", str(tmp_path / "ckpt"), "--data", "digits", "--limit", "40", "--epochs", "1"]
    asked = [
        "--freeze",
        "hidden1",
        "--head-lr",
        "0.01",
        "--layer-decay",
        "0.5",
        "--set",
        "min_epoch_steps=2",
        "--augment",
        "",
    ]
    assert main([*words, *asked, "--head-epochs", "0", "--workdir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "images 16x16x3" in out and "1 epoch = 2 steps of 32" in out
    assert "8 of 10 classes: 1, 2, 3, 4, 5, 6, 8, 9" in out and "rows kept for 0, 7" in out
    fitted = zoo.load(tmp_path / "run" / "best")
    for leaf in ("kernel", "bias"):
        before, after = (v["params"]["hidden1"][leaf] for v in (start.variables, fitted.variables))
        assert np.array_equal(before, after)
    assert fitted.card.recipe["head_lr"] == 0.01
    assert main(words[:3]) == 2 and "--data" in capsys.readouterr().err
