"""Parts of arrays: copied from the devices, written by each process, read again by other devices."""

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import flip_bit
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo import checkpoint
from zoo.checkpoint import manifest, run_state, shards
from zoo.checkpoint.format import write_arrays
from zoo.checkpoint.shards import HostArray, snapshot
from zoo.trees import flatten


def mesh(**axes):
    devices = np.array(jax.devices()[: int(np.prod(list(axes.values())))])
    return Mesh(devices.reshape(tuple(axes.values())), tuple(axes))


def values():
    rng = np.random.default_rng(0)
    return {
        "rows": rng.normal(size=(16, 6)).astype(np.float32), "columns": rng.normal(size=(3, 24)),
        "both": np.arange(64, dtype=np.int32).reshape(8, 8), "half": np.arange(16).astype(jnp.bfloat16),
        "whole": rng.integers(0, 255, 5).astype(np.uint8), "empty": np.zeros((0, 4), np.float32),
        "deep": {"count": np.array(7, np.uint32), "mask": np.array([True, False])},
    }  # fmt: skip


#: How `values` are split over 8 devices.
SPECS = {
    "rows": ("a", "b"), "columns": (None, ("a", "b")), "both": ("b", "a"), "half": (("a", "b"),), "whole": (),
    "empty": (), "deep/count": (), "deep/mask": (),
}  # fmt: skip


def sharded():
    over = mesh(a=4, b=2)
    tree = values()
    with jax.enable_x64(True):
        flat = {key: jax.device_put(leaf, NamedSharding(over, PartitionSpec(*SPECS[key])))
                for key, leaf in flatten(tree).items()}  # fmt: skip
    deep = {key.split("/")[1]: flat.pop(key) for key in list(flat) if "/" in key}
    return {**flat, "deep": deep}


def assert_equal(actual, expected):
    actual, expected = flatten(actual), flatten(expected)
    assert actual.keys() == expected.keys()
    for key, leaf in expected.items():
        other = np.asarray(actual[key])
        assert (other.dtype, other.shape, other.tobytes()) == (leaf.dtype, leaf.shape, leaf.tobytes()), key


@pytest.fixture
def saved(tmp_path):
    return checkpoint.save_state(tmp_path, 3, snapshot(sharded(), owned_only=True), {"step": 3})


def test_parts_of_eight_devices_are_read_whole(saved):
    files = sorted(path.name for path in (saved / "arrays").iterdir())
    assert files == ["process_00000.safetensors"]
    assert_equal(checkpoint.read_arrays_of(saved), values())
    assert_equal(checkpoint.read_arrays_of(saved, "deep"), values()["deep"])


@pytest.mark.parametrize(
    ("axes", "spec"),
    [({"data": 2}, ()), ({"x": 8}, ("x",)), ({"x": 2, "y": 4}, (("y", "x"),)), ({"x": 1}, ("x",)), ({"x": 3}, ())],
)
def test_parts_are_read_onto_other_devices(saved, axes, spec):
    """Bit for bit: replicated on two, split otherwise, on one."""
    over = mesh(**axes)

    def wanted(leaf):
        divides = leaf.ndim and leaf.shape[0] % over.size == 0
        sharding = NamedSharding(over, PartitionSpec(*spec if divides else ()))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with jax.enable_x64(True):
        arrays, progress = checkpoint.read_state(saved, lambda step: jax.tree.map(wanted, values()))
        assert_equal(arrays, values())
    assert progress == {"step": 3}
    assert all(leaf.sharding.mesh == over for leaf in jax.tree.leaves(arrays))


def test_a_file_is_hashed_once_as_it_is_written(tmp_path, monkeypatch):
    """Only the small files are read again; the manifest is right all the same."""
    read, digest = [], manifest.file_sha256
    monkeypatch.setattr(manifest, "file_sha256", lambda file: read.append(file.name) or digest(file))
    monkeypatch.setattr(shards, "_CHUNK", 100)
    saved = checkpoint.save_state(tmp_path, 3, snapshot(sharded()), {"step": 3})
    assert read == ["progress.json"]
    manifest.check_manifest(saved)
    assert "arrays/process_00000.safetensors" in json.loads((saved / "manifest.json").read_text())["files"]


@pytest.mark.parametrize("where", [4, 300, -1])
def test_a_flipped_bit_is_noticed_and_named(saved, where):
    file = saved / "arrays/process_00000.safetensors"
    data = file.read_bytes()
    file.write_bytes(flip_bit(data, where % len(data)))
    with pytest.raises(checkpoint.CorruptCheckpointError, match=r"process_00000\.safetensors"):
        manifest.check_manifest(saved)


def test_a_snapshot_is_not_changed_by_a_step_that_takes_over_its_buffers():
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    split = NamedSharding(mesh(x=8), PartitionSpec("x"))
    state = {"a": jax.device_put(np.zeros((8, 1000), np.float32), split), "b": jnp.zeros(1000), "c": np.zeros(3)}
    before = snapshot(state)
    for _ in range(3):
        state = step(state)
    assert isinstance(before["a"], HostArray) and isinstance(before["b"], np.ndarray)
    assert not np.any(before["a"].whole()) and not np.any(before["b"]) and not np.any(before["c"])
    again = before["a"].on_devices()
    assert again.sharding == split and not np.any(again)


def test_a_state_that_orbax_wrote_is_read(tmp_path):
    """Saves of earlier versions still resume."""
    tree = {key: leaf for key, leaf in values().items() if key != "empty"}
    folder = tmp_path / "step_000000003"
    folder.mkdir()
    write_arrays(folder / "arrays", tree)
    (folder / "progress.json").write_text('{"step": 3}')
    manifest.write_manifest(folder)
    over = NamedSharding(mesh(x=8), PartitionSpec("x"))
    like = {**tree, "rows": jax.ShapeDtypeStruct((16, 6), np.float32, sharding=over)}
    arrays, _ = checkpoint.read_state(checkpoint.latest_intact_save(tmp_path), lambda step: like)
    assert arrays["rows"].sharding == over
    assert_equal(arrays, tree)


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.fixture
def as_processes(monkeypatch):
    """Return a function that calls another one in threads which pretend to be processes, and returns their results."""
    own = threading.local()
    monkeypatch.setattr(jax, "process_index", lambda: getattr(own, "index", 0))

    def call(count, function):
        results, told = [None] * count, {}
        barrier = threading.Barrier(count)

        def exchange(name, value):
            told[own.index] = json.loads(json.dumps([name, value]))
            barrier.wait(20)
            answers = [told[index] for index in range(count)]
            barrier.wait(20)
            assert {occasion for occasion, _ in answers} == {name}
            return [answer for _, answer in answers]

        def work(index):
            own.index = index
            try:
                results[index] = function(index, exchange)
            except Exception as error:
                results[index] = error

        group = [threading.Thread(target=work, args=(index,)) for index in range(count)]
        for thread in group:
            thread.start()
        for thread in group:
            thread.join()
        return results

    return call


def part_of(index, count, array):
    """Return the rows of an array that process `index` holds."""
    rows = len(array) // count
    bounds = ((index * rows, (index + 1) * rows), *((0, size) for size in array.shape[1:]))
    return HostArray(array.shape, None, {bounds: array[index * rows : (index + 1) * rows]}, frozenset([bounds]))


def save(folder, index, exchange, count=4):
    array = values()["rows"]
    nothing = HostArray((5,), None, {}, frozenset())
    tree = {"rows": part_of(index, count, array), "whole": nothing if index else values()["whole"]}
    return checkpoint.save_state(folder, 3, tree, {"step": 3}, exchange=exchange)


def test_each_process_writes_its_own_parts(tmp_path, as_processes):
    paths = as_processes(4, lambda index, exchange: save(tmp_path, index, exchange))
    assert paths == [tmp_path / "step_000000003"] * 4
    listed = json.loads((paths[0] / "manifest.json").read_text())["files"]
    assert sorted(listed) == [*(f"arrays/process_0000{index}.safetensors" for index in range(4)), "progress.json"]
    assert checkpoint.latest_intact_save(tmp_path) == paths[0]
    assert_equal(checkpoint.read_arrays_of(paths[0]), {key: values()[key] for key in ("rows", "whole")})


def test_all_processes_learn_that_one_cannot_write(tmp_path, as_processes, monkeypatch):
    write = run_state.write_shards

    def write_or_fail(folder, tree):
        if jax.process_index() == 2:
            raise OSError(28, "No space left on device")
        return write(folder, tree)

    monkeypatch.setattr(run_state, "write_shards", write_or_fail)
    errors = as_processes(4, lambda index, exchange: save(tmp_path, index, exchange))
    assert all(isinstance(error, OSError) and "step_000000003" in str(error) for error in errors)
    assert errors[2].errno == 28 and all("process 2 has failed" in str(errors[index]) for index in (0, 1, 3))
    assert not list(tmp_path.iterdir())


def test_processes_with_folders_of_their_own_are_told_so(tmp_path, as_processes, monkeypatch):
    monkeypatch.setattr(run_state, "VISIBLE_SECONDS", 0.1)
    errors = as_processes(2, lambda index, exchange: save(tmp_path / str(index), index, exchange, 2))
    assert all("same folder" in str(error) for error in errors)


def test_missing_parts_are_noticed(tmp_path, as_processes):
    """Also where the manifest does not list them."""
    path = as_processes(2, lambda index, exchange: save(tmp_path, index, exchange, 2))[0]
    (path / "arrays/process_00001.safetensors").unlink()
    with pytest.raises(checkpoint.CorruptCheckpointError, match="process_00001"):
        manifest.check_manifest(path)
    with pytest.raises(checkpoint.CorruptCheckpointError, match="parts of rows"):
        checkpoint.read_arrays_of(path)


def test_a_file_that_is_none_is_an_error_that_names_it(saved):
    (saved / "arrays/process_00000.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(checkpoint.CorruptCheckpointError, match="process_00000"):
        checkpoint.read_arrays_of(saved)


def test_a_copy_goes_into_the_memory_that_was_reserved_or_used_before():
    """Where it has the right shape and type; what is not needed any more is let go."""
    tree = sharded()
    buffers = shards.reserve(tree)
    reserved = {id(array) for array in buffers.values()}
    for _ in range(2):
        assert_equal(jax.tree.map(lambda leaf: leaf.whole() if isinstance(leaf, HostArray) else leaf,
                                  snapshot(tree, owned_only=True, buffers=buffers)), values())  # fmt: skip
        assert {id(array) for array in buffers.values()} == reserved
    other = {**tree, "both": jnp.zeros((5, 5)), "deep": {}}
    snapshot(other, buffers=buffers)
    assert len(buffers) < len(reserved) and not {id(array) for array in buffers.values()} <= reserved
