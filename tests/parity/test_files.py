"""Files that PyTorch, safetensors and Keras write: ours from their file, their network from ours, the same logits.

Every network of WEIGHTS, with seeded weights. What the published files themselves add to this is in the table: hashes,
preprocessing, classes.
"""

import jax
import numpy as np
import pytest
from seeded import seeded_images, seeded_tensors

import zoo
from zoo import export
from zoo.pretrained.registry import DEFAULTS, WEIGHTS
from zoo.pretrained.weights import import_file, save_imported

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4  # of the largest logit
#: Smaller than published, where the network takes it: what is read and how is the same.
SIZES = {"alexnet": 224, "inception_v3": 139, "inception_v4": 139, "inception_resnet_v2": 139, "legacy_xception": 139}
TORCH = [name for name in DEFAULTS if name.startswith(("torchvision:", "timm:"))]
KERAS = [name for name in DEFAULTS if name.startswith("keras:")]
#: From 0.7 to 3.7 GB each way.
LARGE = (
    "timm:resnext101_32x16d", "timm:resnext101_32x32d", "timm:resnetrs350", "timm:resnetrs420",
    "timm:resnetv2_50x3_bit", "timm:resnetv2_101x3_bit", "timm:resnetv2_152x2_bit", "timm:resnetv2_152x4_bit",
)  # fmt: skip


def relative_error(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def logits(loaded, images):
    run = jax.jit(lambda v, x: loaded.model.apply(v, x)[0], compiler_options={"xla_backend_optimization_level": 0})
    return np.asarray(run(loaded.variables, images))


@pytest.mark.parametrize("name", [name for name in TORCH if name not in LARGE])
def test_torch_networks(name, torch, torchvision, timm, tmp_path):
    source, _, network = name.partition(":")
    weights = WEIGHTS[DEFAULTS[name]]
    if source == "torchvision":
        more = {"init_weights": False} if network in ("googlenet", "inception_v3") else {}
        net = getattr(torchvision, network)(**more)
    else:
        net = timm.create_model(network)
    shapes = {key: tuple(t.shape) for key, t in net.state_dict().items() if not key.endswith("batches_tracked")}
    tensors = {key: torch.from_numpy(tensor) for key, tensor in seeded_tensors(shapes).items()}
    net.load_state_dict(tensors, strict=True)
    net.eval()
    size = SIZES.get(network, 96)
    images = seeded_images((1, size, size, 3))
    with torch.no_grad():
        theirs = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()

    forms = {"zip.pth": {}, "legacy.pth": {"_use_new_zipfile_serialization": False}}
    form = sorted(forms)[len(name) % 2]
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / form, **forms[form])
    imported = import_file(tmp_path / form, weights.model, weights.fields)
    save_imported(imported, tmp_path / "ours")
    loaded = zoo.load(tmp_path / "ours")
    error = relative_error(logits(loaded, images), theirs)
    print(f"{name} {form} {error:.1e}")
    assert error <= TOLERANCE
    assert loaded.card.classes == weights.classes  # plain ResNets have the same names in both
    assert "names of torchvision" in loaded.card.source or "names of timm" in loaded.card.source

    keys = export.write_safetensors(loaded, tmp_path / "back.safetensors", source)
    from safetensors.torch import load_file

    back = load_file(tmp_path / "back.safetensors")
    net.load_state_dict(back, strict=True)
    assert keys == source and all(torch.equal(back[key], tensors[key]) for key in tensors)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")  # Keras, writing HDF5
@pytest.mark.parametrize("name", KERAS)
def test_keras_networks(name, keras, tmp_path):
    network, weights = name.partition(":")[2], WEIGHTS[DEFAULTS[name]]
    build = getattr(keras.applications, network)
    size = 75 if network.startswith("ResNet") else 96
    net = build(weights=None, classifier_activation=None, input_shape=(size, size, 3))  # not of a fresh session
    fresh = seeded_tensors({weight.path: tuple(weight.shape) for weight in net.weights})
    for weight in net.weights:
        weight.assign(fresh[weight.path])
    images = seeded_images((1, size, size, 3))
    theirs = np.asarray(net(images, training=False))
    for form in ("net.keras", "net.weights.h5", "net.h5"):
        if form == "net.weights.h5":
            net.save_weights(tmp_path / form)
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("absl.logging.warning", lambda *_: None)  # that .h5 is an old format
                net.save(tmp_path / form)
        imported = import_file(tmp_path / form, weights.model, weights.fields)
        save_imported(imported, tmp_path / "ours")
        loaded = zoo.load(tmp_path / "ours")
        if form == "net.keras":
            error = relative_error(logits(loaded, images), theirs)
            print(f"{name} {error:.1e}")
            assert error <= TOLERANCE
            first = loaded
        else:
            jax.tree.map(np.testing.assert_array_equal, loaded.variables, first.variables)
    export.write_safetensors(first, tmp_path / "back.safetensors", "keras")
