"""`zoo push`: upload a checkpoint to the Hugging Face Hub."""

import argparse
from typing import Any

from zoo.commands import amount
from zoo.text import escape


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="Folder of a run, or folder or name of a checkpoint.")
    parser.add_argument("name", metavar="hf:USER/NAME", help="Name of the repository; a new one is created.")
    parser.add_argument("--private", action="store_true", help="Create the repository as a private one.")
    parser.add_argument("--message", metavar="TEXT", default="", help="Message of the commit.")
    parser.add_argument(
        "--overwrite-readme", action="store_true", help="Replace README.md even if it was edited on the Hub."
    )
    parser.add_argument("--dry-run", action="store_true", help="Show what would be uploaded, and upload nothing.")


def run(options: argparse.Namespace) -> int:
    from zoo.pretrained import hub, weights

    hub.parse_name(options.name)
    folder = weights.folder_of(options.checkpoint)
    planned = hub.plan_upload(folder, options.name, options.private, options.overwrite_readme, options.dry_run)
    for line in describe(planned):
        print(escape(line))
    if options.dry_run:
        print("nothing was uploaded (--dry-run)")
        return 0
    print(hub.upload(planned, options.message))
    print(f"use it: zoo predict {planned.name} IMAGE, or zoo.load('{planned.name}')")
    return 0


def describe(planned: Any) -> list[str]:
    """Return lines that tell what a push writes, where, and who can see it."""
    seen_by = "private" if planned.private else "public"
    state = "not checked" if planned.unchecked else "exists" if planned.parent else "new"
    where = f"{planned.name.url} ({seen_by}, {state})"
    lines = [f"{planned.folder} -> {where}"]
    beside = {file: size for file, size in planned.files.items() if "/" not in file}
    lines += [f"  {file:<16}{amount(size)}B" for file, size in sorted(beside.items())]
    arrays = [size for file, size in planned.files.items() if file not in beside]
    lines.append(f"  {'arrays/':<16}{amount(sum(arrays))}B in {len(arrays):,} files")
    if planned.delete:
        lines.append(f"  {len(planned.delete):,} files of the arrays before are removed")
    notes = list(planned.notes)
    if planned.unchecked:
        notes.append(f"{planned.unchecked}; not checked: the repository and what it holds, and if you may write there")
    return lines + [f"note: {note}" for note in notes]
