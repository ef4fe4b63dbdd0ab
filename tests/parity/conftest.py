"""The reference implementations, where they are installed (docs/parity.md), and how they are compared with ours.

Golden values for everyone's tests are recorded by these tests: `ZOO_RECORD_GOLDEN=1 python -m pytest -m parity`.
"""

import importlib.util
import json
import os
import re
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import numpy as np
import pytest
from seeded import seeded_images, seeded_tensors

import zoo.models as models
from zoo.pretrained.convert import convert, export

GOLDEN = Path(__file__).parents[1] / "models" / "golden"


@pytest.fixture(scope="session")
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(2)
    return torch


@pytest.fixture(scope="session")
def torchvision(torch):
    """torchvision.models, also where its compiled operators do not load (beside a CPU build of torch).

    Importing it then fails on the first operator that it registers a fake for; so each is defined before.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        pytest.skip("torchvision is not installed")
    source = Path(spec.submodule_search_locations[0], "_meta_registrations.py").read_text()
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in sorted(set(re.findall(r"torchvision(?:::|\.)(\w+)", source))):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor a) -> Tensor")
    import torchvision.models

    yield torchvision.models
    del library


@pytest.fixture(scope="session")
def timm(torchvision):
    return pytest.importorskip("timm")


@pytest.fixture(scope="session")
def keras():
    return pytest.importorskip("keras")


@pytest.fixture(scope="session")
def cifar_resnet(torch):
    """blocks in each stage -> the network, under the name `module` that DataParallel gives it."""
    nn, f = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self, before, width, stride):
            super().__init__()
            self.stride, self.pad = stride, (width - before) // 2
            self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

        def forward(self, x):
            shortcut = f.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
            return f.relu(shortcut + self.bn2(self.conv2(f.relu(self.bn1(self.conv1(x))))))

    class Net(nn.Module):
        def __init__(self, blocks):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            for i, (before, width) in enumerate([(16, 16), (16, 32), (32, 64)], 1):
                rest = [Block(width, width, 1) for _ in range(blocks - 1)]
                self.add_module(f"layer{i}", nn.Sequential(Block(before, width, min(i, 2)), *rest))
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = self.layer3(self.layer2(self.layer1(f.relu(self.bn1(self.conv1(x))))))
            return self.linear(x.mean((2, 3)))

    class Parallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    return lambda blocks: Parallel(Net(blocks))


def relative_error(ours, theirs) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def assert_equal_logits(model, source, tensors, images, theirs, tolerance):
    """Their tensors through the key map: every endpoint in `theirs` (NHWC) must be ours. Returns what export gives."""
    abstract = models.abstract_variables(model, images.shape[1:])
    key_map = source.key_map(model, abstract)
    variables = convert(key_map, tensors, abstract, source.IGNORED)
    _, ends = jax.jit(model.apply)(variables, images)
    errors = {end: relative_error(ends[end].reshape(value.shape), value) for end, value in theirs.items()}
    print({end: f"{error:.1e}" for end, error in errors.items()})
    assert "logits" in errors and max(errors.values()) <= tolerance, errors
    return export(key_map, variables)


@pytest.fixture(scope="session")
def compare(torch):
    """compare(net, model, source, hooks, image_shape, …): one PyTorch network against one of ours.

    The network gets seeded weights, batch statistics included, and is read into the model through the key map of
    `source`; then the logits and the outputs of the modules in `hooks` {theirs: our endpoint} must agree in evaluation
    mode, and the way back through export must load strictly and to the bit. With `golden`, a few numbers are recorded
    under that name if ZOO_RECORD_GOLDEN is set.
    """

    def compare(net, model, source, hooks, image_shape, golden=None, tolerance=1e-4, batch=2):
        shapes = {key: tuple(t.shape) for key, t in net.state_dict().items() if not key.endswith("batches_tracked")}
        tensors = seeded_tensors(shapes)
        net.load_state_dict({key: torch.from_numpy(tensor) for key, tensor in tensors.items()})
        net.eval()
        theirs = {}

        def keep(name):
            def hook(module, args, output):
                value = output.detach().clone().numpy()  # a later layer may work in place
                theirs[name] = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value

            return hook

        for name, end in {**hooks, "": "logits"}.items():
            net.get_submodule(name).register_forward_hook(keep(end))
        images = seeded_images((batch, *image_shape))
        with torch.no_grad():
            net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        back = assert_equal_logits(model, source, tensors, images, theirs, tolerance)
        trainable = models.count_parameters(models.abstract_variables(model, image_shape))
        assert trainable == sum(p.numel() for p in net.parameters())
        assert set(back) == set(shapes)
        assert all(np.array_equal(back[key], tensors[key]) for key in back)
        net.load_state_dict({key: torch.from_numpy(tensor) for key, tensor in back.items()}, strict=True)
        if golden and os.environ.get("ZOO_RECORD_GOLDEN"):
            record(golden, model, source, shapes, image_shape, theirs)

    return compare


@pytest.fixture(scope="session")
def compare_keras(keras):
    """The same for a Keras network that ends in logits; `layers` {theirs: our endpoint}.

    What goes back need not be to the bit (a folded bias stays folded), but must be the same function.
    """

    def compare(net, model, source, layers, image_shape, golden=None, tolerance=1e-4, batch=2):
        shapes = {weight.path: tuple(weight.shape) for weight in net.weights}
        tensors = seeded_tensors(shapes)
        images = seeded_images((batch, *image_shape))
        probe = keras.Model(net.input, {**{end: net.get_layer(name).output for name, end in layers.items()},
                                         "logits": net.outputs[0]})  # fmt: skip

        def run(values):
            assert set(values) == set(shapes)
            for weight in net.weights:
                weight.assign(values[weight.path])
            return {end: np.asarray(value) for end, value in probe(images, training=False).items()}

        theirs = run(tensors)
        back = run(assert_equal_logits(model, source, tensors, images, theirs, tolerance))
        assert all(relative_error(back[end], theirs[end]) <= tolerance for end in theirs)
        if golden and os.environ.get("ZOO_RECORD_GOLDEN"):
            record(golden, model, source, shapes, image_shape, theirs)

    return compare


def record(golden, model, source, shapes, image_shape, theirs):
    """What tests/models/test_golden.py checks: keys and shapes, the first logits, the mean of every endpoint."""
    card = {
        "model": models.name_of(model),
        "fields": models.defining_fields(model),
        "source": source.__name__.rpartition(".")[2],
        "image_shape": image_shape,
        "tensors": shapes,
        "logits": theirs["logits"][:, :4].astype(float).round(5).tolist(),
        "means": {end: round(float(value.mean()), 6) for end, value in theirs.items()},
    }
    (GOLDEN / f"{golden}.json").write_text(json.dumps(card, separators=(",", ":")) + "\n")
