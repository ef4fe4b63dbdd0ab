"""The residual networks of torchvision: evaluation at every stage, and one training step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from seeded import seeded_images, seeded_tensors

import zoo.models as models
from zoo.models import create
from zoo.pretrained import torchvision as source
from zoo.pretrained.convert import convert, export

pytestmark = pytest.mark.parity

HOOKS = {"maxpool": "stem", **{f"layer{i}": f"stage{i}" for i in range(1, 5)}, "avgpool": "features"}
NAMES = [
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_evaluation(name, torchvision, compare):
    compare(getattr(torchvision, name)(), create(name), source, HOOKS, (96, 96, 3))


@pytest.mark.parametrize("shape", [(224, 224, 3), (33, 75, 3)])
def test_other_sizes(shape, torchvision, compare):
    compare(torchvision.resnet50(), create("resnet50"), source, HOOKS, shape, batch=1)


def test_golden(torchvision, compare):
    """What is recorded for everyone: few blocks and classes, both kinds of block, groups."""
    resnet, shape, fields = torchvision.resnet, (64, 64, 3), {"blocks": (1, 1, 1, 1), "num_classes": 10}
    basic = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)
    compare(basic, create("resnet18", **fields), source, HOOKS, shape, golden="torchvision_resnet_basic")
    grouped = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, groups=32, width_per_group=4)
    compare(grouped, create("resnext50_32x4d", **fields), source, HOOKS, shape, golden="torchvision_resnext")


def test_one_training_step(torch, torchvision):
    """Gradients of every parameter and updated batch statistics of ResNet-18, from cross-entropy."""
    images, labels = seeded_images((8, 64, 64, 3)), np.arange(8) * 100
    net = torchvision.resnet18()
    shapes = {key: tuple(t.shape) for key, t in net.state_dict().items() if not key.endswith("batches_tracked")}
    tensors = seeded_tensors(shapes)
    net.load_state_dict({key: torch.from_numpy(tensor) for key, tensor in tensors.items()})
    net.train()
    loss = torch.nn.functional.cross_entropy(
        net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())), torch.from_numpy(labels)
    )
    loss.backward()

    model = create("resnet18")
    abstract = models.abstract_variables(model)
    key_map = source.key_map(model, abstract)
    variables = convert(key_map, tensors, abstract)

    def objective(params):
        (logits, _), updates = model.apply({**variables, "params": params}, images, train=True, mutable="batch_stats")
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean(), updates

    (value, updates), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(variables["params"])
    assert value == pytest.approx(loss.item(), rel=1e-4)
    ours = export(key_map, {"params": grads, **updates})
    theirs = {name: p.grad for name, p in net.named_parameters()}
    theirs |= {name: b for name, b in net.named_buffers() if not name.endswith("batches_tracked")}
    errors = {
        key: float(np.abs(ours[key] - theirs[key].numpy()).max() / np.abs(theirs[key].numpy()).max()) for key in ours
    }
    print(max(errors.items(), key=lambda item: item[1]))
    assert set(ours) == set(theirs) and max(errors.values()) <= 1e-3, errors
