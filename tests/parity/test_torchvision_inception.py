"""AlexNet, GoogLeNet and Inception-v3 of torchvision, and Inception-v3 of Keras; and, written out in PyTorch's layers
here, the two networks that no reference has: AlexNet in two towers and GoogLeNet as published."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference_keys import ByName
from seeded import seeded_images, seeded_tensors

import zoo.models as models
from zoo.models import create
from zoo.models.alexnet import AlexNet
from zoo.models.googlenet import GoogLeNet
from zoo.pretrained import keras as keras_source
from zoo.pretrained import torchvision as source
from zoo.pretrained.convert import convert, export, flattened

pytestmark = pytest.mark.parity

ALEXNET = {
    "features.1": "conv1", "features.4": "conv2", "features.7": "conv3", "features.9": "conv4", "features.11": "conv5",
    "classifier.2": "dense6", "classifier.5": "dense7",
}  # fmt: skip
GOOGLENET = {
    "conv1": "conv1", "conv2": "conv2_reduce", "conv3": "conv2", "avgpool": "features",
    **{f"inception{m}": f"inception{m}" for m in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")},
}  # fmt: skip
INCEPTION_V3 = {
    "Conv2d_1a_3x3": "conv1a", "Conv2d_2a_3x3": "conv2a", "Conv2d_2b_3x3": "conv2b", "Conv2d_3b_1x1": "conv3b",
    "Conv2d_4a_3x3": "conv4a", "avgpool": "features",
    **{f"Mixed_{m}": f"mixed{m}" for m in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")},
}  # fmt: skip
AUX = {"aux1": "aux1", "aux2": "aux2"}


def relative_error(ours, theirs) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def with_aux(net, heads):
    """In evaluation torchvision leaves the auxiliary heads out; here they run behind the modules they read."""

    def runs(head):
        return lambda module, args, output: (head(output), None)[1]  # what a hook returns replaces the output

    for module, head in heads.items():
        net.get_submodule(module).register_forward_hook(runs(net.get_submodule(head)))
    return net


@pytest.mark.parametrize("shape", [(224, 224, 3), (63, 90, 3)])
def test_alexnet(shape, torchvision, compare):
    compare(torchvision.alexnet(), create("alexnet_owt"), source, ALEXNET, shape)


@pytest.mark.parametrize("shape", [(224, 224, 3), (64, 101, 3), (15, 15, 3)])
def test_googlenet(shape, torchvision, compare):
    net = torchvision.googlenet(aux_logits=True, init_weights=False)
    with_aux(net, {"inception4a": "aux1", "inception4d": "aux2"})
    compare(net, create("googlenet_bn"), source, GOOGLENET | AUX, shape)


def test_googlenet_without_aux(torchvision, compare):
    net = torchvision.googlenet(aux_logits=False, init_weights=False)
    compare(net, create("googlenet_bn", aux_heads=False), source, GOOGLENET, (80, 80, 3))


def test_inception_v3(torchvision, compare):
    net = with_aux(torchvision.inception_v3(aux_logits=True, init_weights=False), {"Mixed_6e": "AuxLogits"})
    compare(net, create("inception_v3"), source, INCEPTION_V3 | {"AuxLogits": "aux1"}, (299, 299, 3))


@pytest.mark.parametrize("shape", [(75, 75, 3), (120, 93, 3)])
def test_inception_v3_without_aux(shape, torchvision, compare):
    net = torchvision.inception_v3(aux_logits=False, init_weights=False)
    compare(net, create("inception_v3", aux_heads=False), source, INCEPTION_V3, shape)


@pytest.mark.parametrize("shape", [(75, 90, 3), (150, 139, 3)])
def test_keras_inception_v3(shape, keras, compare_keras):
    keras.backend.clear_session()
    net = keras.applications.InceptionV3(weights=None, classifier_activation=None, input_shape=shape)
    modules = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
    layers = {f"mixed{i}": f"mixed{module}" for i, module in enumerate(modules)} | {"avg_pool": "features"}
    compare_keras(net, create("inception_v3", aux_heads=False, pool_padding="nothing"), keras_source, layers, shape)


def test_golden(torch, torchvision, compare):
    """What is recorded for everyone: one module of each kind, few classes; AlexNet at an eighth of its width."""
    nn = torch.nn
    net = torchvision.alexnet(num_classes=10)
    widths = [3, 8, 24, 48, 32, 32]
    for i, at in enumerate((0, 3, 6, 8, 10)):
        old = net.features[at]
        net.features[at] = nn.Conv2d(widths[i], widths[i + 1], old.kernel_size, old.stride, old.padding)
    net.classifier[1], net.classifier[4] = nn.Linear(32 * 36, 512), nn.Linear(512, 512)
    net.classifier[6] = nn.Linear(512, 10)
    model = create("alexnet_owt", width=0.125, num_classes=10)
    compare(net, model, source, ALEXNET, (95, 101, 3), golden="torchvision_alexnet")

    net = torchvision.googlenet(aux_logits=True, init_weights=False, num_classes=10)
    module, aux = type(net.inception3a), type(net.aux1)
    net.inception4a, net.aux1 = module(256, 192, 96, 208, 16, 48, 64), aux(512, 10)
    net.inception5a, net.fc = module(512, 256, 160, 320, 32, 128, 128), nn.Linear(832, 10)
    for name in ("3b", "4b", "4c", "4d", "4e", "5b"):
        setattr(net, f"inception{name}", nn.Identity())
    net.aux2 = None
    with_aux(net, {"inception4a": "aux1"})
    hooks = {their: ours for their, ours in GOOGLENET.items() if ours[-2:] not in ("3b", "4b", "4c", "4d", "4e", "5b")}
    model = create("googlenet_bn", blocks=(1, 1, 1), num_classes=10)
    compare(net, model, source, hooks | {"aux1": "aux1"}, (64, 64, 3), golden="torchvision_googlenet")

    net = torchvision.inception_v3(aux_logits=False, init_weights=False, num_classes=10)
    net.Mixed_6a, net.Mixed_6b = type(net.Mixed_6a)(256), type(net.Mixed_6b)(736, channels_7x7=128)
    for name in ("5c", "5d", "6c", "6d", "6e", "7c"):
        setattr(net, f"Mixed_{name}", nn.Identity())
    hooks = {
        their: ours for their, ours in INCEPTION_V3.items() if ours[-2:] not in ("5c", "5d", "6c", "6d", "6e", "7c")
    }
    model = create("inception_v3", blocks=(1, 1, 1), num_classes=10, aux_heads=False)
    compare(net, model, source, hooks, (75, 75, 3), golden="torchvision_inception_v3")


def test_one_training_step_of_googlenet(torch, torchvision, monkeypatch):
    """Loss 1 + 0.3 + 0.3 as published, without dropout: gradients of every parameter, updated batch statistics.

    In double precision on both sides: in single precision some of two million activations round to the other side of
    zero in one of the two, and each of them changes gradients by percents.
    """
    images, labels = seeded_images((8, 64, 64, 3)).astype(np.float64), np.arange(8) * 100
    net = torchvision.googlenet(aux_logits=True, init_weights=False, dropout=0.0, dropout_aux=0.0)
    shapes = {key: tuple(t.shape) for key, t in net.state_dict().items() if not key.endswith("batches_tracked")}
    tensors = seeded_tensors(shapes)
    net.load_state_dict({key: torch.from_numpy(tensor) for key, tensor in tensors.items()})
    net.train().double()
    outputs = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    cross_entropy = torch.nn.functional.cross_entropy
    loss = sum(
        weight * cross_entropy(head, torch.from_numpy(labels))
        for weight, head in ((1.0, outputs.logits), (0.3, outputs.aux_logits1), (0.3, outputs.aux_logits2))
    )
    loss.backward()

    abstract = models.abstract_variables(create("googlenet_bn"))
    key_map = source.key_map(create("googlenet_bn"), abstract)
    variables = convert(key_map, tensors, abstract)
    model = create("googlenet_bn", dropout=0.0, aux_dropout=0.0, dtype=np.float64)

    def objective(params):
        applied = model.apply({**variables, "params": params}, images, train=True, mutable="batch_stats")
        (logits, ends), updates = applied
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(head, jnp.asarray(labels)).mean()
            for head in (logits, ends["aux1"], ends["aux2"])
        ]
        return losses[0] + 0.3 * (losses[1] + losses[2]), updates

    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        monkeypatch.setattr(jnp, "float32", jnp.float64)  # batch norm and logits ask for it by name
        (value, updates), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(variables["params"])
        monkeypatch.undo()
    assert value == pytest.approx(loss.item(), rel=1e-9)
    ours = export(key_map, {"params": grads, **updates})
    theirs = {name: p.grad for name, p in net.named_parameters()}
    theirs |= {name: b for name, b in net.named_buffers() if not name.endswith("batches_tracked")}
    errors = {key: relative_error(ours[key], theirs[key].numpy()) for key in ours}
    print(max(errors.items(), key=lambda item: item[1]))
    assert set(ours) == set(theirs) and max(errors.values()) <= 1e-7, errors


# --- written out in PyTorch's layers ------------------------------------------------------------------------------


def test_alexnet_in_two_towers(torch, compare):
    nn = torch.nn

    class TwoTowers(nn.Module):
        """Every layer twice, 48 to 192 maps each; what one tower says to the other is concatenated."""

        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 96, 11, 4)
            self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
            self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
            self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
            self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
            self.dense6, self.dense7, self.head = nn.Linear(9216, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000)
            # PyTorch divides alpha by the size first.
            self.normalise, self.pool = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2), nn.MaxPool2d(3, 2)
            for i in range(1, 8):
                self.add_module(f"relu{i}", nn.ReLU())

        def forward(self, x):
            for i in (1, 2):
                x = self.get_submodule(f"relu{i}")(self.get_submodule(f"conv{i}")(x))
                x = self.pool(torch.cat([self.normalise(tower) for tower in x.chunk(2, 1)], 1))
            for i in (3, 4, 5):
                x = self.get_submodule(f"relu{i}")(self.get_submodule(f"conv{i}")(x))
            x = torch.flatten(self.pool(x), 1)
            for i in (6, 7):
                x = self.get_submodule(f"relu{i}")(self.get_submodule(f"dense{i}")(x))
            return self.head(x)

    hooks = {f"relu{i}": f"{'conv' if i < 6 else 'dense'}{i}" for i in range(1, 8)}
    compare(TwoTowers(), AlexNet(), ByName({"dense6/kernel": flattened(6, 6)}), hooks, (227, 227, 3))


@pytest.mark.parametrize("shape", [(224, 224, 3), (97, 64, 3)])
def test_googlenet_as_published(shape, torch, compare):
    nn, F = torch.nn, torch.nn.functional
    table = {
        "3a": (192, 64, 96, 128, 16, 32, 32), "3b": (256, 128, 128, 192, 32, 96, 64),
        "4a": (480, 192, 96, 208, 16, 48, 64), "4b": (512, 160, 112, 224, 24, 64, 64),
        "4c": (512, 128, 128, 256, 24, 64, 64), "4d": (512, 112, 144, 288, 32, 64, 64),
        "4e": (528, 256, 160, 320, 32, 128, 128), "5a": (832, 256, 160, 320, 32, 128, 128),
        "5b": (832, 384, 192, 384, 48, 128, 128),
    }  # fmt: skip

    class Conv(nn.Module):
        def __init__(self, before, after, kernel, stride=1):
            super().__init__()
            self.conv = nn.Conv2d(before, after, kernel, stride, kernel // 2)

        def forward(self, x):
            return F.relu(self.conv(x))

    class Inception(nn.Module):
        def __init__(self, before, f1, f3_reduce, f3, f5_reduce, f5, projection):
            super().__init__()
            self.branch1x1, self.branch_pool = Conv(before, f1, 1), Conv(before, projection, 1)
            self.branch3x3_reduce, self.branch3x3 = Conv(before, f3_reduce, 1), Conv(f3_reduce, f3, 3)
            self.branch5x5_reduce, self.branch5x5 = Conv(before, f5_reduce, 1), Conv(f5_reduce, f5, 5)

        def forward(self, x):
            branch3, branch5 = self.branch3x3(self.branch3x3_reduce(x)), self.branch5x5(self.branch5x5_reduce(x))
            return torch.cat([self.branch1x1(x), branch3, branch5, self.branch_pool(F.max_pool2d(x, 3, 1, 1))], 1)

    class Auxiliary(nn.Module):
        def __init__(self, before):
            super().__init__()
            self.conv, self.dense, self.head = Conv(before, 128, 1), nn.Linear(2048, 1024), nn.Linear(1024, 1000)

        def forward(self, x):
            x = F.avg_pool2d(x, 5, 3) if x.shape[2:] == (14, 14) else F.adaptive_avg_pool2d(x, 4)
            return self.head(F.relu(self.dense(torch.flatten(self.conv(x), 1))))

    class Published(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2_reduce, self.conv2 = Conv(3, 64, 7, 2), Conv(64, 64, 1), Conv(64, 192, 3)
            for name, row in table.items():
                self.add_module(f"inception{name}", Inception(*row))
            self.aux1, self.aux2, self.head = Auxiliary(512), Auxiliary(528), nn.Linear(1024, 1000)

        def forward(self, x):
            normalise, pool = nn.LocalResponseNorm(5, 1e-4, 0.75, 1), nn.MaxPool2d(3, 2, ceil_mode=True)
            x = normalise(pool(self.conv1(x)))
            x = pool(normalise(self.conv2(self.conv2_reduce(x))))
            for name in table:
                x = self.get_submodule(f"inception{name}")(x)
                x = pool(x) if name in ("3b", "4e") else x
                for head, after in (("aux1", "4a"), ("aux2", "4d")):
                    if name == after:
                        self.get_submodule(head)(x)
            return self.head(x.mean((2, 3)))

    hooks = {name: name for name in (*GoogLeNet().stages[:-1], "aux1", "aux2")}
    compare(Published(), GoogLeNet(), ByName({r"aux\d/dense/kernel": flattened(4, 4)}), hooks, shape)
