"""The rolling state of a run: structure, number of saves kept, damaged saves and leftovers of interrupted ones."""

import json

import jax
import numpy as np
import optax
import pytest

from zoo import checkpoint
from zoo.checkpoint import manifest, run_state


def state(step):
    """Return a training state with every kind of node: nested, empty, masked, scalar and None."""
    params = {"a": {"kernel": np.full((2, 3), step, np.float32)}, "b": np.arange(3, dtype=np.float32)}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(0.1), optax.masked(optax.trace(0.9), {"a": True, "b": False})
    )
    opt_state = jax.tree.map(np.asarray, optimizer.init(params))
    return {"step": np.int32(step), "params": params, "batch_stats": {}, "opt": opt_state, "ema": None}


def restore(folder, warn=print):
    return checkpoint.read_state(checkpoint.latest_intact_save(folder, warn), state)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_damaged_save_that_was_not_used_does_not_take_the_place_of_an_intact_one(tmp_path):
    for step in (10, 20):
        checkpoint.save_state(tmp_path, step, {"a": np.float32(step)}, {})
    (tmp_path / "step_000000020" / "progress.json").write_text("damaged")
    assert checkpoint.latest_intact_save(tmp_path, lambda line: None).name == "step_000000010"
    checkpoint.save_state(tmp_path, 15, {"a": np.float32(15)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000010", "step_000000015"]


def test_a_state_keeps_its_structure_and_bits(tmp_path):
    saved = checkpoint.save_state(tmp_path, 3, state(3), {"step": 3, "x": [0.1, None]})
    assert saved == tmp_path / "step_000000003"
    arrays, progress = restore(tmp_path)
    assert progress == {"step": 3, "x": [0.1, None]}
    assert jax.tree.structure(arrays) == jax.tree.structure(state(0))
    for actual, expected in zip(jax.tree.leaves(arrays), jax.tree.leaves(state(3)), strict=True):
        assert actual.dtype == expected.dtype and np.array_equal(actual, expected)


def test_the_newest_saves_are_kept(tmp_path):
    for step in (1, 9, 10):
        checkpoint.save_state(tmp_path, step, {"a": np.float32(step)}, {"step": step})
    assert names(tmp_path) == ["step_000000009", "step_000000010"]  # two by default
    checkpoint.save_state(tmp_path, 11, {"a": np.float32(11)}, {}, keep=3)
    assert names(tmp_path) == ["step_000000009", "step_000000010", "step_000000011"]
    checkpoint.save_state(tmp_path, 12, {"a": np.float32(12)}, {}, keep=1)
    assert names(tmp_path) == ["step_000000012"]
    assert checkpoint.latest_save(tmp_path) == tmp_path / "step_000000012"


def test_saving_a_step_again_replaces_it(tmp_path):
    for value in (1, 2):
        checkpoint.save_state(tmp_path, 5, {"a": np.float32(value)}, {"value": value})
    arrays, progress = checkpoint.read_state(tmp_path / "step_000000005", lambda step: {"a": np.float32(0)})
    assert (arrays["a"], progress) == (2, {"value": 2}) and names(tmp_path) == ["step_000000005"]


def test_other_folders_are_not_saves(tmp_path):
    assert checkpoint.latest_save(tmp_path / "missing") is None
    assert checkpoint.latest_intact_save(tmp_path / "missing") is None
    for name in ("step_", "step_12x", "step_x", "other_000000009"):
        (tmp_path / name).mkdir()
    assert checkpoint.latest_save(tmp_path) is None and checkpoint.latest_intact_save(tmp_path) is None
    assert len(names(tmp_path)) == 4


def test_the_save_before_a_damaged_one_is_used(tmp_path):
    for step in (1, 2):
        checkpoint.save_state(tmp_path, step, state(step), {"step": step})
    (tmp_path / "step_000000002" / "progress.json").write_text("{}")
    (tmp_path / ".step_000000003.tmp").mkdir()
    warnings = []
    assert restore(tmp_path, warnings.append)[1] == {"step": 1}
    assert len(warnings) == 1 and "step_000000002" in warnings[0] and "progress.json" in warnings[0]
    assert names(tmp_path) == ["step_000000001", "step_000000002"]  # the leftover is deleted, the damaged save is not
    assert checkpoint.latest_save(tmp_path) == tmp_path / "step_000000002"  # unchecked


def test_without_an_intact_save_a_run_starts_from_step_0(tmp_path):
    for step in (1, 2):
        checkpoint.save_state(tmp_path, step, state(step), {})
        (tmp_path / f"step_00000000{step}" / "progress.json").unlink()
    warnings = []
    assert checkpoint.latest_intact_save(tmp_path, warnings.append) is None
    assert ["step 0" in line for line in warnings] == [False, True]


def test_a_damaged_manifest_is_not_taken_for_a_newer_format(tmp_path):
    for step in (1, 2):
        checkpoint.save_state(tmp_path, step, state(step), {"step": step})
    file = tmp_path / "step_000000002" / "manifest.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 3'))
    assert restore(tmp_path)[1] == {"step": 1}


def test_a_save_of_an_unreadable_format_is_an_error_and_not_skipped(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save_state(tmp_path, step, state(step), {})
    monkeypatch.setattr(manifest, "READABLE_FORMATS", (1,))
    with pytest.raises(ValueError, match=r"step_000000002.*format version 2") as error:
        checkpoint.latest_intact_save(tmp_path)
    assert not isinstance(error.value, checkpoint.CorruptCheckpointError)


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.zeros((2, 4), np.float32), "b": np.zeros(3)},
        {"a": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((2, 3), np.float32), "b": np.zeros(3), "c": np.zeros(())},
    ],
    ids=["shape", "missing", "extra"],
)
def test_a_state_of_another_structure_is_rejected(other, tmp_path):
    saved = checkpoint.save_state(tmp_path, 7, {"a": np.zeros((2, 3), np.float32), "b": np.zeros(3)}, {})
    steps = []

    def like(step):
        steps.append(step)
        return other

    with pytest.raises(ValueError, match="step_000000007"):
        checkpoint.read_state(saved, like)
    assert steps == [7]


def test_progress_is_json_and_part_of_the_manifest(tmp_path):
    saved = checkpoint.save_state(tmp_path, 1, {"a": np.zeros(1)}, {"é": 1.5})
    text = (saved / run_state.PROGRESS).read_text(encoding="utf-8")
    assert json.loads(text) == {"é": 1.5} and text.count("\n") == 1  # indented, a long history takes times longer
    assert run_state.PROGRESS in json.loads((saved / manifest.MANIFEST).read_text())["files"]


def test_what_a_kill_within_a_save_left_is_deleted_when_the_run_resumes(tmp_path):
    """A third save if the oldest was not deleted yet, half of one, temporary and replaced folders."""
    for step in (8, 9, 10):
        checkpoint.save_state(tmp_path, step, {"a": np.float32(step)}, {"step": step}, keep=3)
    (tmp_path / "step_000000008" / "manifest.json").unlink()
    (tmp_path / "step_000000010").rename(tmp_path / ".step_000000010.old")
    (tmp_path / ".step_000000010.tmp").mkdir()
    assert checkpoint.latest_intact_save(tmp_path).name == "step_000000010"
    assert names(tmp_path) == ["step_000000009", "step_000000010"]


def test_more_than_a_billion_steps_are_ordered(tmp_path):
    for step in (999_999_999, 1_000_000_000, 1_000_000_001):
        checkpoint.save_state(tmp_path, step, {"a": np.float32(step)}, {"step": step})
    assert names(tmp_path) == ["step_1000000000", "step_1000000001"]
