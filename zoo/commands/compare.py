"""`zoo compare`: show what differs between runs, and what came of it."""

import argparse
from functools import partial
from pathlib import Path

from zoo.commands import write_extra
from zoo.files import require_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="Folders of runs, such as runs/*.")
    add("-o", "--output", metavar="FILE.png", help="Curves of all runs (default: a file in the cache folder).")
    add("--html", metavar="FILE.html", help="Also write table and curves as one page.")
    add("--csv", metavar="FILE.csv", help="Also write the table to this file.")
    add("--json", action="store_true", help="Print the table as JSON.")


def run(options: argparse.Namespace) -> int:
    import json

    for path, suffix in ((options.output, ".png"), (options.html, ".html"), (options.csv, ".csv")):
        if path:
            require_writable(Path(path), suffix)
    from zoo.analysis import compare

    compared = compare.read_runs(options.runs)
    header, rows = compare.table(compared)
    if options.json:
        print(json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1))
    else:
        print(compare.format_table(header, rows))
        if len(compared) > 1 and not compare.differing_options(compared):
            print("All options are the same in these runs.")
    picture = write_extra(partial(compare.draw, compared), options.output, "compare.png", "picture", "-o FILE.png")
    files = [picture] if picture else []
    if options.csv:
        compare.write_table(Path(options.csv), compared)
        files.append(Path(options.csv))
    if options.html:
        compare.write_page(Path(options.html), compared, picture)
        files.append(Path(options.html))
    if files and not options.json:
        print("written: " + ", ".join(map(str, files)))
    return 0
