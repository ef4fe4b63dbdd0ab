"""A JAX functional model zoo: LeNet, AlexNet, Inception and residual networks as pure functions.

import zoo
model = zoo.create("lenet5", num_classes=10)
variables = zoo.init(model, 0)
logits, endpoints = model.apply(variables, images)

fitted = zoo.fit("lenet5", "digits")
checkpoint = zoo.load("runs/…/best")  # or "lenet5-mnist", "torchvision:resnet50", "timm:resnet50.a1_in1k", …
checkpoint.predict("photo.png")
"""

from importlib import import_module
from typing import Any

#: name -> module. Modules are imported on first use, so that `import zoo` is fast and changes nothing in JAX.
_PUBLIC = {
    "MODELS": "zoo.models",
    "RECIPES": "zoo.training.recipes",
    "Recipe": "zoo.training.recipe",
    "create": "zoo.models",
    "init": "zoo.models",
    "open_dataset": "zoo.data.sources",
    "from_arrays": "zoo.data.sources",
    "fit": "zoo.api",
    "cross_validate": "zoo.api",
    "evaluate": "zoo.api",
    "Checkpoint": "zoo.inference.predict",
    "preprocess": "zoo.inference.predict",
    "save": "zoo.api",
    "load": "zoo.loading",
    "features": "zoo.analysis.features",
    "probe": "zoo.analysis.probe",
    "attach_head": "zoo.analysis.linear_head",
    "fit_head": "zoo.analysis.quick",
    "explain": "zoo.analysis.explain",
    "report": "zoo.analysis.report",
}

#: What people look for under a name that is not here -> where it is.
_ELSEWHERE = {
    "predict": 'zoo.load("lenet5-mnist").predict("photo.jpg")',
    "train": 'zoo.fit("lenet5", "photos/")',
    "finetune": 'zoo.fit(init="lenet5-mnist", data="photos/")',
    "fine_tune": 'zoo.fit(init="lenet5-mnist", data="photos/")',
    "list_models": "zoo.MODELS",
    "load_data": "zoo.open_dataset",
    "push": "`zoo push CKPT hf:USER/NAME`",
}

__all__ = list(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        from zoo.suggest import did_you_mean

        hint = f"write {_ELSEWHERE[name]}" if name in _ELSEWHERE else did_you_mean(name, _PUBLIC)
        hint = hint or f"it has {', '.join(_PUBLIC)}"
        raise AttributeError(f"module 'zoo' has no attribute {name!r}; {hint}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*_PUBLIC, "__version__"]
