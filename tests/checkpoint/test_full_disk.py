"""What happens to a checkpoint when the disk is full or writing fails."""

import collections
import errno
import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1

import zoo
from zoo import models
from zoo.checkpoint.run_state import save_state
from zoo.data.images.preprocess import Preprocess

PREPROCESS = Preprocess(size=(8, 8), resize=(8, 8), channels="L", mean=(0.1,), std=(0.5,))


@pytest.fixture(scope="module")
def network():
    model = models.create("mlp", widths=(4,), num_classes=2, image_size=8)
    return model, jax.tree.map(np.asarray, models.init(model, 0, (8, 8, 1)))


@pytest.mark.parametrize("fault", ["space", "TensorStore", "other"])
def test_one_error_names_the_folder_and_the_checkpoint_before_stays(tmp_path, network, monkeypatch, fault):
    zoo.save(tmp_path / "ckpt", *network, ("a", "b"), PREPROCESS, source="first")
    usage = collections.namedtuple("usage", "total used free")

    def fail(path, tree):
        (path.parent / f"{path.name}.orbax-checkpoint-tmp").mkdir()
        text = (
            "RESOURCE_EXHAUSTED: Failed writing: No space left on device" if fault == "TensorStore" else "broken\nmore"
        )
        raise ValueError(text)

    if fault == "space":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 0, 100))
    else:
        monkeypatch.setattr(v1, "save" if hasattr(v1, "save") else "save_pytree", fail)
    with pytest.raises(OSError, match="ckpt") as raised:
        zoo.save(tmp_path / "ckpt", *network, ("a", "b"), PREPROCESS, source="second")
    assert raised.value.errno == (errno.EIO if fault == "other" else errno.ENOSPC)
    assert "\n" not in raised.value.strerror
    assert not list(tmp_path.rglob("*.orbax-checkpoint-tmp"))
    monkeypatch.undo()
    assert zoo.load(tmp_path / "ckpt").card.source == "first"
    zoo.save(tmp_path / "ckpt", *network, ("a", "b"), PREPROCESS, source="third")
    assert zoo.load(tmp_path / "ckpt").card.source == "third"


@pytest.mark.parametrize("part", ["write_json", "write_manifest"])
def test_a_small_file_that_cannot_be_written_is_the_same(tmp_path, network, monkeypatch, part):
    """Such an error names no file by itself, and what was written would keep the disk full."""
    zoo.save(tmp_path / "ckpt", *network, ("a", "b"), PREPROCESS, source="first")
    save_state(tmp_path / "state", 1, {"a": np.ones(3)}, {"step": 1})

    def fail(*arguments, **options):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(f"zoo.checkpoint.format.{part}", fail)
    monkeypatch.setattr(f"zoo.checkpoint.run_state.{part}", fail)
    with pytest.raises(OSError, match="ckpt") as raised:
        zoo.save(tmp_path / "ckpt", *network, ("a", "b"), PREPROCESS, source="second")
    assert raised.value.errno == errno.EFBIG
    with pytest.raises(OSError, match="step_000000002"):
        save_state(tmp_path / "state", 2, {"a": np.ones(3)}, {"step": 2})
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt", "state"]
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step_000000001"]
    assert zoo.load(tmp_path / "ckpt").card.source == "first"
