"""Every row of timm in WEIGHTS against timm: names and shapes of its tensors, preprocessing, classes and licence.

The networks are built on torch's "meta" device, so that nothing is allocated or computed.
"""

import numpy as np
import pytest

import zoo.models as models
from zoo.pretrained import timm as source
from zoo.pretrained.convert import source_keys
from zoo.pretrained.registry import CLASSES_21K, WEIGHTS
from zoo.trees import flatten

pytestmark = pytest.mark.parity

ROWS = {name.partition(":")[2]: row for name, row in WEIGHTS.items() if row.source == "timm"}
#: One row of each network, by the name of the network and its number of classes.
NETWORKS = {(name.partition(".")[0], len(row.classes) == CLASSES_21K): name for name, row in ROWS.items()}


@pytest.mark.parametrize("name", NETWORKS.values())
def test_names_and_shapes_of_the_tensors(name, torch, timm):
    row = ROWS[name]
    network = name.partition(".")[0]
    model = models.create(row.model, **row.fields)
    aux = {"aux_logits": True} if getattr(model, "aux_heads", False) else {}
    with torch.device("meta"):
        net = timm.create_model(network, num_classes=len(row.classes), **aux)
    theirs = {key: tuple(t.shape) for key, t in net.state_dict().items() if not key.endswith("batches_tracked")}
    abstract = models.abstract_variables(model)
    key_map = source.key_map(model, abstract)
    assert {key for entry, _ in key_map.values() for key in source_keys(entry)} == set(theirs)
    for path, leaf in flatten(abstract).items():
        entry, transform = key_map[path]
        blanks = [np.broadcast_to(np.float32(0), theirs[key]) for key in source_keys(entry)]
        assert transform.load(*blanks).shape == leaf.shape, path
    assert models.count_parameters(abstract) == sum(p.numel() for p in net.parameters())
    print(f"{network}: {models.count_parameters(abstract):,}")


def test_configurations(timm):
    """Accuracies are those of results-imagenet.csv, which the package does not contain."""
    licences = {"apache-2.0": "Apache-2.0", "bsd-3-clause": "BSD-3-Clause", "cc-by-nc-4.0": "CC-BY-NC-4.0"}
    for name, row in ROWS.items():
        config = timm.get_pretrained_cfg(name)
        if row.file.startswith("https:"):
            assert row.file == config.url and row.digest, name
        else:
            assert row.file == f"timm/{name}/model.safetensors" and config.hf_hub_id in ("timm/", f"timm/{name}"), name
        size = config.input_size[1]
        assert row.preprocess.size == (size, size) and row.preprocess.interpolation == config.interpolation, name
        assert row.preprocess.resize == (int(size / config.crop_pct),) * 2 and config.crop_mode == "center", name
        assert row.preprocess.mean == tuple(config.mean) and row.preprocess.std == tuple(config.std), name
        assert len(row.classes) == config.num_classes and row.licence == licences[config.license], name
