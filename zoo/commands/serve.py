"""`zoo serve`: classify images on a page of this computer."""

import argparse
from pathlib import Path

from zoo.commands import count, start_jax


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="Folder or name of a checkpoint.")
    parser.add_argument("--port", metavar="N", type=count, default=8000, help="Port; 0: any free one (default: 8000).")


def run(options: argparse.Namespace) -> int:
    if options.port > 65535:
        raise ValueError(f"--port {options.port}: ports end at 65535")
    start_jax()
    from zoo import loading
    from zoo.analysis.report import checkpoint_of
    from zoo.analysis.serve import Classifier, Server

    checkpoint = checkpoint_of(options.checkpoint)
    folder = Path(options.checkpoint)
    classifier = Classifier(loading.load(checkpoint), folder.name if folder.is_dir() else str(options.checkpoint))
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
