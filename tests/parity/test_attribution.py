"""Attribution against independent implementations: pytorch-grad-cam and Captum, with the same weights in PyTorch.

Both networks are trained ones, the shipped LeNet-5 for MNIST and ResNet-20 for CIFAR-10; the images are 100 digits and
100 pieces of photographs, all of which come with scikit-learn.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.analysis import attribution
from zoo.analysis.explain import baseline_of, explain_pixels
from zoo.data.images.preprocess import images_to_input, normalise
from zoo.pretrained import akamaster
from zoo.pretrained.convert import export

pytestmark = pytest.mark.parity

ROOT = Path(__file__).parents[2]
COUNT = 100


@pytest.fixture(scope="module")
def lenet(torch):
    """(checkpoint, the network in PyTorch, stage -> its layer, pixels of 100 digits)."""
    nn = torch.nn
    checkpoint = zoo.load(ROOT / "checkpoints" / "lenet5-mnist")
    net = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    params = {name: {k: np.array(v) for k, v in part.items()} for name, part in checkpoint.variables["params"].items()}
    # The flattened activations are [H, W, C] here and [C, H, W] there.
    dense1 = params["dense1"]["kernel"].reshape(5, 5, 16, 120).transpose(3, 2, 0, 1).reshape(120, 400)
    state = {"7.weight": dense1, "7.bias": params["dense1"]["bias"]}
    for number, name in ((0, "conv1"), (3, "conv2")):
        state |= {
            f"{number}.weight": params[name]["kernel"].transpose(3, 2, 0, 1),
            f"{number}.bias": params[name]["bias"],
        }
    for number, name in ((9, "dense2"), (11, "head")):
        state |= {f"{number}.weight": params[name]["kernel"].T, f"{number}.bias": params[name]["bias"]}
    net.load_state_dict({key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in state.items()})
    split = zoo.open_dataset("digits").splits["test"]
    pixels = images_to_input(split.read(np.arange(COUNT)), checkpoint.card.preprocess)
    return checkpoint, net.eval(), {"conv1": net[2], "conv2": net[5]}, pixels


@pytest.fixture(scope="module")
def resnet(torch, cifar_resnet):
    """(checkpoint, the network in PyTorch, stage -> its layer, pixels of 100 pieces of photographs)."""
    from sklearn.datasets import load_sample_images

    checkpoint = zoo.load(ROOT / "checkpoints" / "resnet20-cifar10")
    net = cifar_resnet(3).module
    state = export(akamaster.key_map(checkpoint.model, checkpoint.variables), checkpoint.variables)
    net.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, strict=False)
    pieces = [
        photo[y : y + 64, x : x + 64] for photo in load_sample_images().images
        for y in range(30, 400, 70) for x in range(20, 570, 62)
    ]  # fmt: skip
    pixels = images_to_input(pieces[:COUNT], checkpoint.card.preprocess)
    return checkpoint, net.eval(), {f"stage{i}": getattr(net, f"layer{i}") for i in (1, 2, 3)}, pixels


@pytest.fixture(params=["lenet", "resnet"])
def pair(request):
    return request.getfixturevalue(request.param)


def prepared(torch, pair):
    """Return (model, variables, images, predicted classes, the images and classes as tensors)."""
    checkpoint, net, _, pixels = pair
    images = np.asarray(normalise(pixels, checkpoint.card.preprocess))
    logits = np.asarray(attribution.logits_of(checkpoint.model, checkpoint.variables, images))
    tensors = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        np.testing.assert_allclose(net(tensors), logits, atol=2e-3)
    targets = logits.argmax(-1)
    return checkpoint.model, checkpoint.variables, images, targets, tensors, torch.from_numpy(targets)


def correlations(ours, theirs):
    """Return the correlation of each pair of maps; 1 where both are constant."""
    result = []
    for a, b in zip(np.asarray(ours), np.asarray(theirs), strict=True):
        flat = np.ptp(a) == 0 or np.ptp(b) == 0
        result.append(float(np.allclose(a, b)) if flat else np.corrcoef(a.ravel(), b.ravel())[0, 1])
    return np.array(result)


def test_grad_cam_is_that_of_captum(torch, pair):
    captum = pytest.importorskip("captum.attr")
    model, variables, images, targets, tensors, classes = prepared(torch, pair)
    for stage, layer in pair[2].items():
        theirs = captum.LayerGradCam(pair[1], layer).attribute(tensors, classes, relu_attributions=True)
        ours = attribution.grad_cam(model, variables, images, targets, stage)
        found = correlations(ours, theirs.detach().numpy()[:, 0])
        print(stage, f"correlation {found.mean():.6f}, least {found.min():.6f}")
        assert len(found) == COUNT and found.min() > 0.999


def test_grad_cam_is_that_of_pytorch_grad_cam(torch, torchvision, pair):
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    *_, targets, tensors, _ = prepared(torch, pair)
    for stage, layer in pair[2].items():
        with warnings.catch_warnings(), grad_cam.GradCAM(model=pair[1], target_layers=[layer]) as cam:
            warnings.simplefilter("ignore")
            theirs = cam(input_tensor=tensors, targets=[ClassifierOutputTarget(int(k)) for k in targets])
        ours = explain_pixels(pair[0], pair[3], "grad_cam", targets.tolist(), stage=stage).heatmap
        found = correlations(ours, theirs)
        print(stage, f"correlation {found.mean():.6f}, least {found.min():.6f}")
        assert found.mean() > 0.999 and found.min() > 0.99


def test_the_methods_on_pixels_are_those_of_captum(torch, pair):
    captum = pytest.importorskip("captum.attr")
    model, variables, images, targets, tensors, classes = prepared(torch, pair)
    baseline = np.asarray(baseline_of(pair[0].card.preprocess))
    blank = torch.from_numpy(np.broadcast_to(baseline.transpose(0, 3, 1, 2), tensors.shape).copy())
    theirs = {
        "saliency": captum.Saliency(pair[1]).attribute(tensors.clone().requires_grad_(), classes, abs=False),
        "integrated_gradients": captum.IntegratedGradients(pair[1]).attribute(
            tensors, blank, classes, n_steps=32, method="gausslegendre", internal_batch_size=COUNT
        ),
        "occlusion": captum.Occlusion(pair[1]).attribute(
            tensors, (tensors.shape[1], 8, 8), (tensors.shape[1], 8, 8), blank, classes
        )[:, :1],
    }
    ours = {
        "saliency": attribution.saliency(model, variables, images, targets),
        "integrated_gradients": attribution.integrated_gradients(model, variables, images, targets, baseline),
        "occlusion": attribution.occlusion(model, variables, images, targets, baseline, 8, 8)[..., None],
    }
    for name, values in theirs.items():
        found = correlations(ours[name], values.detach().numpy().transpose(0, 2, 3, 1))
        print(name, f"correlation {found.mean():.6f}, least {found.min():.6f}")
        assert found.mean() > 0.999 and found.min() > 0.99
