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
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu import REFERENCE
from benchmarks.machine import machine
from benchmarks.race import ContenderError, Runner, check_parameters
from benchmarks.race_peers import network
from zoo import models
from zoo.data.sources import from_arrays
from zoo.distributed.mesh import parse_parallelism
from zoo.files import write_atomically
from zoo.models.summary import layers, totals
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
#: Precision -> largest relative difference of an update from that of the CPU in float32. No update at all would have 1.
#: In bfloat16 the CPU itself differs by 0.01 (highway networks) to 0.54 (Inception-v3).
TOLERANCES = {"float32": 5e-3, "bfloat16": 0.8}


class Piece:
    """Results that are written as they come.

    Attributes:
        tiny: measure in small.
        peers: contender -> Python.
        results: what the file holds: "rows" and other entries; "complete" once the piece has ended with figures of all
            contenders, and "with_peers", their names.
        missing: True if a contender had no figure in this call.
    """

    def __init__(self, name: str, folder: Path, tiny: bool, peers: dict[str, str]):
        self.file, self.tiny, self.peers = folder / f"{name}.json", tiny, peers
        self.results: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {"rows": []}
        self.missing = False

    def has(self, key: dict[str, Any], contenders: Iterable[str] = ()) -> bool:
        """Return True if there is a row with these entries and a figure of each contender."""
        return any(
            key.items() <= row.items() and all(isinstance(row.get(name), (int, float)) for name in contenders)
            for row in self.results["rows"]
        )

    def add(self, key: dict[str, Any], contenders: Iterable[str] = (), **figures: Any) -> None:
        """Add a row in place of one with the same key, print it and write the file.

        Args:
            key: entries that no other row has.
            contenders: names in `figures` that have a number, or else the reason why they have none.
            **figures: the other entries.
        """
        self.missing |= any(not isinstance(figures[name], (int, float)) for name in contenders)
        self.results["rows"] = [row for row in self.results["rows"] if not key.items() <= row.items()]
        row = {**key, **figures}
        self.results["rows"].append(row)
        print(
            "   " + "  ".join(f"{key} {value}" for key, value in row.items() if not isinstance(value, list)), flush=True
        )
        self.write()

    def write(self, **entries: Any) -> None:
        self.results |= {"device": jax.devices()[0].device_kind, "when": time.strftime("%Y-%m-%d %H:%M"), **entries}
        write_atomically(self.file, json.dumps(self.results, indent=1) + "\n")


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
    """Write the updates of this process's device, which is a CPU, to REFERENCE/MODEL.npy."""
    folder = piece.file.with_name(REFERENCE)
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
    cases = [("jit", "data=1", "float32"), ("jit", "data=1", "bfloat16"), ("pmap", "data=1", "float32")]
    try:
        for number, name in enumerate(families(piece.tiny)):
            for method, mesh, precision in cases[: 3 if number < 2 else 2]:
                key = {"model": name, "layout": f"{method} {mesh}", "precision": precision}
                if piece.has(key):
                    continue
                ours = update(name, (method, mesh), precision)
                expected = wait_for(folder / REFERENCE / f"{name}.npy", on_cpu)
                error = float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))
                piece.add(key, relative_error=float(f"{error:.2g}"), ok=error <= TOLERANCES[precision])
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


def compare(
    asked: dict[str, Any], names: dict[str, str], seconds: float, rounds: int, alone: bool = False
) -> dict[str, Any]:
    """Return {contender: images per second, or the reason why there is none}.

    Contenders start, compile and choose their kernels one after another, on an accelerator that computes nothing else.
    Then they take turns.

    Args:
        asked: what race_peers.py is told.
        names: contender -> Python.
        seconds: approximate length of a turn.
        rounds: number of turns.
        alone: end each contender before the next one starts, so that it has all of the memory.
    """
    found: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for together in [[name] for name in names] if alone else [list(names)]:
        runners: dict[str, Runner] = {}
        speeds: dict[str, list[float]] = {name: [] for name in together}
        try:
            for name in together:
                try:
                    runners[name] = Runner(name, names[name], asked, 400, "benchmarks.gpu_peers")
                    counts[name] = runners[name].ready["parameters"]
                    if "zoo" in counts:
                        check_parameters(asked["model"], {"zoo": counts["zoo"], name: counts[name]})
                except (ContenderError, OSError) as error:
                    found[name] = str(error)[:200]
            for name in together * rounds:
                if name in found:
                    continue
                steps = max(1, round(seconds / runners[name].ready["step"]))
                try:
                    speeds[name].append(steps * asked["batch"] / runners[name].take(steps))
                except ContenderError as error:
                    found[name] = str(error)[:200]
        finally:
            for runner in runners.values():
                runner.stop()
        found |= {name: round(statistics.median(values)) for name, values in speeds.items() if name not in found}
    return {name: found[name] for name in names}


def speed(piece: Piece) -> None:
    cases: list[tuple[Any, ...]] = [("resnet20", (32, 32, 3), 10, 32, 32)] if piece.tiny else [
        (name, (299, 299, 3) if name == "inception_v3" else (224, 224, 3), 1000, *sizes) for name, *sizes in LARGE
    ]  # fmt: skip
    # All networks in bfloat16 first; TF32 for a few.
    order = [
        (True, "bfloat16", cases),
        (False, "bfloat16", cases),
        (True, "tf32", cases[:3]),
        (False, "tf32", cases[:3]),
    ]
    for training, precision, listed in order:
        for model, shape, classes, *sizes in listed:
            key = {"model": model, "training": training, "precision": precision, "batch": sizes[0 if training else 1]}
            names = {"zoo": sys.executable, **piece.peers}
            if "torch" in names and model in ("resnet50", "alexnet_owt"):
                names["torch-compile"] = names["torch"]
            if piece.has(key, names):
                continue
            asked = {
                "model": model, "training": training, "shape": shape, "classes": classes, "batch": key["batch"],
                "threads": 0, "kept": False, "extra": {"precision": precision},
            }  # fmt: skip
            seconds, rounds = (0.2, 2) if piece.tiny else (1.5, 4)
            found = compare(asked, names, seconds, rounds, alone=precision == "tf32")
            row = dict(found)
            if isinstance(found["zoo"], int):
                operations = 2 * (3 if training else 1) * totals(layers(network(model), shape))["multiply_adds"]
                row["zoo_tflops"] = round(found["zoo"] * operations / 1e12, 1)
                row |= ratio_to_fastest(found)
            piece.add(key, names, **row)


def ratio_to_fastest(found: dict[str, Any]) -> dict[str, Any]:
    """Return this project's speed by that of the fastest peer, and of whom: {"ratio", "ratio_to"}.

    Args:
        found: what `compare` returns, with a figure of "zoo". Peers that failed are named beside the fastest.
    """
    peers = {name: value for name, value in found.items() if name != "zoo" and isinstance(value, int)}
    if not peers:
        return {}
    fastest = max(peers, key=lambda name: peers[name])
    failed = "".join(f"; {name} failed" for name, value in found.items() if isinstance(value, str))
    return {"ratio": round(found["zoo"] / peers[fastest], 2), "ratio_to": fastest + failed}


def batches(piece: Piece) -> None:
    model, shape, classes, sizes = ("resnet20", (32, 32, 3), 10, (8,)) if piece.tiny else (
        "resnet50", (224, 224, 3), 1000, (64, 128, 256, 512, 1024)
    )  # fmt: skip
    for batch in sizes:
        key, names = {"model": model, "batch": batch}, {"zoo": sys.executable, **piece.peers}
        if piece.has(key, names):
            continue
        asked = {
            "model": model, "training": True, "shape": shape, "classes": classes, "batch": batch, "threads": 0,
            "kept": False, "extra": {"precision": "bfloat16"},
        }  # fmt: skip
        piece.add(key, names, **compare(asked, names, 0.2 if piece.tiny else 1.0, 2, alone=True))


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
            if not piece.has(key):
                stream, kept = Plan(**{**vars(plan), "device_data": where}).batches(), [plan.first_state()]

                def step(stream=stream, kept=kept, compiled=compiled):
                    kept[0], metrics = compiled(kept[0], next(stream))
                    return metrics

                piece.add(key, images_per_second=round(batch / timed(step, seconds)))
        key = {"model": model, "batch": batch, "images": "device", "steps": chunk}
        if not piece.has(key):
            piece.add(key, images_per_second=round(batch * chunk / timed(several_steps(plan, chunk), seconds)))


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


def kind_of(kernel: str) -> str:
    """Return the class of a kernel in KINDS by its name, or "other". Conversions of types are no convolutions."""
    name = kernel.lower().replace("convert", "")
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")


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
        kinds[kind_of(name)] += milliseconds
    piece.results["rows"] = []
    for place, (name, milliseconds) in enumerate(times.most_common(5 if piece.tiny else 25), 1):
        piece.add({"place": place, "kernel": name[:100]}, milliseconds_per_step=round(milliseconds, 3))
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
            key = {"map": side, "channels": channels, "features": features, "window": window, "layout": layout}
            if piece.has(key):
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
                key, forward_tflops=round(operations / timed(partial(forward, x, kernel), seconds) / 1e12, 2),
                with_gradients_tflops=round(3 * operations / timed(partial(both, x, kernel), seconds) / 1e12, 2),
            )  # fmt: skip


def loader(piece: Piece) -> None:
    from benchmarks import loader as loading

    workers = 1 if piece.tiny else len(os.sched_getaffinity(0))
    width, height, files, count = (80, 60, 8, 64) if piece.tiny else (500, 375, 128, 6000)
    setting = {"size": f"{width}x{height}", "workers": workers}
    pythons = {"zoo": sys.executable, **piece.peers}
    if all(piece.has({"contender": name, **setting}, ["images_per_second"]) for name in pythons):
        return
    with tempfile.TemporaryDirectory() as folder:
        photos = loading.make_photos(Path(folder, "photos"), width, height, files)
        found = loading.compare_speed(pythons, photos, count, workers)
    for name, row in found.items():
        known = {"images_per_second": row} if isinstance(row, str) else {k: v for k, v in row.items() if k != "rounds"}
        piece.add({"contender": name, **setting}, ["images_per_second"], **known)


def accuracy(piece: Piece) -> None:
    """Time whole trainings, from the call to the tested checkpoint, with the default recipes."""
    import zoo

    cases = [("lenet5", "digits", 1.0 if piece.tiny else 0.0), ("resnet20", "digits", 1.0 if piece.tiny else 5.0)]
    for model, data, epochs in cases[: 1 if piece.tiny else None]:
        key = {"model": model, "data": data}
        if piece.has(key):
            continue
        changes: dict[str, Any] = {"epochs": epochs} if epochs else {}
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            trained = zoo.fit(model, data, workdir=folder, quiet=True, **changes)
            seconds = time.perf_counter() - began
        accuracy = trained.card.metrics["test"]["accuracy"]
        piece.add(key, seconds=round(seconds, 1), test_accuracy=round(accuracy, 4))


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
    piece.write(complete=not piece.missing, with_peers=sorted(peers))


if __name__ == "__main__":
    main()
