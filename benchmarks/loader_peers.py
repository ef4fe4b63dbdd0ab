"""The contenders of benchmarks/loader.py, each run in its own process: this project's loader, PyTorch's and tf.data's.

    python benchmarks/loader_peers.py zoo|torch|tf|pixels JSON

The task is to turn files into batches of uint8 [B, 224, 224, 3]: a random crop of 8 to 100 % of each image, resized
bilinearly with antialiasing. Each prints one line of JSON. The peers import nothing of this project, so they run in
environments of their own.
"""

import json
import os
import sys
import time
from pathlib import Path

SIZE = 224


def cpu_seconds():
    """Return the processor time in seconds of this process and its live children (Linux)."""
    tick = os.sysconf("SC_CLK_TCK")

    def of(pid):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / tick, int(fields[1])

    total, me = 0.0, os.getpid()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            seconds, parent = of(pid)
        except OSError:
            continue
        if int(pid) == me or parent == me:
            total += seconds
    return total


def timed(batches, count, warm):
    """Return images per second, and per second of processor time, over `count` images after `warm` images."""
    seen = 0
    for batch in batches:
        seen += len(batch)
        if seen >= warm:
            break
    began, used, seen = time.perf_counter(), cpu_seconds(), 0
    for batch in batches:
        assert tuple(batch.shape[1:]) in ((SIZE, SIZE, 3), (3, SIZE, SIZE)) and "uint8" in str(batch.dtype)
        seen += len(batch)
        if seen >= count:
            break
    wall, used = time.perf_counter() - began, cpu_seconds() - used
    return {"images_per_second": seen / wall, "images_per_cpu_second": seen / used}


def zoo(files, batch, workers, count, warm):
    import numpy as np

    from zoo.data.augment.host_crop import Crop
    from zoo.data.dataset import EncodedSplit
    from zoo.data.images.preprocess import Preprocess
    from zoo.data.loader import train_batches
    from zoo.data.sources.listing import FileStore

    sizes = np.full((len(files), 2), 10_000, np.int32)  # only read to check that images exceed the model's size
    split = EncodedSplit(
        FileStore("", tuple(files)), np.arange(len(files)), np.zeros(len(files), np.int32), (b"",) * len(files), sizes
    )
    seen = Preprocess((SIZE, SIZE), (SIZE, SIZE))
    batches = train_batches(split, seen, batch_size=batch, seed=0, crop=Crop(), workers=workers)
    return timed((b["image"] for b in batches), count, warm)


def torch_vision():
    """Import torchvision's transforms, even if its compiled operators do not load with this build of torch."""
    import torch

    try:
        from torchvision import transforms
    except RuntimeError:
        import torchvision_cpu  # noqa: F401 — an optional module that defines the missing operators
        from torchvision import transforms
    return torch, transforms


def torch(files, batch, workers, count, warm):
    torch, transforms = torch_vision()
    from PIL import Image

    torch.set_num_threads(1)
    prepare = transforms.Compose([transforms.RandomResizedCrop(SIZE, antialias=True), transforms.PILToTensor()])

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, index):
            with open(files[index], "rb") as file:
                return prepare(Image.open(file).convert("RGB"))

    order = torch.utils.data.RandomSampler(Files(), replacement=True, num_samples=10**8)  # workers start once
    return timed(iter(torch.utils.data.DataLoader(Files(), batch, sampler=order, num_workers=workers)), count, warm)


def tf(files, batch, workers, count, warm):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(workers)

    def prepare(path):
        data = tf.io.read_file(path)
        whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
        start, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data), whole, min_object_covered=0.0, aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0), max_attempts=10, use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        return resized(tf, data, tf.concat([start[:2], extent[:2]], 0))

    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
    data = data.map(prepare, workers).batch(batch, drop_remainder=True).prefetch(2).with_options(options)
    return timed(iter(data), count, warm)


def resized(tf, data, box):
    patch = tf.io.decode_and_crop_jpeg(data, box, channels=3)
    image = tf.image.resize(patch, (SIZE, SIZE), antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def pixels(who, files, boxes, out):
    """Write the same crops (top, left, height, width) of the same files, as each library makes them, to out.npy."""
    import numpy as np

    cut = {"zoo": zoo_pixels, "torch": torch_pixels, "tf": tf_pixels}[who]()
    np.save(out, np.stack([cut(file, box) for file, box in zip(files, boxes, strict=True)]))
    return {}


def zoo_pixels():
    from zoo.data.augment import host_crop
    from zoo.data.images.preprocess import Preprocess

    def cut(file, box):
        host_crop.draw_crop = lambda *_: host_crop.Box(*box)  # the only random draw
        return host_crop.read_crop(
            Path(file).read_bytes(), Preprocess((SIZE, SIZE), (SIZE, SIZE)), 0, 0, 0, host_crop.Crop()
        )

    return cut


def torch_pixels():
    import numpy as np
    from PIL import Image

    functional = torch_vision()[1].functional
    return lambda file, box: np.asarray(
        functional.resized_crop(Image.open(file).convert("RGB"), *box, [SIZE, SIZE], antialias=True)
    )


def tf_pixels():
    import tensorflow as tf

    return lambda file, box: resized(tf, tf.io.read_file(file), tf.constant(box)).numpy()


if __name__ == "__main__":
    name, asked = sys.argv[1], json.loads(sys.argv[2])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    function = {"zoo": zoo, "torch": torch, "tf": tf, "pixels": pixels}[name]
    print(json.dumps(function(**asked)))
