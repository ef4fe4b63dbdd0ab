"""Time loading: from image files to batches of random crops, for this project, PyTorch and tf.data.

    python -m benchmarks.loader                                     # this project alone
    python -m benchmarks.loader --peer torch=ENV/bin/python --peer tf=ENV/bin/python
    python -m benchmarks.loader --folder PHOTOS                     # also time the first scan of a folder
    python -m benchmarks.loader --formats                           # only the rates of PNG, WebP and AVIF, beside JPEG

The images are the two photographs in scikit-learn, cropped and scaled. Each peer runs in its own process, one after
another, for several rounds. Medians of the rounds are reported, in images per second and per second of processor time
of the process and its workers, which is less affected by other work on the machine. The results, and a comparison of
the crops' pixels, are written to benchmarks/results/loader.json, with the machine; what a call does not measure stays
there. docs/performance.md tells how the loader compares.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "loader.json"
PEERS = Path(__file__).with_name("loader_peers.py")

#: (width, height, number of files, number of timed images): ImageNet's usual size, and that of a small camera.
SETS = {"500x375": (500, 375, 128, 512), "1600x1200": (1600, 1200, 64, 160)}
BATCH, ROUNDS = 32, 3
#: Suffix -> options of Pillow, for the rates of other formats at 500x375.
FORMATS: dict[str, dict] = {
    "jpg": {"quality": 90}, "png": {}, "webp": {"quality": 90}, "avif": {"quality": 75, "speed": 8}
}  # fmt: skip


def make_photos(folder: Path, width: int, height: int, count: int, suffix: str = "jpg") -> list[str]:
    """Write files, JPEG with subsampled chroma by default, from scaled crops of scikit-learn's two photographs."""
    import sklearn
    from PIL import Image

    pictures = [
        Image.open(Path(sklearn.__file__).parent / "datasets" / "images" / n) for n in ("china.jpg", "flower.jpg")
    ]
    rng = np.random.default_rng(0)
    folder.mkdir()
    files = []
    for n in range(count):
        picture = pictures[n % 2]
        whole = min(picture.width, picture.height * width / height)
        w = whole * rng.uniform(0.6, 1)
        h = w * height / width
        left, top = rng.uniform(0, picture.width - w), rng.uniform(0, picture.height - h)
        file = folder / f"{n}.{suffix}"
        scaled = picture.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + w, top + h))
        scaled.save(file, **FORMATS[suffix])
        files.append(str(file))
    return files


def run_peer(python: str, name: str, asked: dict) -> dict | str:
    """Return the output of loader_peers.py, or the reason for its failure."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(
        [python, str(PEERS), name, json.dumps(asked)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        return (done.stderr.strip() or "failed").splitlines()[-1]
    return json.loads(done.stdout.splitlines()[-1])


def compare_speed(pythons: dict[str, str], files: list[str], count: int, workers: int) -> dict:
    """Return the medians of the rounds by peer, or the reason why a peer cannot run."""
    asked = {"files": files, "batch": BATCH, "workers": workers, "count": count, "warm": 2 * workers * BATCH}
    rounds: dict[str, list] = {name: [] for name in pythons}
    for _ in range(ROUNDS):
        for name, python in pythons.items():
            rounds[name].append(run_peer(python, name, asked))
    found: dict = {}
    for name, results in rounds.items():
        if failures := [each for each in results if isinstance(each, str)]:
            found[name] = failures[0]
            continue
        keys = results[0].keys()
        found[name] = {key: round(statistics.median(r[key] for r in results), 1) for key in keys}
        found[name]["rounds"] = [{key: round(r[key], 1) for key in keys} for r in results]
    return found


def compare_pixels(pythons: dict[str, str], files: list[str]) -> dict:
    """Return the mean and largest difference, in levels, between a peer's crops and this project's."""
    from PIL import Image

    from zoo.data.augment.host_crop import Crop, draw_crop

    files = files[:32]
    sizes = [Image.open(file).size for file in files]
    boxes = [draw_crop(0, 0, n, height, width, Crop()) for n, (width, height) in enumerate(sizes)]
    images = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, python in pythons.items():
            out = Path(folder, f"{name}.npy")
            answer = run_peer(python, "pixels", {"who": name, "files": files, "boxes": boxes, "out": str(out)})
            if not isinstance(answer, str):
                images[name] = np.load(out).astype(int)
    ours = images.pop("zoo")
    return {
        name: {"mean": round(float(abs(other - ours).mean()), 3), "largest": int(abs(other - ours).max())}
        for name, other in images.items()
    }


def compare_formats(pythons: dict[str, str], workers: int) -> dict:
    """Return what `compare_speed` does for each format of files."""
    found = {}
    for suffix in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            files = make_photos(Path(folder, suffix), 500, 375, 64, suffix)
            found[suffix] = compare_speed(pythons, files, 256, workers)
            found[suffix]["mean_kilobytes"] = round(statistics.mean(os.path.getsize(file) for file in files) / 1000, 1)
        print(suffix, json.dumps(found[suffix]), flush=True)
    return found


def first_look(folder: str) -> dict:
    """Return the seconds that `open_dataset` takes without a cache and with one."""
    from zoo.data.sources import open_dataset

    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        times = []
        for _ in range(2):
            began = time.perf_counter()
            dataset = open_dataset(folder)
            times.append(round(time.perf_counter() - began, 2))
    return {"images": sum(map(len, dataset.splits.values())), "first_seconds": times[0], "again_seconds": times[1]}


def add_results(entries: dict) -> None:
    """Write entries into the file of the results; those that were not measured again stay."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(known | entries, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer", metavar="NAME=PYTHON", action="append", default=[], help="torch or tf, and a Python that has it"
    )
    parser.add_argument("--workers", type=int, default=1, help="threads or processes of each peer (default: 1)")
    parser.add_argument("--folder", help="also time the first scan of this folder")
    parser.add_argument("--formats", action="store_true", help="time other formats than JPEG, and nothing else")
    options = parser.parse_args()
    pythons = {"zoo": sys.executable, **dict(peer.split("=", 1) for peer in options.peer)}
    about = {
        "machine": machine(), "load_before": [round(v, 1) for v in os.getloadavg()], "workers": options.workers,
        "batch": BATCH,
    }  # fmt: skip
    if options.formats:
        add_results({"formats": {**about, **compare_formats(pythons, options.workers)}})
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, (width, height, number, count) in SETS.items():
            files = make_photos(Path(folder, name), width, height, number)
            found = {**about, **compare_speed(pythons, files, count, options.workers)}
            found["pixel_difference"] = compare_pixels(pythons, files)
            print(name, json.dumps(found), flush=True)
            add_results({name: found})
    if options.folder:
        found = {"machine": about["machine"], **first_look(options.folder)}
        print("folder", json.dumps(found))
        add_results({"folder": found})


if __name__ == "__main__":
    main()
