"""`zoo serve`: classify images on a page of this computer."""

import argparse
from pathlib import Path
from typing import Any

from zoo.commands import count, counter, start_jax


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="Folder of a run, or folder or name of a checkpoint.")
    parser.add_argument("--port", metavar="N", type=count, default=8000, help="Port; 0: any free one (default: 8000).")
    parser.add_argument(
        "--nearest", action="store_true", help="Show the nearest training images, by the network's features."
    )
    parser.add_argument("--data", metavar="DATA", help="Data of --nearest (default: the data it was trained on).")
    parser.add_argument("--data-dir", metavar="DIR", help="Folder of TensorFlow Datasets and Hugging Face datasets.")
    parser.add_argument(
        "--features", metavar="FILE.npz", help="Features of --nearest, from `zoo features` (default: computed now)."
    )


def run(options: argparse.Namespace) -> int:
    if options.port > 65535:
        raise ValueError(f"--port {options.port}: ports end at 65535")
    for name in ("data", "data_dir", "features"):
        if getattr(options, name) is not None and not options.nearest:
            raise ValueError(f"--{name.replace('_', '-')} belongs to --nearest")
    start_jax()
    from zoo import loading
    from zoo.analysis.serve import Classifier, Server

    folder = Path(options.checkpoint)
    loaded = loading.load(options.checkpoint)
    neighbours = open_neighbours(loaded, options) if options.nearest else None
    title = folder.name if folder.is_dir() else str(options.checkpoint)
    classifier = Classifier(loaded, title, neighbours)
    try:
        server = Server(classifier, options.port)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"--port {options.port}: {reason}; try --port 0 for a free one") from None
    with server:
        print("Compiling …", flush=True)
        classifier.warm_up()
        print(f"{server.url} is open to this computer only; Ctrl-C ends it", flush=True)
        server.serve_forever()
    return 0


def open_neighbours(loaded: Any, options: argparse.Namespace) -> Any:
    """Read or compute the features of the training images."""
    from zoo.analysis.neighbours import neighbours_in, read_neighbours
    from zoo.commands.evaluate import open_data_of

    def open_data(features: Any = None) -> Any:
        name = options.data or (features.origin.data if features else None)
        return open_data_of(options.checkpoint, loaded.card, name, options.data_dir)

    if options.features:
        neighbours = read_neighbours(loaded, options.features, open_data)
    else:
        print("Computing the features of the training images …", flush=True)
        neighbours = neighbours_in(loaded, open_data(), counter("images"))
    print(f"nearest of {neighbours.about}", flush=True)
    return neighbours
