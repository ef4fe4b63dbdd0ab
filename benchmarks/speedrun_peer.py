"""Run airbench's training script for a number of seconds on the processor: speedrun_peer.py JSON (see speedrun.py).

The script is read from a copy of its repository and changed where it needs a GPU: half precision becomes float32, its
clock the processor's, and its data set is read from a folder of JPEG files. Its network, optimiser, schedule,
augmentation and test-time augmentation are its own; the number of epochs is what fits into the time, by the duration
of a few steps beforehand. Reading the images and evaluation are not counted. It needs torch, torchvision, NumPy and
Pillow.
"""

import contextlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

with contextlib.suppress(ImportError):
    import torchvision_cpu  # noqa: F401 — an optional module that defines the missing operators of a CPU build

#: What is replaced in the script: it needs a GPU there.
CHANGES = (
    ("torch.backends.cudnn.benchmark = True", ""),
    (".half()", ".float()"),
    (".cuda()", ""),
    ("torch.cuda.Event(enable_timing=True)", "Clock()"),
    ("torch.cuda.synchronize()", "None"),
    ("map_location=torch.device(gpu)", "map_location='cpu'"),
    ("torch.load(", "load("),
)


class Clock:
    """Stands in for a CUDA event: elapsed_time in milliseconds."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: "Clock") -> float:
        return 1000 * (other.at - self.at)


def read(folder: Path) -> dict:
    """Read class folders of images: {"images": uint8 [N, H, W, C], "labels": int64 [N], "classes": names}."""
    classes = sorted(path.name for path in folder.iterdir())
    files = [(file, label) for label, name in enumerate(classes) for file in sorted((folder / name).iterdir())]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file, _ in files])
    return {
        "images": torch.tensor(images), "labels": torch.tensor([label for _, label in files]), "classes": classes,
    }  # fmt: skip


def main() -> None:
    asked = json.loads(sys.argv[1])
    data = {name: read(Path(asked["data"]) / name) for name in ("train", "test")}
    text = Path(asked["script"]).read_text(encoding="utf-8")
    for old, new in CHANGES:
        if old not in text:
            raise SystemExit(f"{asked['script']}: has no {old!r}; this is for legacy/airbench94.py")
        text = text.replace(old, new)
    text = text.replace("if not os.path.exists(data_path):", "if False:")  # it would download the data
    space = {
        "__name__": "airbench", "Clock": Clock,
        "load": lambda path, map_location: data[Path(path).stem],
    }  # fmt: skip
    exec(compile(text, asked["script"], "exec"), space)
    script = SimpleNamespace(**space)
    torch.manual_seed(asked["seed"])

    batch = script.hyp["opt"]["batch_size"]
    model = script.make_net().to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)

    def step() -> None:
        model(images).sum().backward()

    step()
    begun = time.perf_counter()
    for _ in range(3):
        step()
    a_step = (time.perf_counter() - begun) / 3
    epochs = asked["seconds"] / (len(data["train"]["images"]) // batch * a_step)
    script.hyp["opt"]["train_epochs"] = epochs
    torch.manual_seed(asked["seed"])
    begun = time.perf_counter()
    accuracy = script.main(0)
    seconds = time.perf_counter() - begun
    print(
        json.dumps({"epochs": round(epochs, 2), "seconds with evaluation": round(seconds), "test, six views": accuracy})
    )


if __name__ == "__main__":
    main()
