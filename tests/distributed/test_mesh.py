"""The same training over one device and over many: meshes, fully sharded, pmap; memory on their devices."""

import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import make_plan
from helpers import train as fit
from jax.sharding import PartitionSpec

from zoo import models
from zoo.data.sources import from_arrays
from zoo.distributed import compile, mesh
from zoo.distributed.mesh import parse_parallelism
from zoo.inference.evaluate import evaluate
from zoo.training import dry_run, loop, memory, report, run
from zoo.training import plan as planning
from zoo.training.recipe import Recipe
from zoo.training.request import TrainRequest
from zoo.trees import flatten

RECIPE = Recipe(
    epochs=2, batch_size=16, optimizer="momentum", learning_rate=0.02, schedule="constant", l2=1e-3, clip_norm=5.0,
    label_smoothing=0.1, ema=0.9, augment=("shift(pixels=1)", "flip"),
)  # fmt: skip
PERCEPTRON = ("mlp", {"widths": (1024,), "image_size": 8, "dropout": 0.2})
RESIDUAL = ("resnet20", {"blocks": (1,), "width": 16})


def data(side=8, count=160, classes=4, channels=1):
    def some(count, seed):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, classes, count)
        images = rng.integers(0, 100, (count, side, side, channels)) + 35 * labels[:, None, None, None]
        return images.astype(np.uint8), labels

    return from_arrays(some(count, 0), validation=some(61, 1), test=some(40, 2), name="made")


def train(model, parallelism, recipe=RECIPE, steps=10, dataset=None):
    """Return the metrics of every step, and the state on the host."""
    name, fields = model
    job = make_plan(name, dataset or data(), recipe, fields=fields, parallelism=parallelism)
    state = job.shard_state(job.first_state())
    step = job.compile_step(job.segments[0], state)
    batches, losses = job.batches(), []
    for _ in range(steps):
        state, metrics = step(state, next(batches))
        losses.append([float(metrics[key]) for key in ("loss", "objective", "top1", "examples", "update")])
    return np.array(losses), jax.device_get(state._replace(key=None))


def assert_same(actual, expected, tolerance=2e-4):
    np.testing.assert_allclose(actual[0], expected[0], rtol=tolerance, atol=tolerance)
    paths = jax.tree_util.tree_flatten_with_path(expected[1])[0]
    for (path, want), leaf in zip(paths, jax.tree.leaves(actual[1]), strict=True):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(leaf, want, rtol=tolerance, atol=tolerance, err_msg=where)


@pytest.fixture(scope="module")
def alone():
    return train(RESIDUAL, parse_parallelism())


@pytest.mark.parametrize(("how", "mesh"), [("jit", "data=4,model=2"), ("jit", "fsdp=8"), ("pmap", "data=2")])
def test_many_devices_train_like_one(alone, how, mesh):
    """Batch norm uses the whole batch, and augmentation depends on the place in it."""
    assert_same(train(RESIDUAL, parse_parallelism(how, mesh)), alone)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=8", "data=4,model=2", "fsdp=8"])
def test_dropout_and_mixing_agree_over_meshes(mesh):
    recipe = dataclasses.replace(RECIPE, augment=(*RECIPE.augment, "mixup(alpha=0.2)"))
    assert_same(train(PERCEPTRON, parse_parallelism(mesh=mesh), recipe), train(PERCEPTRON, parse_parallelism(), recipe))


@pytest.mark.slow
def test_micro_batches_agree_over_a_mesh():
    recipe = dataclasses.replace(RECIPE, micro_batch=8)
    meshed = train(RESIDUAL, parse_parallelism(mesh="data=4"), recipe, steps=2)
    assert_same(meshed, train(RESIDUAL, parse_parallelism(), recipe, steps=2))


#: An instance of each family with each of its kinds of block: model, fields, side of the images.
FAMILIES = [
    ("mlp", {"widths": (32,)}, 8),
    ("highway", {"layers": 4}, 8),
    ("lenet5", {}, 32),
    ("alexnet_owt_small", {"width": 0.0625, "dropout": 0.0}, 32),
    ("googlenet_bn_small", {"width": 0.1, "blocks": (1, 1, 0), "dropout": 0.0, "aux_dropout": 0.0}, 32),
    ("inception_v2_small", {"width": 0.1, "blocks": (1, 0, 0), "dropout": 0.0}, 32),
    ("inception_v3_small", {"width": 0.1, "blocks": (1, 0, 0), "dropout": 0.0}, 32),
    ("inception_v4_small", {"width": 0.1, "blocks": (1, 0, 0), "dropout": 0.0}, 32),
    ("inception_resnet_v2_small", {"width": 0.1, "blocks": (1, 0, 0), "dropout": 0.0}, 32),
    ("resnet20", {"width": 8, "blocks": (1, 1)}, 16),
    ("resnet50_v2_small", {"blocks": (1, 1), "width": 8}, 16),
    ("wide_resnet16_8", {"widen": 1, "depth": 10, "dropout": 0.0}, 16),
    ("xception_small", {"width": 0.1, "blocks": (0,), "dropout": 0.0}, 32),
]
PARALLELISMS = [
    ("jit", "data=2"), ("jit", "data=4"), ("jit", "data=4,model=2"), ("jit", "fsdp=8"), ("pmap", "data=2"),
    ("pmap", "data=8"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fields", "side"), FAMILIES, ids=[row[0] for row in FAMILIES])
def test_every_family_trains_alike_over_every_mesh(name, fields, side, monkeypatch):
    """In float64: in float32 rounding alone turns a deep network with batch norm upside down within five steps.

    Everything is measured by the way that 10 steps took it.
    """
    monkeypatch.setattr(jnp, "float32", jnp.float64)  # batch norm, logits and images ask for it by name
    monkeypatch.setitem(planning._DTYPES, "float32", jnp.float64)
    monkeypatch.setattr(planning.Plan, "first_state", wide_state(planning.Plan.first_state))
    monkeypatch.setattr(compile, "compiler_options", lambda: None)  # as pmap takes none
    dataset, recipe = data(side, channels=3), dataclasses.replace(RECIPE, learning_rate=1e-3)
    with jax.enable_x64(True):
        job = make_plan(name, dataset, recipe, fields=fields)
        start = jax.tree_util.tree_flatten_with_path(jax.device_get(job.first_state().variables))[0]
        alone = train((name, fields), parse_parallelism(mesh="data=1"), recipe, dataset=dataset)
        for parallelism in PARALLELISMS:
            got = train((name, fields), parse_parallelism(*parallelism), recipe, dataset=dataset)
            np.testing.assert_allclose(got[0], alone[0], rtol=1e-9, err_msg=f"losses over {parallelism}")
            leaves = (jax.tree.leaves(result[1].variables) for result in (alone, got))
            for (path, before), expected, leaf in zip(start, *leaves, strict=True):
                way, off = (np.linalg.norm(expected - other) for other in (before, leaf))
                assert way > 0 and off <= 1e-8 * way, f"{jax.tree_util.keystr(path)} over {parallelism}: {off} of {way}"


def wide_state(first_state):
    def wide(leaf):
        return jnp.asarray(leaf, jnp.float64) if leaf.dtype == np.float32 else leaf

    return lambda job: jax.tree.map(wide, first_state(job))


def test_fsdp_stores_an_eighth_per_device():
    """Of parameters, optimiser state and moving average, except the leaves that are too small to split."""
    recipe = dataclasses.replace(RECIPE, optimizer="adamw")
    parallelism = parse_parallelism(mesh="fsdp=8")
    job = make_plan("mlp", data(), recipe, fields={"widths": (2048, 100), "image_size": 8}, parallelism=parallelism)
    state = job.shard_state(job.first_state())
    held, smallest = [0] * 8, 0
    leaves = jax.tree.leaves((state.variables["params"], state.opt_state, state.ema["params"]))
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
        smallest += leaf.nbytes if leaf.sharding.is_fully_replicated else 0
    whole = sum(leaf.nbytes for leaf in leaves)
    assert held == [(whole - smallest) // 8 + smallest] * 8
    assert smallest < 0.02 * whole


def test_fsdp_gathers_parameters_and_no_activations():
    """The traffic does not grow with the batch, and so not with the number of devices."""
    from benchmarks.communication import collectives

    def sent(batch_size):
        recipe = dataclasses.replace(RECIPE, batch_size=batch_size, augment=())
        parallelism = parse_parallelism(mesh="fsdp=8")
        job = make_plan("mlp", data(), recipe, fields={"widths": (2048,), "image_size": 8}, parallelism=parallelism)
        state = job.shard_state(job.first_state())
        program = job.compile_step(job.segments[0], state).as_text()
        return sum(each.bytes for each in collectives(program, 8))

    assert 64 * 2048 * 4 < sent(16) == sent(128)


def test_the_model_axis_splits_the_dense_layers():
    parallelism = parse_parallelism(mesh="data=4,model=2")
    job = make_plan("alexnet_owt_small", data(32, channels=3), RECIPE, fields={"width": 0.125}, parallelism=parallelism)
    params = flatten(job.abstract_variables["params"])
    split = {
        path for path, leaf in params.items() if any(mesh.partition_spec(parallelism, job.model, path, leaf.shape))
    }
    assert split == {f"{layer}/{part}" for layer in ("dense6", "dense7", "head") for part in ("kernel", "bias")}
    lines = report.describe_parallelism(job)
    assert "jit over data=4,model=2; 2 of 16 images per device" in lines[0] and "not scaled" in lines[1]
    assert f"{sum(params[path].size for path in split):,} of {job.num_parameters:,}" in lines[2]


@pytest.mark.parametrize(
    ("axes", "path", "shape", "spec"),
    [
        ("model=2", "wide/kernel", (4, 6), (None, "model")),
        ("model=2", "wide/kernel", (3, 3, 4, 6), (None, None, None, "model")),
        ("model=2", "wide/bias", (6,), ("model",)),
        ("model=2", "wide/kernel", (6, 5), ()),  # five outputs do not divide
        ("model=2", "narrow/kernel", (4, 6), ()),
        ("model=2", "a/wide/kernel", (4, 6), ()),  # the whole path must match
        ("data=2", "wide/kernel", (4, 6), ()),
        ("fsdp=4", "narrow/kernel", (16, 64), (None, "fsdp")),
        ("fsdp=4", "narrow/kernel", (64, 16), ("fsdp",)),
        ("fsdp=4", "narrow/kernel", (32, 32), (None, "fsdp")),
        ("fsdp=4", "narrow/kernel", (36, 67), ("fsdp",)),  # the longest axis that divides
        ("fsdp=4", "narrow/kernel", (33, 35), ()),
        ("fsdp=4", "narrow/bias", (1024,), ("fsdp",)),
        ("fsdp=4", "narrow/bias", (1020,), ()),  # fewer than 1,024 elements
        ("model=2,fsdp=4", "wide/kernel", (64, 64), (None, "model")),
        ("model=2,fsdp=4", "wide/kernel", (64, 65), ("fsdp",)),
    ],
)
def test_partition_spec(axes, path, shape, spec):
    model = SimpleNamespace(model_parallel=("wide/.*",))
    assert mesh.partition_spec(parse_parallelism(mesh=axes), model, path, shape) == PartitionSpec(*spec)


def test_optimizer_state_and_moving_average_are_split_like_their_parameters():
    model, parallelism = SimpleNamespace(model_parallel=("wide/.*",)), parse_parallelism(mesh="model=2")
    params = {"wide": {"kernel": np.zeros((4, 6))}}
    tree = {"params": params, "mu": params, "count": np.zeros(())}
    specs = jax.tree.map(lambda sharding: sharding.spec, mesh.shardings(parallelism, model, tree, params))
    split = PartitionSpec(None, "model")
    assert specs["params"]["wide"]["kernel"] == split and specs["count"] == PartitionSpec()
    trace = optax.trace(0.9).init(params)  # the fields of its named tuple are no part of the path
    assert mesh.shardings(parallelism, model, trace, params).trace["wide"]["kernel"].spec == split
    other = trace._replace(trace={"wide": {"kernel": np.zeros((2, 4, 6))}})  # of another shape
    assert mesh.shardings(parallelism, model, other, params).trace["wide"]["kernel"].spec == PartitionSpec()
    assert mesh.count_sharded(parallelism, model, params) == 24


def test_rows_of_a_batch_are_split_over_every_axis():
    parallelism = parse_parallelism(mesh="data=4,model=2")
    assert mesh.batch_sharding(parallelism).spec == PartitionSpec(("data", "model"))
    assert mesh.batch_sharding(parallelism, axis=1).spec == PartitionSpec(None, ("data", "model"))
    assert mesh.replicated(parallelism).spec == PartitionSpec()
    assert [device.id for device in mesh.devices_of(parallelism)] == list(range(8))
    assert dict(mesh.mesh_of(parallelism).shape) == {"data": 4, "model": 2}
    batch = mesh.shard_batch(parallelism, {"label": np.arange(16)})["label"]
    assert [shard.data.tolist() for shard in batch.addressable_shards] == [[2 * n, 2 * n + 1] for n in range(8)]
    pieces = jax.jit(lambda x: mesh.shard_microbatches(parallelism, x))(np.arange(32).reshape(2, 16))
    assert [shard.data.tolist() for shard in pieces.addressable_shards][1] == [[2, 3], [18, 19]]
    assert mesh.process_shard(parallelism) == mesh.process_shard(mesh.SINGLE_DEVICE) == (0, 1)


def test_shapes_of_a_batch():
    shapes = mesh.abstract_batch(parse_parallelism(mesh="data=2"), 6, (8, 8, 1))
    assert {key: (value.shape, value.dtype) for key, value in shapes.items()} == {
        "image": ((6, 8, 8, 1), np.uint8), "label": ((6,), np.int32), "weight": ((6,), np.float32),
    }  # fmt: skip
    stacked = mesh.abstract_batch(parse_parallelism("pmap", "data=2"), 6, (8, 8, 1))
    assert {key: value.shape for key, value in stacked.items()} == {
        "image": (2, 3, 8, 8, 1), "label": (2, 3), "weight": (2, 3),
    }  # fmt: skip


def test_a_head_that_does_not_divide_is_replicated():
    """ResNet splits its head over "model"; five classes do not divide between two devices."""
    parallelism = parse_parallelism(mesh="data=4,model=2")
    for classes, spec in ((5, PartitionSpec()), (4, PartitionSpec(None, "model"))):
        plan = make_plan("resnet20", data(classes=classes), RECIPE, fields=RESIDUAL[1], parallelism=parallelism)
        head = plan.abstract_variables["params"]["head"]["kernel"]
        assert mesh.partition_spec(parallelism, plan.model, "head/kernel", head.shape) == spec
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), plan.abstract_variables)
        placed = mesh.shard_variables(parallelism, plan.model, zeros)
        assert placed["params"]["head"]["kernel"].sharding.spec == spec


@pytest.mark.slow
def test_every_pattern_of_model_parallel_splits_a_parameter():
    """A model of each family."""
    parallelism = parse_parallelism(mesh="model=2")
    for name in ("mlp", "alexnet", "googlenet", "inception_v2", "inception_v3", "inception_v4", "inception_resnet_v2",
                 "resnet50", "resnet50_v2", "wide_resnet16_8", "xception"):  # fmt: skip
        model = models.create(name)
        params = flatten(models.abstract_variables(model)["params"])
        assert model.model_parallel
        for pattern in model.model_parallel:
            split = [
                path
                for path, leaf in params.items()
                if re.fullmatch(pattern, path) and any(mesh.partition_spec(parallelism, model, path, leaf.shape))
            ]
            assert split, pattern


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8", "data=2,model=2"])
def test_evaluation_counts_each_example_once(mesh):
    """61 examples over 8 devices; the counts are the same, the sums of losses to rounding."""
    job = make_plan("mlp", data(), RECIPE, fields={"widths": (1024,), "image_size": 8})
    variables = job.first_state().variables
    arguments = (job.model, variables, job.dataset.splits["validation"], job.preprocess, job.dataset.class_names)
    alone, over = evaluate(*arguments), evaluate(*arguments, batch_size=24, parallelism=parse_parallelism(mesh=mesh))
    assert alone["examples"] == 61
    for key in ("examples", "accuracy", "top5", "confusion", "macro_f1"):
        assert over[key] == alone[key]
    for key in ("loss", "roc_auc", "ece"):
        assert over[key] == pytest.approx(alone[key], rel=1e-5)


@pytest.mark.slow
def test_a_run_resumes_over_other_devices(tmp_path, monkeypatch):
    """Stopped over data x model, resumed over fsdp, finished under pmap: the curve of one device."""
    fields, recipe = {"widths": (1024,), "image_size": 8}, dataclasses.replace(RECIPE, epochs=3)
    commit = loop.Trainer.save

    def commit_and_stop(self):
        commit(self)
        raise KeyboardInterrupt

    for how, axes in (("jit", "data=4,model=2"), ("jit", "fsdp=8")):
        with monkeypatch.context() as patch:
            patch.setattr(loop.Trainer, "save", commit_and_stop)
            with pytest.raises(KeyboardInterrupt):
                fit(
                    "mlp", data(), recipe, fields=fields, parallelism=parse_parallelism(how, axes),
                    workdir=tmp_path / "moved", save_steps=11, quiet=True,
                )  # fmt: skip
    moved = fit("mlp", data(), recipe, fields=fields, parallelism=parse_parallelism("pmap", "data=2"),
                     workdir=tmp_path / "moved", quiet=True)  # fmt: skip
    stayed = fit("mlp", data(), recipe, fields=fields, workdir=tmp_path / "stayed", quiet=True)
    assert len(moved.history) == len(stayed.history) == 3
    for one, other in zip(moved.history, stayed.history, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert_same((0, moved.variables), (0, stayed.variables))


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parallel", "mesh", "message"),
    [
        ("jit", "data=16", "16 devices, 8 available"),
        ("jit", "rows=2", "--mesh rows=2: .*data=N,model=M"),
        ("jit", "data=2,data=4", "data=N"),
        ("jit", "data=0", "data=N"),
        ("jit", "data", "data=N"),
        ("jit", "data=-2", "--mesh data=-2"),
        ("jit", "data=9", "9 devices, 8 available"),
        ("pmap", "fsdp=4", "--mesh data=4"),
        ("xmap", "", "--parallel xmap"),
    ],
)
def test_impossible_meshes_are_refused(parallel, mesh, message):
    with pytest.raises(ValueError, match=message):
        parse_parallelism(parallel, mesh)


def test_meshes_are_parsed(monkeypatch):
    """The environment variable is the default of the option; without both, all devices are along "data"."""
    assert parse_parallelism(mesh=" data = 4 , model=2") == mesh.Parallelism("jit", (("data", 4), ("model", 2)))
    assert parse_parallelism("pmap", "data=8") == mesh.Parallelism("pmap", (("data", 8),))
    assert parse_parallelism().is_single_device  # the tests set ZOO_MESH
    monkeypatch.setenv("ZOO_MESH", "fsdp=2")
    assert parse_parallelism() == mesh.Parallelism("jit", (("fsdp", 2),))
    assert parse_parallelism(mesh="data=4") == mesh.Parallelism("jit", (("data", 4),))
    monkeypatch.setenv("ZOO_MESH", "nonsense")
    with pytest.raises(ValueError, match="environment variable ZOO_MESH=nonsense"):
        parse_parallelism()
    monkeypatch.delenv("ZOO_MESH")
    assert parse_parallelism() == mesh.Parallelism("jit", (("data", 8),))


def test_several_processes_use_all_devices_and_no_pmap(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert parse_parallelism(mesh="data=4,model=2").devices == 8
    with pytest.raises(ValueError, match=r"--mesh data=4: .*8"):
        parse_parallelism(mesh="data=4")
    with pytest.raises(ValueError, match="--parallel pmap"):
        parse_parallelism("pmap", "data=8")


@pytest.mark.parametrize(
    ("method", "axes", "devices", "single", "text"),
    [("jit", (), 1, True, "jit over data=1"), ("jit", (("data", 1),), 1, True, "jit over data=1"),
     ("pmap", (("data", 1),), 1, False, "pmap over data=1"),
     ("jit", (("data", 4), ("model", 2)), 8, False, "jit over data=4,model=2")],
)  # fmt: skip
def test_parallelism(method, axes, devices, single, text):
    parallelism = mesh.Parallelism(method, axes)
    assert (parallelism.devices, parallelism.is_single_device, str(parallelism)) == (devices, single, text)
    assert parallelism.axis_name == ("batch" if method == "pmap" else None)
    assert parallelism.axis_size("model") == dict(axes).get("model", 1)


@pytest.mark.parametrize(
    ("batch", "micro", "message"),
    [
        (20, 0, "a batch of 20 .* 8 devices.*--batch-size 16 or 24.*--mesh data=5"),
        (3, 0, "--batch-size 8.*--mesh data=3"),
        (16, 4, "a micro-batch of 4 .* 8 devices.*--micro-batch 8.*--mesh data=4"),
    ],
)
def test_sizes_that_divide_are_suggested(batch, micro, message):
    recipe = dataclasses.replace(RECIPE, batch_size=batch, micro_batch=micro)
    with pytest.raises(ValueError, match=message):
        make_plan("mlp", data(), recipe, parallelism=parse_parallelism(mesh="data=8"))


def test_pmap_is_never_advised_a_micro_batch(tmp_path, memory_of):
    arguments = {
        "fields": {"widths": (8,), "image_size": 8},
        "parallelism": parse_parallelism("pmap", "data=2"),
        "quiet": True,
    }
    with pytest.raises(ValueError, match=r"--micro-batch .*--parallel pmap"):
        fit("mlp", data(), RECIPE, workdir=tmp_path / "auto", auto_micro_batch=True, **arguments)
    memory_of(1500)
    with pytest.raises(memory.OutOfMemoryError, match="drop --parallel pmap and use --micro-batch auto"):
        fit("mlp", data(), RECIPE, workdir=tmp_path / "run", **arguments)


def test_a_single_device_is_not_sharded(monkeypatch):
    """No mesh, no placement, no copy of the batch: the plain jax.jit."""
    monkeypatch.setattr(memory, "available_bytes", lambda parallelism: None)
    monkeypatch.setattr(mesh, "mesh_of", None)
    for name in ("place", "batch_sharding", "replicated", "shardings"):
        monkeypatch.setattr(mesh, name, None)
    job = make_plan("mlp", data(), RECIPE, fields={"widths": (8,), "image_size": 8})
    state, batch = job.first_state(), {"image": np.zeros(3)}
    assert job.shard_state(state) is state and mesh.shard_batch(job.parallelism, batch) is batch
    lowered = []
    monkeypatch.setattr(compile, "jit_for_platform", lambda step, **options: lowered.append(options) or Jitted())
    job.compile_step(job.segments[0], state)
    assert lowered == [{"donate": (0,)}]


class Jitted:
    """Stands in for the result of jax.jit."""

    def lower(self, *arguments):
        return self

    def compile(self):
        return self


# --- memory -----------------------------------------------------------------------------------------------------------


class Compiled:
    """Stands in for a compiled step that needs 1,000 bytes and 100 for each image of a forward pass."""

    def __init__(self, job):
        self.bytes = 1000 + 100 * (job.recipe.micro_batch or job.batch_size)


@pytest.fixture
def memory_of(monkeypatch):
    """Set the available bytes; steps are not compiled, and the estimate from shapes refuses nothing."""
    monkeypatch.setattr(memory, "require_room", lambda *arguments, **options: None)
    monkeypatch.setattr(memory, "required_bytes", lambda step: step.bytes)
    monkeypatch.setattr(planning.Plan, "compile_step", lambda job, segment, state: Compiled(job))
    return lambda size: monkeypatch.setattr(memory, "available_bytes", lambda parallelism: size)


@pytest.mark.parametrize(("available", "fits"), [(2600, 0), (2599, 8), (1800, 8), (1500, 4), (1100, 1), (1099, None)])
def test_the_largest_micro_batch_that_fits(tmp_path, memory_of, monkeypatch, available, fits):
    """A divisor of 16, recorded in the run: with more memory later the run keeps it."""
    arguments = {"fields": {"widths": (8,), "image_size": 8}, "workdir": tmp_path / "run", "auto_micro_batch": True}
    monkeypatch.setattr(loop, "train", lambda job, *rest: stop(f"trains with {job.recipe.micro_batch}"))
    memory_of(available)
    if fits is None:
        with pytest.raises(memory.OutOfMemoryError, match="no micro-batch fits either"):
            fit("mlp", data(), RECIPE, quiet=True, **arguments)
        return
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt, match=f"trains with {fits}"):
            fit("mlp", data(), RECIPE, quiet=True, **arguments)
        assert json.loads((tmp_path / "run/config.json").read_text())["recipe"]["micro_batch"] == fits
        memory_of(10**6)


def stop(reason):
    raise KeyboardInterrupt(reason)


def test_auto_does_not_change_the_configuration_of_another_run(tmp_path, memory_of):
    """Nor of one that has begun but has no save yet."""
    arguments = {"fields": {"widths": (8,), "image_size": 8}, "workdir": tmp_path / "run", "quiet": True}
    memory_of(1500)
    with pytest.raises(memory.OutOfMemoryError):
        fit("mlp", data(), RECIPE, **arguments)
    before = (tmp_path / "run/config.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds another run: recipe\.seed is 0, not 5"):
        fit("mlp", data(), dataclasses.replace(RECIPE, seed=5), auto_micro_batch=True, **arguments)
    with run.lock_folder(tmp_path / "run"), pytest.raises(ValueError, match="another process is training"):
        fit("mlp", data(), RECIPE, auto_micro_batch=True, **arguments)
    assert (tmp_path / "run/config.json").read_bytes() == before


def test_only_parameters_split_over_fsdp_are_gathered():
    """Parameters split over "model" stay split in the same mesh."""
    parallelism = parse_parallelism(mesh="model=2,fsdp=4")
    params = {"hidden1": {"kernel": np.zeros((64, 1024), np.float32), "bias": np.zeros(1024, np.float32)}}
    gather = jax.jit(lambda params: mesh.gather_fsdp(parallelism, models.create("mlp"), params))
    split = jax.device_put(params, mesh.shardings(parallelism, models.create("mlp"), params, params))
    assert gather(split)["hidden1"]["kernel"].sharding.spec == split["hidden1"]["kernel"].sharding.spec


def test_too_little_memory_ends_a_run_before_its_first_step(tmp_path, memory_of):
    memory_of(1500)
    with pytest.raises(
        memory.OutOfMemoryError, match=r"16 images needs .* per device.*--micro-batch 4.*--micro-batch auto"
    ):
        fit("mlp", data(), RECIPE, fields={"widths": (8,), "image_size": 8}, workdir=tmp_path / "run", quiet=True)


def test_auto_uses_the_micro_batch_of_the_advice(tmp_path, memory_of, monkeypatch):
    """The run that did not fit left a folder with its configuration, which may still change."""
    arguments = {"fields": {"widths": (8,), "image_size": 8}, "workdir": tmp_path / "run", "quiet": True}
    memory_of(1500)
    with pytest.raises(memory.OutOfMemoryError, match="or --micro-batch auto"):
        fit("mlp", data(), RECIPE, **arguments)
    monkeypatch.setattr(loop, "train", lambda job, *rest: stop(f"trains with {job.recipe.micro_batch}"))
    with pytest.raises(KeyboardInterrupt, match="trains with 4"):
        fit("mlp", data(), RECIPE, auto_micro_batch=True, **arguments)


def test_memory_of_the_last_segment_is_checked_before_the_first_step(tmp_path, memory_of, monkeypatch):
    """Growing images need most at the end; that step is compiled once."""
    recipe = dataclasses.replace(RECIPE, progressive=(8, 16), image_size=0)
    arguments = {"fields": {"width": 4}, "workdir": tmp_path / "run", "quiet": True}
    sizes = []
    compiled = planning.Plan.compile_step
    monkeypatch.setattr(
        planning.Plan, "compile_step", lambda job, *rest: sizes.append(rest[0].preprocess.size) or compiled(job, *rest)
    )
    monkeypatch.setattr(loop, "resume", lambda *rest: stop("trains"))
    memory_of(2599)
    with pytest.raises(memory.OutOfMemoryError, match="--micro-batch 8, which fits"):
        fit("resnet20", data(), recipe, **arguments)
    memory_of(2600)
    with pytest.raises(KeyboardInterrupt, match="trains"):
        fit("resnet20", data(), recipe, **arguments)
    assert set(sizes) == {(16, 16)}


def test_a_compiler_without_memory_gives_one_line(tmp_path, monkeypatch):
    """XLA for TPU fails while compiling."""

    def refuse(job, segment, state):
        if (job.recipe.micro_batch or job.batch_size) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")
        return Compiled(job)

    monkeypatch.setattr(planning.Plan, "compile_step", refuse)
    monkeypatch.setattr(memory, "required_bytes", lambda step: step.bytes)
    monkeypatch.setattr(memory, "available_bytes", lambda parallelism: 10**6)
    arguments = {"fields": {"widths": (8,), "image_size": 8}, "workdir": tmp_path / "run", "quiet": True}
    with pytest.raises(
        memory.OutOfMemoryError, match="16 images needs more memory than a device has; use --micro-batch 2"
    ):
        fit("mlp", data(), RECIPE, **arguments)


@pytest.mark.parametrize("micro_batch", [512, 64], ids=["unrolled", "in a loop"])
def test_micro_batches_need_less_memory(micro_batch):
    """Each waits for the one before; otherwise the activations of all would be in memory at once."""
    fields = {"widths": (64, 64, 64), "image_size": 8}

    def bytes_with(micro_batch):
        recipe = dataclasses.replace(RECIPE, batch_size=2048, micro_batch=micro_batch, augment=())
        job = make_plan("mlp", data(count=2048), recipe, fields=fields, parallelism=parse_parallelism())
        return memory.required_bytes(job.compile_step(*job.largest_step()))

    assert bytes_with(micro_batch) < 0.6 * bytes_with(0)


def test_a_dry_run_reports_a_shortage(memory_of):
    job = make_plan("mlp", data(), RECIPE, fields={"widths": (8,), "image_size": 8}, parallelism=parse_parallelism())
    memory_of(1500)
    with pytest.raises(memory.OutOfMemoryError, match="--micro-batch 4, which fits"):
        dry_run.dry_run(job, lambda line: None)
    lines: list[str] = []
    with pytest.raises(AttributeError):  # the stand-in for the compiled step cannot be called
        automatic = TrainRequest(
            "mlp", data(), RECIPE, fields={"widths": (8,), "image_size": 8}, changes={"micro_batch": "auto"}
        )
        dry_run.dry_run(planning.make_plan(automatic, lines.append), lines.append)
    assert any("Micro-batch 4" in line for line in lines)


def test_collectives_are_read_from_a_compiled_program():
    """Of known sizes: a sum over all eight devices, a gather over pairs and one over all."""
    from benchmarks.communication import collectives, sent

    parallelism = parse_parallelism(mesh="data=4,model=2")
    rows = mesh.batch_sharding(parallelism)
    program = jax.jit(lambda x: x.sum(0), in_shardings=rows, out_shardings=mesh.replicated(parallelism))
    (found,) = collectives(program.lower(np.ones((16, 32), np.float32)).compile().as_text(), 8)
    assert (found.kind, found.bytes, found.group) == ("all-reduce", 128, 8)
    assert sent([found], 8, 2, 16) == 128 * 2 * 7 / 8
    assert sent([found], 64, 2, 16) == 128 * 2 * 63 / 64
    (pair,) = collectives("%g = f32[16,8]{1,0} all-gather(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}", 8)
    assert sent([pair], 1024, 2, 64) == 16 * 8 * 4 / 2
    (long,) = collectives("%g = f32[64,8]{1,0} all-gather(%x), replica_groups=[1,8]<=[8]", 8)
    assert sent([long], 16, 0, 64) == 2 * 64 * 8 * 4 * 15 / 16


def test_the_traffic_of_a_training_is_measured():
    """Of parameters and gradients at least: lenet5 has 61,706 parameters in float32."""
    from benchmarks.communication import measure

    found, flops = measure("lenet5", "mnist", 2, "fsdp=8")
    assert {each.kind for each in found} >= {"all-gather"} and sum(each.bytes for each in found) > 4 * 61_706
    assert flops > 2 * 2 * 400_000, "of two images, forward at least"
