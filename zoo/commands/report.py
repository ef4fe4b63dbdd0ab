"""`zoo report`: write a page about a run or a checkpoint."""

import argparse
from pathlib import Path

from zoo.commands import counter, start_jax, writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="CKPT", help="Folder of a run, or folder or name of a checkpoint.")
    parser.add_argument("--data", metavar="DATA", help="Data set (default: the one it was trained on).")
    parser.add_argument("--data-dir", metavar="DIR", help="Folder of TensorFlow Datasets and Hugging Face datasets.")
    parser.add_argument("--split", metavar="NAME", default="", help="Split: train, validation or test (default: test).")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE.html",
        help="Page to write (default: report.html, in the folder of a run unless --data or --split is given).",
    )


def run(options: argparse.Namespace) -> int:
    import time

    start = time.monotonic()
    start_jax()
    from zoo.training import run as runs
    from zoo.training.report import PAGE

    folder = Path(options.source)
    own = (folder / runs.CONFIG).is_file() and not options.data and not options.split
    page = options.output or str(folder / PAGE if own else PAGE)
    with writing(page, ".html") as output:
        size = _write(options, output.path) / 1e6
    print(f"{page}: {size:.1f} MB in {time.monotonic() - start:.0f} s; open it in any browser")
    return 0


def _write(options: argparse.Namespace, file: Path) -> int:
    """Write the page and return its bytes."""
    from zoo import loading
    from zoo.analysis import report
    from zoo.commands.evaluate import open_data_of

    dataset = open_data_of(options.source, loading.load(options.source).card, options.data, options.data_dir)
    page = report.report(options.source, dataset, file, split=options.split, on_batch=counter("evaluated"))
    return page.stat().st_size
