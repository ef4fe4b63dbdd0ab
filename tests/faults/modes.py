"""The kinds of training that are killed: their commands and data. Each takes a few seconds."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from .programs import ROOT


@dataclass(frozen=True)
class Mode:
    """A kind of training.

    Attributes:
        command: words after `zoo train`; {data} is the folder of images.
        processes: number of processes that train together.
        page: write the page of the run, which takes a fifth of its time and is made in the same way in every mode.
    """

    command: str
    processes: int = 1
    page: bool = False

    def words(self, data: Path) -> list[str]:
        words = ["train", *shlex.split(self.command.format(data=data, root=ROOT)), "--workdir", "run"]
        return words if self.page else [*words, "--no-report"]


MODES = {
    "plain": Mode("--model lenet5 --data digits --limit 120 --epochs 3 --batch-size 12 --save-steps 3", page=True),
    "phases": Mode(
        "--init {root}/checkpoints/lenet5-mnist --data {data} --epochs 4 --batch-size 12 --save-steps 3 "
        "--set min_epoch_steps=5 --head-epochs 1 --freeze conv1 --unfreeze-at 2.5 --layer-decay 0.7"
    ),
    "progressive": Mode(
        "--model resnet20 --set blocks=(1,) --set width=8 --data {data} --progressive 8,16 --test-size 24 --epochs 4 "
        "--batch-size 12 --set min_epoch_steps=5 --save-steps 3 --augment resized_crop(area=0.5),flip"
    ),
    "airbench": Mode(
        "--model airbench --set width=4 --recipe airbench --data {data} --epochs 4 --batch-size 12 "
        "--set min_epoch_steps=5 --save-steps 3"
    ),
    "mixup": Mode(
        "--model mlp --set widths=(16,) --data digits --limit 120 --epochs 30 --batch-size 20 --learning-rate 0.05 "
        "--augment shift(pixels=1),mixup(alpha=0.4) --set ema=0.8 --patience 2 --monitor loss --save-steps 4"
    ),
    "streaming": Mode(
        "--model lenet5 --set image_size=16 --data {data} --augment resized_crop(area=0.5),flip --epochs 4 "
        "--set min_epoch_steps=5 --batch-size 12 --workers 2 --save-steps 3"
    ),
    "two processes": Mode(
        "--model mlp --set widths=(16,) --data digits --limit 120 --epochs 4 --batch-size 12 --save-steps 4", 2
    ),
}


def make_images(folder: Path, counts: tuple[int, ...] = (36, 12, 12)) -> Path:
    """Write a folder of PNG images, train, val and test with three classes, and return it."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        for number in range(count):
            label = number % 3
            place = folder / split / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 120, (40, 40, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder
