"""Saving while training goes on: what waits for it, its errors, and states that are split among devices."""

import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import make_plan, train

from zoo import checkpoint
from zoo.checkpoint import run_state
from zoo.data.sources import from_arrays
from zoo.distributed import mesh
from zoo.distributed.mesh import parse_parallelism
from zoo.inference.folding import fold
from zoo.training import loop, run, saving
from zoo.training.recipe import Recipe
from zoo.training.run import Progress
from zoo.training.saving import Saver
from zoo.training.step import eval_variables

RECIPE = Recipe(epochs=1, batch_size=16, optimizer="momentum", learning_rate=0.01, ema=0.9)
MODEL = {"fields": {"widths": (8,), "image_size": 8}, "quiet": True}
#: Nearly all parameters can be split over 8 devices.
WIDE = {"fields": {"widths": (1024, 512), "image_size": 8}}


def dataset():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 160)
    return from_arrays(((rng.integers(0, 120, (160, 8, 8)) + 40 * labels[:, None, None]).astype(np.uint8), labels))


def test_training_goes_on_during_a_save(tmp_path, monkeypatch):
    """The first save is not written until five more steps are done, after each of which another one is due."""
    later, order, write, process = threading.Event(), [], run_state.write_shards, loop.Trainer.process_metrics

    def write_shards(folder, tree):
        assert later.wait(60)
        order.append("written")
        return write(folder, tree)

    def process_metrics(trainer, step, metrics):
        process(trainer, step, metrics)
        order.append(step)
        if step == 6:
            later.set()

    monkeypatch.setattr(run_state, "write_shards", write_shards)
    monkeypatch.setattr(loop.Trainer, "process_metrics", process_metrics)
    train("mlp", dataset(), RECIPE, workdir=tmp_path / "run", save_seconds=0.0, **MODEL)
    assert order.index("written") > order.index(6)
    monkeypatch.undo()
    train("mlp", dataset(), RECIPE, workdir=tmp_path / "alone", **MODEL)
    saves = [checkpoint.latest_save(tmp_path / name / run.STATE) for name in ("run", "alone")]
    first, second = (jax.tree.leaves(checkpoint.read_arrays_of(save)) for save in saves)
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_an_error_of_the_thread_ends_the_training(tmp_path, monkeypatch):
    """As soon as the loop looks, with the folder that could not be written."""
    failed, write = threading.Event(), run_state.write_shards

    def write_shards(folder, tree):
        if folder.parent.name == ".step_000000002.tmp":
            return write(folder, tree)
        failed.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_state, "write_shards", write_shards)
    with pytest.raises(OSError, match="step_000000004") as error:
        train("mlp", dataset(), RECIPE, workdir=tmp_path / "run", save_steps=2, **MODEL)
    assert failed.is_set() and error.value.errno == 28
    assert [path.name for path in (tmp_path / "run" / run.STATE).iterdir()] == ["step_000000002"]


def fail():
    raise OSError("the disk is full")


def test_errors_of_a_thread_are_raised_once():
    saver = Saver()
    saver.check()
    saver.wait()
    for look in (saver.wait, lambda: saver.start(print), lambda: [saver.thread.join(), saver.check()]):
        saver.start(fail)
        with pytest.raises(OSError, match="disk is full"):
            look()
        saver.wait()


def test_the_end_waits_and_the_first_error_counts():
    done = []
    with Saver() as saver:
        saver.start(lambda: [threading.Event().wait(0.05), done.append(1)])
        saver.check()
    assert done == [1]
    with pytest.raises(OSError, match="disk is full"), Saver() as saver:
        saver.start(fail)
    with pytest.raises(KeyboardInterrupt), Saver() as saver:
        saver.start(lambda: [threading.Event().wait(0.05), done.append(2), fail()])
        raise KeyboardInterrupt
    assert done == [1, 2]


# --- states that are split among devices -----------------------------------------------------------------------------


def bytes_per_device():
    """Return the bytes of the live arrays on each device. Several arrays may be views of the same buffer."""
    held = {device: {} for device in jax.devices()}
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            held[shard.device][shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    return [sum(buffers.values()) for buffers in held.values()]


@pytest.fixture(scope="module")
def over_eight():
    return make_plan("mlp", dataset(), RECIPE, **WIDE, parallelism=parse_parallelism(mesh="fsdp=8"))


def test_no_device_ever_holds_the_whole_state(tmp_path, monkeypatch, over_eight):
    """From its initialisation through steps, evaluations and saves to the report."""
    before, held = max(bytes_per_device()), []
    for owner, name in ((loop.Trainer, "process_metrics"), (loop.Trainer, "save"), (loop, "compile_segment"),
                        (loop.report, "evaluate_split"), (loop.report, "evaluate_and_calibrate")):  # fmt: skip
        original = getattr(owner, name)

        def sample(*arguments, original=original, **options):
            held.append(max(bytes_per_device()) - before)
            result = original(*arguments, **options)
            held.append(max(bytes_per_device()) - before)
            return result

        monkeypatch.setattr(owner, name, sample)
    monkeypatch.setattr(loop, "read_result", lambda plan: SimpleNamespace(history=()))
    plan = make_plan("mlp", dataset(), RECIPE, **WIDE, parallelism=over_eight.parallelism, workdir=tmp_path / "run")
    loop.fit(plan, save_steps=5, quiet=True)
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(plan.abstract_state(plan.segments[0])))
    assert len(held) > 20 and max(held) < 0.2 * state


def test_a_state_is_initialised_where_it_will_be(over_eight):
    """With the values of one device, and without a whole copy of a leaf's random numbers on any."""
    plan = make_plan("mlp", dataset(), RECIPE, **WIDE)
    split, whole = over_eight.first_state(), plan.first_state()
    for one, other in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    kernel = split.variables["params"]["hidden2"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size / 8
    placed = over_eight.shard_state(whole)
    for part in ("variables", "opt_state", "ema"):
        assert jax.tree.leaves(getattr(split, part))
        jax.tree.map(lambda one, other: pytest.fail("placed otherwise") if one.sharding != other.sharding else None,
                     getattr(split, part), getattr(placed, part))  # fmt: skip


@pytest.mark.parametrize(
    "axes", ["data=2", "data=1", *(pytest.param(axes, marks=pytest.mark.slow) for axes in ("fsdp=2", "data=4,model=2"))]
)
def test_a_save_of_eight_devices_is_resumed_by_others(tmp_path_factory, over_eight, axes):
    """Bit for bit, state and best variables."""
    folder = tmp_path_factory.getbasetemp() / "eight"
    written = over_eight.first_state()
    best = eval_variables(written)
    if not folder.exists():
        arrays = {"state": checkpoint.snapshot(written, owned_only=True), "best": checkpoint.snapshot(best)}
        checkpoint.save_state(folder / run.STATE, 7, arrays, Progress(7).to_json())
    plan = make_plan("mlp", dataset(), RECIPE, **WIDE, parallelism=parse_parallelism(mesh=axes), workdir=folder)
    state, kept, progress = saving.resume(plan, lambda line: None)
    state, kept = plan.shard_state(state), checkpoint.on_devices(kept)
    assert progress.step == 7
    for one, other in zip(jax.tree.leaves((state, kept)), jax.tree.leaves((written, best)), strict=True):
        assert np.array_equal(one, other)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(
        lambda leaf: leaf.sharding, plan.shard_state(plan.first_state())
    )


def test_variables_that_are_split_are_folded_where_they_are():
    """To the bits of the host, and no part of a convolution leaves its device."""
    fields = {"blocks": (1,), "width": 32}
    plan = make_plan("resnet20", dataset(), RECIPE, fields=fields, parallelism=parse_parallelism(mesh="fsdp=8"))
    rng = np.random.default_rng(0)
    random = jax.tree.map(lambda leaf: rng.uniform(0.5, 2, leaf.shape).astype(leaf.dtype), plan.abstract_variables)
    variables = mesh.shard_variables(plan.parallelism, plan.model, random)
    shape = plan.preprocess.input_shape
    split, host = fold(plan.model, variables, shape), fold(plan.model, random, shape)
    jax.tree.map(np.testing.assert_array_equal, split, host)
    kernels = [leaf for leaf in jax.tree.leaves(split["params"]) if isinstance(leaf, jax.Array)]
    assert kernels and all(not leaf.sharding.is_fully_replicated for leaf in kernels if leaf.size >= 1024)
