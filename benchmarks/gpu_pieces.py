"""The pieces of benchmarks/gpu.py: python -m benchmarks.gpu_pieces PIECE FOLDER [--tiny] [--peer NAME=PYTHON]."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import machine
from benchmarks.race import ContenderError, Runner
from zoo import models
from zoo.data.sources import from_arrays
from zoo.distributed.mesh import parse_parallelism
from zoo.models.summary import figures
from zoo.training.plan import Plan, make_plan
from zoo.training.recipe import Recipe
from zoo.training.request import TrainRequest
from zoo.trees import flatten

#: One small member of each family, for correctness.
FAMILIES: dict[str, dict[str, Any]] = {
    "lenet5": {},
    "resnet20": {"blocks": (1, 1, 1)},
    "highway_conv": {"layers": 3, "image_size": 8},
    "alexnet_small": {"width": 0.1},
    "googlenet_bn_small": {"width": 0.1, "blocks": (1, 1, 1)},
    "inception_v3_small": {"width": 0.1, "blocks": (1, 1, 1)},
    "inception_resnet_v2_small": {"width": 0.1, "blocks": (1, 1, 1)},
    "xception_small": {"width": 0.1, "blocks": (1,)},
    "resnet50d_small": {"blocks": (1, 1), "width": 16},
    "resnet50_v2_small": {"blocks": (1, 1), "width": 16},
    "se_resnet50_small": {"blocks": (1, 1), "width": 16},
    "resnext50_32x4d_small": {"blocks": (1, 1)},
    "resnet50_gn": {"blocks": (1, 1), "width": 32, "stem": "small"},
    "wide_resnet16_8": {"depth": 10, "widen": 2},
}
#: (model, batch size in training, in inference) of torchvision's and timm's networks.
LARGE = (
    ("resnet50", 256, 512), ("resnet18", 512, 1024), ("alexnet_owt", 1024, 2048), ("googlenet_bn", 256, 512),
    ("inception_v3", 128, 256), ("resnet152", 128, 256),
)  # fmt: skip
#: Largest relative difference of an update in float32 from that of the CPU.
TOLERANCE = 5e-3


class Piece:
    """Results that are written as they come.

    Attributes:
        tiny: measure in small.
        peers: contender -> Python.
        results: what the file holds: "rows" and other entries; "complete" once the piece has ended.
    """

    def __init__(self, name: str, folder: Path, tiny: bool, peers: dict[str, str]):
        self.file, self.tiny, self.peers = folder / f"{name}.json", tiny, peers
        self.results: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {"rows": []}

    def has(self, **key: Any) -> bool:
        return any(key.items() <= row.items() for row in self.results["rows"])

    def add(self, **row: Any) -> None:
        """Add a row, print it and write the file."""
        self.results["rows"].append(row)
        print(
            "   " + "  ".join(f"{key} {value}" for key, value in row.items() if not isinstance(value, list)), flush=True
        )
        self.write()

    def write(self, **entries: Any) -> None:
        self.results |= {"device": jax.devices()[0].device_kind, "when": time.strftime("%Y-%m-%d %H:%M"), **entries}
        self.file.write_text(json.dumps(self.results, indent=1) + "\n")


def run_quietly(words: list[str]) -> str:
    """Return the output of a command, "" if there is none."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=120).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def devices(piece: Piece) -> None:
    query = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version,clocks.sm,power.limit",
        "--format=csv,noheader",
    ]
    versions = "import torch, torchvision; print(torch.__version__, torchvision.__version__, torch.cuda.is_available())"
    piece.write(
        devices=[f"{each.device_kind} ({each.platform})" for each in jax.devices()], nvidia_smi=run_quietly(query),
        versions={name: __import__(name).__version__ for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        peers={name: run_quietly([python, "-c", versions]) for name, python in piece.peers.items()},
        memory={key: value for key, value in (jax.devices()[0].memory_stats() or {}).items() if "limit" in key},
        **machine(),
    )  # fmt: skip


# --- correctness ------------------------------------------------------------------------------------------------------


def plan_of(
    name: str, fields: dict, images: int, batch: int, layout: tuple[str, str] = ("jit", "data=1"), **changes
) -> Plan:
    """Return the plan of a training on random images of the model's size."""
    height, width, channels = models.create(name, **fields).input_shape
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, height, width, channels), np.uint8)
    data = from_arrays((pixels, np.arange(images) % 10), validation=(pixels[:10], np.arange(10)), name="noise")
    recipe = Recipe(batch_size=batch, optimizer="momentum", learning_rate=1e-2, schedule="constant", **changes)
    parallelism = parse_parallelism(*layout)
    return make_plan(TrainRequest(name, data, recipe, fields=fields, parallelism=parallelism))


def update(name: str, layout: tuple[str, str], precision: str) -> np.ndarray:
    """Return the parameters' change in one training step, float64 [number of parameters]."""
    plan = plan_of(name, FAMILIES[name], 16, 8, layout, precision=precision)
    state = plan.shard_state(plan.first_state())
    before = flatten(jax.device_get(state.variables["params"]))
    step = plan.compile_step(plan.segments[0], state)
    state, _ = step(state, next(plan.batches()))
    after = flatten(jax.device_get(state.variables["params"]))
    return np.concatenate([np.ravel(after[path] - before[path]).astype(np.float64) for path in sorted(before)])


def families(tiny: bool) -> list[str]:
    return list(FAMILIES)[: 1 if tiny else None]


def reference(piece: Piece) -> None:
    """Write the updates of this process's device, which is a CPU, to reference/MODEL.npy."""
    folder = piece.file.with_name("reference")
    folder.mkdir(exist_ok=True)
    for name in families(piece.tiny):
        if not (folder / f"{name}.npy").exists():
            np.save(folder / "unfinished.npy", update(name, ("jit", "data=1"), "float32"))
            (folder / "unfinished.npy").rename(folder / f"{name}.npy")


def correctness(piece: Piece) -> None:
    """Compare updates with those of a CPU, which another process computes at the same time."""
    jax.config.update("jax_default_matmul_precision", "highest")
    folder = piece.file.parent
    words = [sys.executable, "-m", "benchmarks.gpu_pieces", "reference", str(folder), *["--tiny"] * piece.tiny]
    on_cpu = subprocess.Popen(words, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    layouts = [("jit", "data=1", "float32"), ("jit", "data=1", "bfloat16"), ("jit", "fsdp=1", "float32"),
               ("pmap", "data=1", "float32")]  # fmt: skip
    try:
        for number, name in enumerate(families(piece.tiny)):
            for method, mesh, precision in layouts[: 4 if number < 2 else 2]:
                key = {"model": name, "layout": f"{method} {mesh}", "precision": precision}
                if piece.has(**key):
                    continue
                ours = update(name, (method, mesh), precision)
                expected = wait_for(folder / "reference" / f"{name}.npy", on_cpu)
                error = float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))
                verdict = {"ok": error <= TOLERANCE} if precision == "float32" else {}
                piece.add(**key, relative_error=float(f"{error:.2g}"), **verdict)
    finally:
        on_cpu.kill()


def wait_for(file: Path, writer: subprocess.Popen) -> np.ndarray:
    """Return the array in a file that another process writes."""
    while not file.exists():
        if writer.poll() is not None and not file.exists():
            raise SystemExit(f"{file.name}: the process that writes it ended with {writer.returncode}")
        time.sleep(0.2)
    return np.load(file)


# --- speed ------------------------------------------------------------------------------------------------------------


def compare(piece: Piece, asked: dict[str, Any], names: dict[str, str], seconds: float, rounds: int) -> dict[str, Any]:
    """Return {contender: images per second, or the reason why there is none}. All compile at the same time."""

    def start(name: str) -> Runner | str:
        try:
            return Runner(name, names[name], asked, 400, "benchmarks.gpu_peers")
        except (ContenderError, OSError) as error:
            return str(error)[:200]

    with ThreadPoolExecutor() as pool:
        started = dict(zip(names, pool.map(start, names), strict=True))
    runners = {name: runner for name, runner in started.items() if isinstance(runner, Runner)}
    speeds: dict[str, list[float]] = {name: [] for name in runners}
    try:
        for _ in range(rounds):
            for name, runner in runners.items():
                steps = max(1, round(seconds / runner.ready["step"]))
                speeds[name].append(steps * asked["batch"] / runner.take(steps))
    finally:
        for runner in runners.values():
            runner.stop()
    return {name: round(statistics.median(speeds[name])) if name in speeds else started[name] for name in names}


def speed(piece: Piece) -> None:
    cases = [("resnet20", (32, 32, 3), 10, 32, 32)] if piece.tiny else [
        (name, (299, 299, 3) if name == "inception_v3" else (224, 224, 3), 1000, *sizes) for name, *sizes in LARGE
    ]  # fmt: skip
    # All networks in bfloat16 first; TF32 for a few.
    order = [
        (True, "bfloat16", cases),
        (False, "bfloat16", cases),
        (True, "tf32", cases[:3]),
        (False, "tf32", cases[:3]),
    ]
    macs = figures()
    for training, precision, listed in order:
        for model, shape, classes, *sizes in listed:
            key = {"model": model, "training": training, "precision": precision, "batch": sizes[0 if training else 1]}
            if piece.has(**key):
                continue
            names = {"zoo": sys.executable, **piece.peers}
            if "torch" in names and model in ("resnet50", "alexnet_owt"):
                names["torch-compile"] = names["torch"]
            asked = {
                "model": model, "training": training, "shape": shape, "classes": classes, "batch": key["batch"],
                "threads": 0, "kept": False, "extra": {"precision": precision},
            }  # fmt: skip
            found = compare(piece, asked, names, 0.2 if piece.tiny else 1.5, 2 if piece.tiny else 4)
            row = {**key, **found}
            if isinstance(found["zoo"], int):
                operations = 2 * (3 if training else 1) * macs[model]["multiply_adds"]
                row["zoo_tflops"] = round(found["zoo"] * operations / 1e12, 1)
                others = [value for name, value in found.items() if name != "zoo" and isinstance(value, int)]
                row |= {"ratio": round(found["zoo"] / max(others), 2)} if others else {}
            piece.add(**row)


def batches(piece: Piece) -> None:
    model, shape, classes, sizes = ("resnet20", (32, 32, 3), 10, (8,)) if piece.tiny else (
        "resnet50", (224, 224, 3), 1000, (64, 128, 256, 512, 1024)
    )  # fmt: skip
    for batch in sizes:
        if piece.has(batch=batch):
            continue
        asked = {
            "model": model, "training": True, "shape": shape, "classes": classes, "batch": batch, "threads": 0,
            "kept": False, "extra": {"precision": "bfloat16"},
        }  # fmt: skip
        names = {"zoo": sys.executable, **piece.peers}
        piece.add(model=model, batch=batch, **compare(piece, asked, names, 0.2 if piece.tiny else 1.0, 2))


# --- small networks ---------------------------------------------------------------------------------------------------


def timed(function: Callable[[], Any], seconds: float) -> float:
    """Return the seconds of a call, from calls for about this many seconds after a first one."""
    jax.block_until_ready(function())
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        result = function()
        calls += 1
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls


def small(piece: Piece) -> None:
    """Time training through `Plan.batches`, and with several steps per dispatch over images on the device."""
    cases = (
        [("lenet5", 32)]
        if piece.tiny
        else [("lenet5", 256), ("resnet20", 128), ("resnet20", 512), ("wide_resnet16_8", 128)]
    )
    images, seconds, chunk = (256, 0.3, 2) if piece.tiny else (50_000, 3.0, 16)
    for model, batch in cases:
        plan = plan_of(model, {}, images, batch, precision="bfloat16", augment=("pad_crop(pad=4)",))
        compiled = plan.compile_step(plan.segments[0], plan.first_state())
        for where in ("off", "on"):
            key = {"model": model, "batch": batch, "images": {"off": "host", "on": "device"}[where], "steps": 1}
            if not piece.has(**key):
                stream, kept = Plan(**{**vars(plan), "device_data": where}).batches(), [plan.first_state()]

                def step(stream=stream, kept=kept, compiled=compiled):
                    kept[0], metrics = compiled(kept[0], next(stream))
                    return metrics

                piece.add(**key, images_per_second=round(batch / timed(step, seconds)))
        key = {"model": model, "batch": batch, "images": "device", "steps": chunk}
        if not piece.has(**key):
            piece.add(**key, images_per_second=round(batch * chunk / timed(several_steps(plan, chunk), seconds)))


def several_steps(plan: Plan, count: int) -> Callable[[], Any]:
    """Return a function that takes `count` steps of a plan in one dispatch."""
    from zoo.data.loader import preprocessed, train_indices
    from zoo.training.step import make_train_step

    split, segment = plan.dataset.splits["train"], plan.segments[0]
    step = make_train_step(
        plan.model, plan.recipe, segment.preprocess, plan.optimizer(segment), augmentation=segment.augmentation.device
    )
    images, labels = jax.device_put((preprocessed(split, segment.preprocess, None), np.asarray(split.labels, np.int32)))

    @partial(jax.jit, donate_argnums=0)
    def steps(state, images, labels, rows):
        def body(state, rows):
            return step(state, {"image": images[rows], "label": labels[rows], "weight": jnp.ones(len(rows))})

        return jax.lax.scan(body, state, rows)

    indices, kept = train_indices(len(split), plan.batch_size, 0), [plan.first_state()]

    def call():
        rows = np.stack([next(indices) for _ in range(count)]).astype(np.int32)
        kept[0], metrics = steps(kept[0], images, labels, rows)
        return metrics

    return call


# --- kernels, layouts, loader, accuracy -------------------------------------------------------------------------------

#: Class of kernel -> parts of the names of such kernels.
KINDS = {
    "convolution or product": ("conv", "gemm", "cutlass", "cudnn", "xmma", "wgrad", "dgrad", "fprop", "dot"),
    "copy or transpose": ("copy", "memcpy", "transpose"),
    "reduction": ("reduce", "reduction"),
    "fusion": ("fusion", "fused"),
}


def profile(piece: Piece) -> None:
    """Trace three training steps and add up the time of each kernel."""
    model, batch = ("resnet20", 8) if piece.tiny else ("resnet50", 256)
    plan = plan_of(model, {}, 2 * batch, batch, precision="bfloat16")
    state = plan.first_state()
    compiled = plan.compile_step(plan.segments[0], state)
    stream = plan.batches()
    for _ in range(3):
        state, metrics = compiled(state, next(stream))
    jax.block_until_ready(metrics)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with jax.profiler.trace(folder):
            for _ in range(3):
                state, metrics = compiled(state, next(stream))
            jax.block_until_ready(metrics)
        wall = (time.perf_counter() - began) / 3
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    planes = list(data.planes)
    on_device = [plane for plane in planes if plane.name.startswith("/device:")] or planes
    times: Counter[str] = Counter()
    for plane in on_device:
        for line in plane.lines:
            if plane.name.startswith("/device:") and not line.name.startswith("Stream"):
                continue  # XLA's own lines repeat the kernels of the streams
            for event in line.events:
                times[event.name] += event.duration_ns / 3e6
    kinds: Counter[str] = Counter()
    for name, milliseconds in times.items():
        kinds[next((kind for kind, parts in KINDS.items() if any(p in name.lower() for p in parts)), "other")] += (
            milliseconds
        )
    piece.results["rows"] = []
    for name, milliseconds in times.most_common(5 if piece.tiny else 25):
        piece.add(kernel=name[:100], milliseconds_per_step=round(milliseconds, 3))
    piece.write(
        model=model, batch=batch, traced_seconds_per_step=round(wall, 4),
        kernel_milliseconds=round(sum(times.values()), 2),
        milliseconds_by_kind={kind: round(value, 2) for kind, value in kinds.most_common()},
    )  # fmt: skip


def layouts(piece: Piece) -> None:
    """Time single convolutions of ResNet-50 in both layouts, forward and with gradients."""
    batch = 2 if piece.tiny else 256
    shapes = [(56, 64, 64, 3, 1), (56, 256, 64, 1, 1), (28, 128, 128, 3, 1), (14, 256, 256, 3, 1), (7, 512, 512, 3, 1)]
    for side, channels, features, window, stride in shapes[: 1 if piece.tiny else None]:
        for layout, kernel_layout in (("NHWC", "HWIO"), ("NCHW", "OIHW")):
            row = {"map": side, "channels": channels, "features": features, "window": window, "layout": layout}
            if piece.has(**row):
                continue
            sizes = {"N": batch, "H": side, "W": side, "C": channels}
            x = jnp.ones([sizes[axis] for axis in layout], jnp.bfloat16)
            sizes = {"H": window, "W": window, "I": channels, "O": features}
            kernel = jnp.ones([sizes[axis] for axis in kernel_layout], jnp.bfloat16)
            convolve = partial(
                jax.lax.conv_general_dilated, window_strides=(stride, stride), padding="SAME",
                dimension_numbers=(layout, kernel_layout, layout),
            )  # fmt: skip
            forward = jax.jit(convolve)
            both = jax.jit(jax.grad(lambda x, kernel, convolve=convolve: (convolve(x, kernel) ** 2).sum(), (0, 1)))
            operations = 2 * batch * side * side * channels * features * window**2 / stride**2
            seconds = 0.1 if piece.tiny else 0.5
            piece.add(
                **row, forward_tflops=round(operations / timed(partial(forward, x, kernel), seconds) / 1e12, 2),
                with_gradients_tflops=round(3 * operations / timed(partial(both, x, kernel), seconds) / 1e12, 2),
            )  # fmt: skip


def loader(piece: Piece) -> None:
    from benchmarks import loader as loading

    workers = 1 if piece.tiny else len(os.sched_getaffinity(0))
    width, height, files, count = (80, 60, 8, 64) if piece.tiny else (500, 375, 128, 6000)
    with tempfile.TemporaryDirectory() as folder:
        photos = loading.make_photos(Path(folder, "photos"), width, height, files)
        found = loading.compare_speed({"zoo": sys.executable, **piece.peers}, photos, count, workers)
    for name, row in found.items():
        known = (
            {key: value for key, value in row.items() if key != "rounds"} if isinstance(row, dict) else {"missing": row}
        )
        piece.add(contender=name, size=f"{width}x{height}", workers=workers, **known)


def accuracy(piece: Piece) -> None:
    """Time whole trainings, from the call to the tested checkpoint, with the default recipes."""
    import zoo

    cases = [("lenet5", "digits", 1.0 if piece.tiny else 0.0), ("resnet20", "digits", 1.0 if piece.tiny else 5.0)]
    for model, data, epochs in cases[: 1 if piece.tiny else None]:
        if piece.has(model=model, data=data):
            continue
        changes: dict[str, Any] = {"epochs": epochs} if epochs else {}
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            trained = zoo.fit(model, data, workdir=folder, quiet=True, **changes)
            seconds = time.perf_counter() - began
        accuracy = trained.card.metrics["test"]["accuracy"]
        piece.add(model=model, data=data, seconds=round(seconds, 1), test_accuracy=round(accuracy, 4))


FUNCTIONS = {
    function.__name__: function
    for function in (devices, correctness, speed, small, profile, batches, layouts, loader, accuracy)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("piece", choices=[*FUNCTIONS, "reference"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--peer", action="append", default=[])
    options = parser.parse_args()
    os.environ.setdefault("ZOO_REPORT", "0")
    peers = dict(peer.partition("=")[::2] for peer in options.peer)
    piece = Piece(options.piece, options.folder, options.tiny, peers)
    if options.piece == "reference":
        reference(piece)
        return
    FUNCTIONS[options.piece](piece)
    piece.write(complete=True)


if __name__ == "__main__":
    main()
