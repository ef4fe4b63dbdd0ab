"""From a request to a plan: the same from command line and Python, and the numbers that a plan decides."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_one_line, make_plan, random_images

import zoo
from zoo import cli, models
from zoo.data.dataset import limited
from zoo.data.images.preprocess import Preprocess
from zoo.data.sources import from_arrays
from zoo.distributed.device_memory import OutOfMemoryError
from zoo.distributed.mesh import Parallelism, parse_parallelism
from zoo.loading import open_init
from zoo.training import batches, cross_validation, loop, report
from zoo.training.batches import sample_images
from zoo.training.plan import Plan
from zoo.training.plan import make_plan as plan_of
from zoo.training.recipe import Recipe
from zoo.training.recipes import RECIPES
from zoo.training.request import TrainRequest
from zoo.training.settings import Setting
from zoo.training.sweep import run_sweep

MLP = {"widths": (4,), "image_size": 8}
PLAIN = Recipe(epochs=3, batch_size=10, learning_rate=0.1, optimizer="sgd")


def dataset(count=45, classes=3, validation=20):
    return from_arrays(
        random_images(count, 8, 8, classes=classes), validation=random_images(validation, 8, 8, classes=classes),
        name="made",
    )  # fmt: skip


def mlp_plan(recipe=PLAIN, data=None, **arguments):
    return make_plan("mlp", data or dataset(), recipe, fields=MLP, **arguments)


# --- one request, one plan --------------------------------------------------------------------------------------------

#: (words of `zoo train`, arguments of zoo.fit) that ask for the same training.
SAME = [
    ("", {"model": "lenet5"}),
    ("--model mlp --data digits", {"model": "mlp", "data": "digits"}),
    ("--model mlp --set widths=(8,4)", {"model": "mlp", "fields": {"widths": (8, 4)}}),
    ("--model mlp --set model.dropout=0.5 --set recipe.ema=0.9",
     {"model": "mlp", "fields": {"dropout": 0.5}, "ema": 0.9}),
    ("--epochs 2 --batch-size 32 --optimizer sgd --learning-rate 0.1 --schedule step --weight-decay 0.2",
     {"model": "lenet5", "epochs": 2.0, "batch_size": 32, "optimizer": "sgd", "learning_rate": 0.1,
      "schedule": "step", "weight_decay": 0.2}),
    ("--recipe small --set milestones=0.2,0.4 --augment flip,pad_crop(pad=2)",
     {"model": "lenet5", "recipe": "small", "milestones": (0.2, 0.4), "augment": ("flip", "pad_crop(pad=2)")}),
    ("--augment=", {"model": "lenet5", "augment": ()}),
    ("--augment none", {"model": "lenet5", "augment": ()}),
    ("--batch-size 0 --micro-batch 7", {"model": "lenet5", "batch_size": 0, "micro_batch": 7}),
    ("--limit 50", {"model": "lenet5", "limit": 50}),
    ("--device-data off", {"model": "lenet5", "device_data": "off"}),
    ("--image-size 36", {"model": "lenet5", "image_size": 36}),
    ("--set image_size=36", {"model": "lenet5", "image_size": 36}),
    ("--model resnet20 --progressive 16,24 --test-size 32",
     {"model": "resnet20", "progressive": (16, 24), "test_size": 32}),
    ("--parallel pmap --mesh data=2", {"model": "lenet5", "parallel": "pmap", "mesh": "data=2"}),
    ("--set class_weights=balanced --seed 3 --patience 2 --monitor loss",
     {"model": "lenet5", "class_weights": "balanced", "seed": 3, "patience": 2, "monitor": "loss"}),
    ("--model resnet20 --precision bfloat16 --set remat=true",
     {"model": "resnet20", "precision": "bfloat16", "remat": True}),
    ("--workdir elsewhere --data-dir tfds", {"model": "lenet5", "workdir": "elsewhere", "data_dir": "tfds"}),
    ("--init START --head-epochs 1 --freeze stem,stage1 --unfreeze-at 2 --layer-decay 0.8 --head-lr 0.1 --data digits",
     {"init": "START", "data": "digits", "head_epochs": 1.0, "freeze": ("stem", "stage1"), "unfreeze_at": 2.0,
      "layer_decay": 0.8, "head_lr": 0.1}),
    ("--eval-crop 0.875 --normalisation symmetric --set augment_repeats=2 --set ema_every=4",
     {"model": "lenet5", "eval_crop": 0.875, "normalisation": "symmetric", "augment_repeats": 2, "ema_every": 4}),
    ("--optimizer rmsprop-tf --set bias_lr_factor=2 --set decay_bias=true --set norm_momentum=0.99"
     " --set warmup=constant --set warmup_lr_fraction=0.1 --set ema_warmup=copy --set norm_lr_factor=0.5",
     {"model": "lenet5", "optimizer": "rmsprop-tf", "bias_lr_factor": 2.0, "decay_bias": True, "norm_momentum": 0.99,
      "warmup": "constant", "warmup_lr_fraction": 0.1, "ema_warmup": "copy", "norm_lr_factor": 0.5}),
    ("--model mlp --set model_fields=dropout=0.25 --set loss=sigmoid --set target_threshold=0.2",
     {"model": "mlp", "model_fields": ("dropout=0.25",), "loss": "sigmoid", "target_threshold": 0.2}),
    ("--model resnet20 --recipe bit-hyperrule --image-size 16",
     {"model": "resnet20", "recipe": "bit-hyperrule", "image_size": 16}),
    ("--init START --recipe small --data digits --set channels=L",
     {"init": "START", "data": "digits", "recipe": "small", "channels": "L"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The folder of a checkpoint to start from."""
    folder = tmp_path_factory.mktemp("start") / "checkpoint"
    model = models.create("resnet20", blocks=(1,), width=2, num_classes=2)
    zoo.save(folder, model, zoo.init(model, 0, (16, 16, 3)), ("0", "nothing"), Preprocess((16, 16), (16, 16)))
    return folder


@pytest.mark.parametrize(("words", "arguments"), SAME, ids=[row[0] or "defaults" for row in SAME])
def test_command_line_and_python_make_the_same_plan(words, arguments, start, tmp_path, monkeypatch):
    plans = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "fit", lambda plan, **options: plans.append(plan))
    assert cli.main(["train", *words.replace("START", str(start)).split(), "--quiet"]) == 0
    if "init" in arguments:
        arguments = {**arguments, "init": str(start)}
    zoo.fit(**arguments, quiet=True)
    ours, theirs = (
        {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)} for plan in plans
    )  # fmt: skip
    for decided in (ours, theirs):
        dataset, init = decided.pop("dataset"), decided.pop("init")
        decided["data"] = (dataset.name, {name: len(split) for name, split in dataset.splits.items()})
        decided["init"] = init and init.digest()
    assert ours == theirs


def test_without_an_option_the_defaults_are_lenet5_on_digits():
    plan = plan_of(TrainRequest())
    assert (plan.config.model, plan.config.data, plan.recipe) == ("lenet5", "digits", RECIPES["digits"])


def test_a_request_may_change_an_earlier_run(start):
    """Model, data, recipe, limit and data folder are those of the base unless the request has its own."""
    base = make_plan("mlp", "digits", PLAIN, fields={"widths": (4,)}, limit=60, data_dir="place").config
    plan = plan_of(TrainRequest(base=base))
    assert plan.config == base
    plan = plan_of(TrainRequest(base=base, fields={"dropout": 0.5}, changes={"epochs": 7.0}, limit=30))
    assert plan.config.fields == {**base.fields, "dropout": 0.5} and plan.config.limit == 30
    assert plan.recipe == dataclasses.replace(PLAIN, epochs=7.0)
    plan = plan_of(TrainRequest(base=base, model="lenet5"))
    assert (plan.config.model, plan.recipe, "widths" in plan.config.fields) == ("lenet5", PLAIN, False)
    plan = plan_of(TrainRequest(base=base, recipe="small"))
    assert plan.recipe == RECIPES["small"] and plan.config.fields == base.fields
    plan = plan_of(TrainRequest(base=base, data=dataset(classes=4), limit=0, fields={"image_size": 8}))
    assert plan.config.fields["num_classes"] == 4 and plan.config.fields["widths"] == (4,)
    assert plan.config.limit == 0 and len(plan.dataset.splits["train"]) == 45
    arrays = dataclasses.replace(base, data="arrays")
    with pytest.raises(ValueError, match="--data"):
        plan_of(TrainRequest(base=arrays))


def test_the_checkpoint_of_an_earlier_run_must_be_the_same(start):
    init = zoo.loading.open_init(start)
    base = make_plan(None, "digits", PLAIN, init=init, limit=60).config
    assert plan_of(TrainRequest(base=base, init=init)).config == base
    with pytest.raises(ValueError, match="is not the checkpoint that this run started from"):
        plan_of(TrainRequest(base=dataclasses.replace(base, init_digest="0" * 64), init=init))


@pytest.mark.parametrize(
    ("request_fields", "parts"),
    [
        ({"model": "lenet6"}, ("lenet6", "lenet5")),
        ({"model": "mlp", "fields": {"widht": 3}}, ("widht", "widths")),
        ({"recipe": "mnits"}, ("mnits", "mnist")),
        ({"changes": {"epochs": 0}}, ("epochs=0",)),
        ({"fields": {"num_classes": 4}}, ("num_classes=4", "made", "3")),
    ],
)
def test_errors_name_the_option(request_fields, parts):
    request = {"model": "mlp", "data": dataset(), **request_fields}
    with pytest.raises(ValueError, match=parts[0]) as caught:
        plan_of(TrainRequest(**request))
    assert all(part in str(caught.value) for part in parts)


def test_training_needs_two_classes_and_a_training_split():
    whole = dataset()
    with pytest.raises(ValueError, match=r"made: .*only"):
        mlp_plan(data=dataclasses.replace(whole, class_names=("only",)))
    for missing in ("train", "validation"):
        splits = {name: split for name, split in whole.splits.items() if name != missing}
        with pytest.raises(ValueError, match=r"made: .*zoo eval"):
            mlp_plan(data=dataclasses.replace(whole, splits=splits))


def test_a_checkpoint_needs_data(start):
    request = TrainRequest(init=zoo.loading.open_init(start))
    for function, arguments in ((plan_of, ()), (cross_validation.prepare, (None, print)), (run_sweep, ([], [], print))):
        with pytest.raises(ValueError, match=r"--init .*name the data .*--data"):
            function(request, *arguments)


# --- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "batch_size", "steps_per_epoch", "total_steps"),
    [
        ({}, 10, 4.5, 14),  # 13.5 steps are 14
        ({"epochs": 2}, 10, 4.5, 9),
        ({"batch_size": 45}, 45, 1, 3),
        ({"batch_size": 44}, 44, 45 / 44, 4),
        ({"batch_size": 46}, 45, 1, 3),
        ({"batch_size": 1}, 1, 45, 135),
        ({"batch_size": 0}, 45, 1, 3),
        ({"min_epoch_steps": 4}, 10, 4.5, 14),
        ({"min_epoch_steps": 5}, 10, 5, 15),
        ({"epochs": 0.01}, 10, 4.5, 1),
        ({"epochs": 1e-9, "batch_size": 0}, 45, 1, 1),
    ],
)
def test_steps(fields, batch_size, steps_per_epoch, total_steps):
    plan = mlp_plan(dataclasses.replace(PLAIN, **fields))
    assert (plan.batch_size, plan.steps_per_epoch, plan.total_steps) == (batch_size, steps_per_epoch, total_steps)
    assert (plan.segments[0].start, plan.segments[-1].stop) == (0, total_steps)


@pytest.mark.parametrize(("requested", "batch_size"), [(40, 40), (64, 40), (0, None), (20, None)])
def test_a_batch_divides_among_the_devices(requested, batch_size):
    """A batch of more than all 45 records becomes the largest that 8 devices divide."""
    recipe = dataclasses.replace(PLAIN, batch_size=requested)
    if batch_size is None:
        with pytest.raises(ValueError, match=r"--batch-size 40 or 48|--batch-size 16 or 24"):
            mlp_plan(recipe, parallelism=parse_parallelism(mesh="data=8"))
    else:
        assert mlp_plan(recipe, parallelism=parse_parallelism(mesh="data=8")).batch_size == batch_size


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"epochs": 3, "eval_every_epochs": 2.0}, [9, 14]),  # and after the last step
        ({"epochs": 3}, [5, 9, 14]),
        ({"epochs": 2, "eval_every_epochs": 0.5}, [3, 5, 7, 9]),
        ({"epochs": 2, "eval_every_epochs": 5.0}, [9]),
        ({"epochs": 1, "eval_every_epochs": 0.01}, [1, 2, 3, 4, 5]),
        ({"epochs": 3, "batch_size": 15, "eval_every_epochs": 2.0}, [6, 9]),
    ],
)
def test_steps_that_are_evaluated(fields, steps):
    plan = mlp_plan(dataclasses.replace(PLAIN, **fields))
    assert [step for step in range(1, plan.total_steps + 1) if plan.is_eval_step(step)] == steps


@pytest.mark.parametrize(("micro_batch", "size"), [(0, 256), (7, 7), (256, 256), (300, 256)])
def test_evaluation_batches_are_no_larger_than_a_micro_batch(micro_batch, size):
    assert mlp_plan(dataclasses.replace(PLAIN, batch_size=0)).with_micro_batch(micro_batch).eval_batch_size == size


def test_a_step_compiled_to_measure_its_memory_is_kept(monkeypatch):
    """Compiling it again for the run would take minutes for a large network."""
    compiled = []
    step = SimpleNamespace(memory_analysis=lambda: None)

    def compile_step(self, segment, state):
        compiled.append(segment)
        return step

    monkeypatch.setattr(Plan, "compile_step", compile_step)
    request = TrainRequest("mlp", dataset(), PLAIN, fields=MLP, changes={"micro_batch": "auto"})
    plan = plan_of(request, lambda line: None)
    assert plan.precompiled == (plan.segments[0], step) and compiled == [plan.segments[0]]
    assert plan.recipe.micro_batch == 0


def test_the_learning_rate_of_each_step():
    plan = mlp_plan(dataclasses.replace(PLAIN, schedule="linear", batch_size=15, warmup_epochs=1 / 3))
    assert plan.total_steps == 9
    expected = [0, *(0.1 * (1 - step / 8) for step in range(8))]
    assert [plan.learning_rate(step) for step in range(9)] == pytest.approx(expected)


def test_image_sizes_share_one_schedule():
    plan = make_plan(
        "resnet20", dataset(), dataclasses.replace(PLAIN, schedule="linear", batch_size=15, progressive=(4, 8)),
        fields={"blocks": (1,), "width": 2},
    )  # fmt: skip
    assert [(s.start, s.stop, s.preprocess.size, s.fresh_optimizer) for s in plan.segments] == [
        (0, 4, (4, 4), True), (4, 9, (8, 8), False),
    ]  # fmt: skip
    assert [plan.learning_rate(step) for step in (0, 4, 8)] == pytest.approx([0.1, 0.1 * 5 / 9, 0.1 / 9])


# --- model, preprocessing, weights ------------------------------------------------------------------------------------


def test_class_weights_balance():
    """N / (K * count); a class without examples counts as one of a single example."""
    images, _ = random_images(40, 8, 8)
    labels = np.repeat([0, 1, 2], [30, 8, 2])
    data = from_arrays((images, labels), validation=random_images(20, 8, 8, classes=4), class_names=tuple("abcd"))
    balanced = dataclasses.replace(PLAIN, class_weights="balanced")
    assert mlp_plan(balanced, data).class_weights == pytest.approx([40 / (4 * n) for n in (30, 8, 2, 1)])
    assert mlp_plan(PLAIN, data).class_weights is None


def test_precision_and_rematerialisation_are_of_training_alone():
    recipe = dataclasses.replace(PLAIN, remat=True, precision="bfloat16")
    plan = make_plan("resnet20", dataset(), recipe, fields={"blocks": (1,)})
    assert (plan.model.dtype, plan.model.remat) == (jnp.bfloat16, True)
    assert (plan.eval_model.dtype, plan.eval_model.remat) == (jnp.float32, False)
    assert {"dtype", "remat", "axis_name"}.isdisjoint(plan.config.fields)
    assert make_plan("resnet20", dataset(), PLAIN, fields={"blocks": (1,)}).model.dtype == jnp.float32
    with pytest.raises(ValueError, match="remat=True: lenet5 "):
        make_plan("lenet5", dataset(), recipe)


def test_images_are_adapted_to_the_channels_of_a_model():
    colour = from_arrays(random_images(60, 20, 24, 3, classes=10), name="colour")
    assert make_plan("lenet5_1998", colour, PLAIN).preprocess.input_shape == (32, 32, 1)
    assert make_plan("lenet5", colour, PLAIN).preprocess.input_shape == (32, 32, 3)
    assert make_plan("lenet5", colour, dataclasses.replace(PLAIN, channels="L")).preprocess.num_channels == 1


def test_the_configuration_names_the_run():
    plan = mlp_plan(limit=20)
    config = plan.config
    assert (config.model, config.data, config.limit, config.recipe) == ("mlp", "made", 20, PLAIN)
    assert config.fields == models.card_fields("mlp", plan.eval_model) and config.fields["num_classes"] == 3
    assert config.fingerprint == limited(dataset(), 20).fingerprint() and (config.init, config.init_digest) == (
        None,
        None,
    )
    assert plan.folder == Path("runs") / config.default_name()
    assert mlp_plan(workdir="here").folder == Path("here")
    assert len(plan.dataset.splits["train"]) == 20
    assert plan.num_parameters == 64 * 4 + 4 + 4 * 3 + 3


def test_the_parallelism_of_a_request_is_not_part_of_the_run(monkeypatch):
    assert mlp_plan().parallelism == Parallelism("jit", (("data", 1),))  # as the tests ask for with ZOO_MESH
    data2 = parse_parallelism(mesh="data=2")
    plan = mlp_plan(parallelism=data2)
    assert plan.parallelism == data2 and plan.config == mlp_plan().config


# --- the default model ------------------------------------------------------------------------------------------------


def pictures(side, channels, count=40):
    images = np.random.default_rng(side).integers(0, 256, (count, side, side, channels), np.uint8)
    return from_arrays((images, np.arange(count) % 2), name="made")


def default_plan(data, open_init=None, **options):
    lines = []
    request = TrainRequest(data=data, recipe=PLAIN, open_init=open_init, **options)
    return plan_of(request, lines.append), lines


@pytest.mark.parametrize(
    "side, channels, model", [(28, 1, "lenet5"), (64, 1, "lenet5"), (32, 3, "resnet20"), (65, 1, "resnet18")]
)
def test_the_default_model_suits_the_images(side, channels, model):
    plan, lines = default_plan(pictures(side, channels))
    assert plan.config.model == model and plan.init is None and not lines


def test_photographs_are_fine_tuned_by_default(start):
    names = []

    def open_init(name):
        names.append(name)
        return zoo.loading.open_init(start)

    plan, (line,) = default_plan(pictures(70, 3), open_init)
    assert names == ["torchvision:resnet18"] and plan.init is not None and plan.config.model == "resnet20"
    assert "torchvision:resnet18 is fine-tuned" in line and "--model resnet18" in line

    plan, (line,) = default_plan(pictures(64, 3), open_init)
    assert names[1:] == ["resnet20-cifar10"] and plan.init is not None
    assert (
        line
        == "No --model given: the images are few, so resnet20-cifar10 is fine-tuned (--model resnet20: from scratch)"
    )
    many = pictures(64, 3, count=400)  # 50 and more of each class can be trained on from scratch
    assert default_plan(many, open_init)[0].init is None and len(names) == 2


def test_photographs_without_a_network():
    def offline(name):
        raise ConnectionError(f"{name}: cannot be downloaded; run: zoo import FILE --as {name}")

    with pytest.raises(ConnectionError) as caught:
        default_plan(pictures(70, 3), offline)
    assert_one_line(caught, "zoo import FILE --as torchvision:resnet18", "from scratch with --model resnet18")
    text = str(caught.value)
    assert text.index("type --init resnet20-cifar10") < text.index("from scratch") < text.index("zoo import")
    with pytest.raises(ConnectionError) as caught:
        default_plan(pictures(70, 3), offline, head=True)
    assert_one_line(
        caught, "cannot be downloaded; type --init resnet20-cifar10, or give a checkpoint with --init, or run"
    )


def test_the_default_recipe_for_photographs_from_scratch():
    """The augmentation is the one that `zoo data` recommends, never a shift by 4 of 224 pixels."""
    plan = make_plan("resnet18", pictures(70, 3))
    assert plan.recipe == RECIPES["photos"] and plan.recipe.augment == ("resized_crop", "flip")
    small = [Setting("--image-size", "recipe.image_size", "64")]
    assert make_plan("resnet18", pictures(70, 3), settings=small).recipe.augment == ("pad_crop(pad=4)", "flip")


def test_few_images_and_unbalanced_classes_are_named():
    labels = np.array([0] * 30 + [1] * 10)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    data = from_arrays((images, labels), validation=(images, labels), name="made", class_names=["cat", "dog"])
    lines = report.describe_advice(mlp_plan(data=data))
    assert len(lines) == 2 and "40 training images" in lines[0] and "--init lenet5-mnist" in lines[0]
    assert "30 training images of cat, 10 of dog" in lines[1] and "--set class_weights=balanced" in lines[1]
    balanced = dataclasses.replace(PLAIN, class_weights="balanced")
    assert len(report.describe_advice(mlp_plan(balanced, data=data))) == 1


@pytest.mark.parametrize(
    ("model", "changes", "named"),
    [
        ("mlp", {"image_size": 4097}, "--image-size"),  # parameters
        ("resnet20", {"image_size": 4097}, r"45 images \(instead of 64: .* of 4097x4097x1"),  # the batch
        ("resnet20", {"image_size": 16, "test_size": 4097}, "images of 4097x4097x1"),  # evaluation
    ],
)
def test_memory_is_estimated_from_shapes(model, changes, named, monkeypatch):
    """Before anything large is allocated, and before the preprocessing of large images is measured."""
    monkeypatch.setattr("zoo.distributed.device_memory.available_memory", lambda: 2**32)
    data = from_arrays(random_images(64, 8, 8, classes=2), name="made")
    with pytest.raises(OutOfMemoryError, match=named) as raised:
        make_plan(model, data, Recipe(**changes))
    assert_one_line(raised, "available", "lower")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"epochs": 1e14}, ("epochs", "2,147,483,647")),
        ({"epochs": 1e300}, ("epochs", "1e+15")),
        ({"epochs": 10**400}, ("epochs", "1e+15")),
        ({"min_epoch_steps": 10**12}, ("min_epoch_steps", "2,147,483,647")),
        ({"head_epochs": 1e300}, ("head_epochs", "1e+15")),
        ({"milestones": (0.5, 1e300)}, ("milestones", "1e+15")),
    ],
)
def test_more_steps_than_can_be_counted_are_refused(changes, parts):
    with pytest.raises(ValueError) as raised:
        make_plan("softmax", dataset(), Recipe(**changes))
    assert_one_line(raised, *parts)


# --- what a recipe sets besides the optimiser -------------------------------------------------------------------------


def replace(**fields):
    return dataclasses.replace(PLAIN, **fields)


def test_a_recipe_sets_fields_of_the_model():
    recipe = dataclasses.replace(PLAIN, model_fields=("dropout=0.25",))
    assert mlp_plan(recipe).config.fields["dropout"] == 0.25
    given = make_plan("mlp", dataset(), recipe, fields={**MLP, "dropout": 0.0})
    assert given.config.fields["dropout"] == 0
    setting = Setting("--set dropout", "dropout", "0.75")
    assert mlp_plan(recipe, settings=[setting]).config.fields["dropout"] == 0.75


@pytest.mark.parametrize(
    ("text", "words"),
    [("zero_init=true", ["zero_init", "mlp", "--set model_fields=none"]), ("dropout=many", ["dropout=many", "float"])],
)
def test_a_recipe_for_another_model_is_an_error(text, words):
    with pytest.raises(ValueError, match="model_fields") as caught:
        mlp_plan(dataclasses.replace(PLAIN, model_fields=(text,)))
    assert_one_line(caught, *words)


def test_normalisation_of_a_recipe_and_of_a_model():
    standard = mlp_plan().preprocess
    symmetric = mlp_plan(replace(normalisation="symmetric")).preprocess
    centred = mlp_plan(replace(normalisation="centre")).preprocess
    assert symmetric.mean == symmetric.std == (0.5,)
    assert centred.mean == standard.mean and centred.std == (1 / 255,) and 0.1 < standard.std[0] < 0.5
    for name, fields in (("alexnet", {"image_size": 67, "width": 0.1}), ("googlenet", {"width": 0.1})):
        plan = make_plan(name, dataset(), replace(image_size=67), fields=fields)
        assert plan.preprocess.std == (1 / 255,) * plan.preprocess.num_channels
        again = make_plan(name, dataset(), replace(image_size=67, normalisation="standardise"), fields=fields)
        assert min(again.preprocess.std) > 0.1
    small = make_plan("alexnet_small", dataset(), PLAIN, fields={"width": 0.1}).preprocess
    assert min(small.std) > 0.1  # its kernels are initialised for inputs of unit variance


def test_normalisation_of_an_initial_checkpoint(start):
    init = zoo.loading.open_init(start)
    kept = make_plan(None, dataset(), PLAIN, init=init).preprocess
    assert kept.mean == init.card.preprocess.mean and kept.std == init.card.preprocess.std
    changed = make_plan(None, dataset(), replace(normalisation="centre"), init=init).preprocess
    assert changed.std == (1 / 255,) * 3 and changed.mean != kept.mean


def test_the_evaluation_crop_is_in_the_plan_but_not_in_training():
    plan = make_plan("resnet20", pictures(40, 3), replace(eval_crop=0.875, image_size=28))
    assert plan.preprocess.size == (28, 28) and plan.preprocess.resize == (32, 32)
    assert plan.segments[0].preprocess.resize == (28, 28)


def test_the_hyperrule_of_bit_is_resolved_by_the_data():
    plan = make_plan("resnet20", pictures(40, 3), "bit-hyperrule")
    assert plan.total_steps == 500 and plan.preprocess.size == (128, 128)
    assert plan.recipe.augment == ("scale_crop(low=1.25, high=1.25)", "flip")


def test_a_first_layer_that_depends_on_the_data(tmp_path):
    """It is computed from a sample of the training images; a checkpoint that training starts from keeps its own."""
    images, labels = random_images(40, 16, 16, classes=2)
    images[20:] //= 2
    data = from_arrays((images, labels), validation=random_images(20, 16, 16, classes=2), name="made")
    recipe = dataclasses.replace(PLAIN, image_size=16)
    plan = make_plan("airbench", data, recipe, fields={"width": 4})
    state = plan.first_state()
    sample = sample_images(data.splits["train"], plan.preprocess)
    assert len(sample) == 40 and sample.shape[1:] == plan.preprocess.input_shape
    kernel = state.variables["params"]["whiten"]["kernel"]
    whitened = plan.model.initialise_from_images(state.variables, sample)["params"]["whiten"]["kernel"]
    np.testing.assert_array_equal(kernel, whitened)
    sharded = make_plan(
        "airbench", data, dataclasses.replace(recipe, batch_size=8), fields={"width": 4},
        parallelism=parse_parallelism("jit", "fsdp=2"),
    )  # fmt: skip
    np.testing.assert_array_equal(sharded.first_state().variables["params"]["whiten"]["kernel"], kernel)
    plain = models.init(plan.model, 0, sample.shape[1:])
    zoo.save(tmp_path / "saved", plan.model, plain, data.class_names, plan.preprocess)
    tuned = plan_of(TrainRequest(data=data, init=open_init(tmp_path / "saved"), recipe=recipe))
    kept = tuned.first_state().variables["params"]["whiten"]["kernel"]
    np.testing.assert_array_equal(kept, plain["params"]["whiten"]["kernel"])


def test_a_sample_is_evenly_spread_and_bounded(monkeypatch):
    data = dataset(count=45)
    plan = mlp_plan(data=data)
    monkeypatch.setattr(batches, "SAMPLE_PIXELS", 8 * 8 * 5)
    sample = sample_images(data.splits["train"], plan.preprocess)
    images = plan.dataset.splits["train"].read(np.array([0, 11, 22, 33, 44]))
    expected = zoo.preprocess(list(images), plan.preprocess)
    np.testing.assert_allclose(sample, expected, rtol=1e-6)
