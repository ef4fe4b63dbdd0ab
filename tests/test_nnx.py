"""The page on Flax NNX: its snippet runs as printed, and a network is the same on either side of the bridge."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from zoo.trees import flatten, unflatten

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "use-with-nnx.md"


@pytest.mark.slow  # .ci/run has a step for it
def test_the_snippet_loads_trains_and_saves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names = {}
    exec(compile(text, str(PAGE), "exec"), names)
    loaded, images = names["loaded"], names["images"]
    expected, _ = loaded.model.apply(loaded.variables, images)
    np.testing.assert_array_equal(names["logits"], expected)
    assert 0 < names["after"] < names["before"]
    again = zoo.load("digits-nnx")
    changed = flatten(jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), again.variables, loaded.variables))
    assert all(changed.values()), changed
    found = flatten(nnx.to_pure_dict(nnx.state(names["net"])))
    for path, leaf in flatten(again.variables["params"]).items():
        np.testing.assert_array_equal(found[path], leaf)


@pytest.mark.slow
def test_batch_statistics_are_those_of_the_checkpoint_and_change_in_training():
    loaded = zoo.load("resnet20-cifar10")
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    net = nnx.bridge.ToNNX(loaded.model, rngs=nnx.Rngs(0)).lazy_init(images)
    state = nnx.state(net)
    leaves = {path.partition("/")[2]: leaf for path, leaf in flatten(loaded.variables).items()}
    assert len(leaves) == len(flatten(loaded.variables))
    nnx.replace_by_pure_dict(state, unflatten(leaves))
    nnx.update(net, state)
    expected, _ = loaded.model.apply(loaded.variables, images)
    np.testing.assert_allclose(net(images)[0], expected, atol=1e-5)
    (_, _), updates = loaded.model.apply(loaded.variables, images, train=True, mutable=["batch_stats"])
    net(images, train=True, mutable=["batch_stats"])
    found = flatten(nnx.to_pure_dict(nnx.state(net, nnx.BatchStat)))
    for path, leaf in flatten(updates["batch_stats"]).items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-5, err_msg=path)
