"""`zoo verify`: check every file and leaf of a checkpoint against its hashes."""

import argparse
import sys
from pathlib import Path

from zoo.addresses import is_address, parse_address
from zoo.commands import add_allow_nonfinite, amount


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="Folder of a run, or folder or name of a checkpoint.")
    parser.add_argument(
        "--accept-readme", action="store_true", help="Take README.md off the manifest, so that you may edit it."
    )
    add_allow_nonfinite(parser)


def run(options: argparse.Namespace) -> int:
    import math

    from zoo import checkpoint, loading
    from zoo.checkpoint.manifest import unlist_readme
    from zoo.pretrained import weights

    if is_address(options.checkpoint):
        if options.accept_readme:
            raise ValueError(f"{options.checkpoint}: --accept-readme takes a folder on disk; save the checkpoint anew")
        problems = checkpoint.verify_checkpoint(options.checkpoint, options.allow_nonfinite)
        folder = Path() if problems else checkpoint.fetch_checkpoint(parse_address(options.checkpoint))
    else:
        folder = weights.folder_of(options.checkpoint)
        if options.accept_readme:
            unlist_readme(folder)
        problems = checkpoint.verify_checkpoint(folder, options.allow_nonfinite)
    if not problems:
        try:
            loaded = loading.load(folder, allow_nonfinite=options.allow_nonfinite)
        except ValueError as error:  # intact, but does not match its model
            problems = [str(error)]
    for problem in problems:
        print(f"{options.checkpoint}: {problem}", file=sys.stderr)
    if problems:
        return 2
    files = [part for part in folder.rglob("*") if part.is_file()]
    values = sum(math.prod(row["shape"]) for row in loaded.card.leaves)
    size = sum(part.stat().st_size for part in files)
    print(
        f"{options.checkpoint}: ok, {len(files)} files, {amount(size)}B, {len(loaded.card.leaves)} leaves, "
        f"{values:,} values, {loaded.card.model}"
    )
    if options.accept_readme:
        print(f"{options.checkpoint}: README.md is not part of the manifest now and may be edited")
    return 0
