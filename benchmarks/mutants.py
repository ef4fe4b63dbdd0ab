"""Count how many small wrong changes to `zoo/` the test suite notices.

    python -m benchmarks.mutants                      # 240 changes; results in benchmarks/results/mutants.json
    python -m benchmarks.mutants --seed 1             # a second sample, added to the results
    python -m benchmarks.mutants --tree ../old        # the same for another checkout

`benchmarks.mutation` draws a random sample over all modules, in proportion to their lines of code. Each change is made
alone in a copy of the tree and tested by the tests that execute its lines, found by running the whole suite once with
coverage, and by those of `tests/**/test_<module>.py`. A change is noticed if a test fails or time runs out.

Tests of a change run in one process, forked from one that has imported JAX but nothing of the project. An interrupted
run continues where it stopped, unless a file of the tree has changed. Needs pytest-cov.

The results are {"rate", "samples"}: the rate over all samples, and of each its "seed", "commit", number "drawn", "rate"
and "rows". A sample replaces the one with its seed. "before" is a sample of an earlier revision, kept to compare with.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mutation import Mutation, draw

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "mutants.json"
PRELOAD = [
    "jax",
    "flax.linen",
    "optax",
    "orbax.checkpoint",
    "sklearn.datasets",
    "PIL.Image",
    "pytest",
    "_pytest.config",
]
TARGET = 0.85
BUDGET = 120.0  # seconds of tests for one change, by their times in the run with coverage


@dataclass(frozen=True)
class Tests:
    """The tests of a tree: seconds by node id, and the node ids that execute a line of a file."""

    seconds: dict[str, float]
    covering: dict[str, dict[int, set[str]]]

    def select(self, path: str, lines: tuple[int, int]) -> list[str]:
        """Return the tests for a change: those of the module's own test file first, then those that cover it."""
        by_line = self.covering.get(path, {})
        covering = {test for line in range(lines[0], lines[1] + 1) for test in by_line.get(line, ())}
        if not covering:  # executed on import, or never: any test of the module may notice
            covering = {test for tests in by_line.values() for test in tests}
        name = Path(path).parent.name if path.endswith("__init__.py") else Path(path).stem
        own = {test for test in self.seconds if test.split("::")[0].endswith(f"/test_{name}.py")}
        chosen, spent = [], 0.0
        order = sorted(covering | own, key=lambda t: (t not in own, t not in covering, self.seconds.get(t, 0.0), t))
        for test in order:
            spent += self.seconds.get(test, 0.0)
            if chosen and spent > BUDGET:
                break
            chosen.append(test)
        return chosen


def tree_files(tree: Path) -> list[str]:
    """Return the files that git tracks or would track, as paths in the tree."""
    names = subprocess.run(
        ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    return sorted(name for name in names if name and (tree / name).is_file())


def copy_tree(tree: Path, folder: Path) -> None:
    """Copy the files of a tree."""
    for name in tree_files(tree):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(tree / name, folder / name)


def digest_tree(tree: Path) -> str:
    """Return a hash of the names and contents of the tree's files, without the results of this program."""
    digest = hashlib.sha256()
    for name in tree_files(tree):
        if name == RESULT.relative_to(ROOT).as_posix():
            continue
        digest.update(f"{name}\0{hashlib.sha256((tree / name).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def find_tests(copy: Path, work: Path, workers: int) -> Tests:
    """Run the whole suite once with coverage, or read what an earlier call left in `work`."""
    if not (work / "covered").exists():
        command = [
            sys.executable, "-m", "pytest", "-q", "-n", str(workers),
            "--cov=zoo", "--cov-context=test", "--cov-report=",
            f"--junitxml={work / 'junit.xml'}", "-o", "junit_family=xunit1", "-p", "no:cacheprovider",
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(copy), "COVERAGE_FILE": str(work / "coverage")}
        done = subprocess.run(command, cwd=copy, env=environment, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"pytest ended with {done.returncode}")
        (work / "covered").touch()
    return read_tests(copy, work)


def read_tests(copy: Path, work: Path) -> Tests:
    from coverage import CoverageData

    seconds: dict[str, float] = {}
    failed = set()
    for case in ElementTree.parse(work / "junit.xml").getroot().iter("testcase"):
        test = f"{case.get('file')}::{case.get('name')}"
        seconds[test] = float(case.get("time", 0))
        if case.find("failure") is not None or case.find("error") is not None or case.find("skipped") is not None:
            failed.add(test)
    for test in failed:
        del seconds[test]
    data = CoverageData(str(work / "coverage"))
    data.read()
    covering: dict[str, dict[int, set[str]]] = {}
    for file in data.measured_files():
        lines = data.contexts_by_lineno(file)
        covering[str(Path(file).relative_to(copy))] = {
            line: {test for context in contexts if (test := context.rsplit("|", 1)[0]) in seconds}
            for line, contexts in lines.items()
        }
    return Tests(seconds, covering)


class _Order:
    """Run tests in the order they were named, whatever the tree's conftest sorts by."""

    def __init__(self, tests: list[str]):
        self.place = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: self.place.get(item.nodeid, len(self.place)))


def _run_tests(copy: str, tests: list[str], log: str) -> None:
    import pytest

    os.setsid()  # so that processes that tests started end with this one
    os.chdir(copy)
    sys.path.insert(0, copy)
    os.environ["PYTHONPATH"] = copy
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    plugin = _Order(tests)
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line"]
    code = pytest.main([*arguments, *tests], plugins=[plugin])
    if code == pytest.ExitCode.USAGE_ERROR:  # the change removed or renamed a parameter of a test
        code = pytest.main([*arguments, *dict.fromkeys(test.split("::")[0] for test in tests)])
    os._exit(int(code))


def run_tests(copy: Path, tests: list[str], log: Path, seconds: float) -> str:
    """Run tests in a new process and return "passed", "failed" or "timeout"."""
    process = multiprocessing.get_context("forkserver").Process(target=_run_tests, args=(str(copy), tests, str(log)))
    process.start()
    process.join(seconds)
    timed_out = process.is_alive()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, 9)
    process.join()
    if timed_out:
        return "timeout"
    return "passed" if process.exitcode in (0, 5) else "failed"


def try_mutation(copy: Path, path: str, mutation: Mutation, tests: Tests, work: Path) -> dict:
    """Make one change, run its tests, undo it, and describe what happened."""
    file = copy / path
    source = file.read_bytes()
    chosen = tests.select(path, mutation.lines)
    changed = mutation.apply(source)
    began = time.monotonic()
    outcome = "passed"
    if chosen:
        try:
            file.write_bytes(changed)
            expected = sum(tests.seconds.get(test, 0.0) for test in chosen)
            outcome = run_tests(copy, chosen, work / f"log{os.getpid()}.txt", 120 + 8 * expected)
        finally:
            file.write_bytes(source)
    lines = [text.splitlines()[mutation.line - 1].decode().strip() for text in (source, changed)]
    return {
        "path": path, "line": mutation.line, "kind": mutation.kind, "before": lines[0], "after": lines[1],
        "tests": len(chosen), "noticed": outcome != "passed", "outcome": outcome,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def _work(tree: Path, work: Path, share: list[tuple[str, Mutation]], tests: Tests, rows: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    copy = folder / "copy"
    try:
        copy_tree(tree, copy)
        for path, mutation in share:
            row = try_mutation(copy, path, mutation, tests, work)
            with rows.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            print(f"{row['outcome']:8}{row['seconds']:6.0f} s  {path}:{row['line']}  {row['after'][:90]}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def set_environment(tree: Path, cache: Path) -> None:
    """Set the variables that the tree's conftest sets, before JAX is imported."""
    os.environ["ZOO_TEST_CACHE"] = str(cache)
    spec = importlib.util.spec_from_file_location("conftest_of_tree", tree / "tests" / "conftest.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def group(path: str) -> str:
    """Return the package a module is counted with: zoo/data/images/decode.py -> data/images."""
    parts = Path(path).parts[1:-1]
    return "/".join(parts[:2]) or "zoo"


def summarise(rows: list[dict]) -> str:
    """Return the rates per package and the changes that no test noticed, in Markdown."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        counts[group(row["path"])][row["noticed"]] += 1
        counts["all"][row["noticed"]] += 1
    lines = ["| package | changes | noticed |", "|---|---|---|"]
    for name in sorted(counts, key=lambda name: (name == "all", name)):
        noticed, total = counts[name][True], sum(counts[name].values())
        lines.append(f"| {name} | {total} | {noticed} ({100 * noticed / total:.0f} %) |")
    lines += ["", "Not noticed:", ""]
    for row in sorted(rows, key=lambda row: (row["path"], row["line"])):
        if not row["noticed"]:
            lines.append(f"- `{row['path']}:{row['line']}` ({row['kind']}, {row['tests']} tests) `{row['after']}`")
    return "\n".join(lines)


def add_sample(file: Path, sample: dict) -> None:
    """Write a sample into the file of the results, in place of one with its seed."""
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    others = [other for other in results.get("samples", []) if other["seed"] != sample["seed"]]
    samples = sorted([*others, sample], key=lambda each: each["seed"])
    results |= {"rate": noticed_rate([row for each in samples for row in each["rows"]]), "samples": samples}
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def noticed_rate(rows: list[dict]) -> float:
    """Return the fraction of changes that were noticed."""
    return sum(row["noticed"] for row in rows) / len(rows)


def revision(tree: Path) -> str:
    """Return the short hash of the commit that is checked out, with "-dirty" if files differ from it."""
    words = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.mutants", description=__doc__.split("\n")[0])
    parser.add_argument("--tree", type=Path, default=ROOT, help="Checkout to test.")
    parser.add_argument("--count", type=int, default=240, metavar="N", help="Number of changes.")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="Random seed of the sample.")
    parser.add_argument("--only", default="zoo/", metavar="PREFIX", help="Change only files below this path.")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="Number of processes.")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "mutants", metavar="FOLDER",
                        help="Folder of the coverage data and of unfinished results.")  # fmt: skip
    parser.add_argument("--output", type=Path, default=RESULT, metavar="FILE", help="File of the results.")
    options = parser.parse_args(arguments)
    tree = options.tree.resolve()
    work = options.work.resolve() / digest_tree(tree)
    (work / "cache").mkdir(parents=True, exist_ok=True)
    set_environment(tree, work / "cache")
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)

    if not (work / "tree").exists():
        copy_tree(tree, work / "tree")
    tests = find_tests(work / "tree", work, options.workers)
    sources = {
        str(path.relative_to(tree)): path.read_bytes()
        for path in sorted((tree / "zoo").rglob("*.py"))
        if str(path.relative_to(tree)).startswith(options.only)
    }
    drawn = draw(sources, options.count, options.seed)
    rows_file = work / f"rows-{options.seed}-{options.count}.jsonl"
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()] if rows_file.exists() else []
    done = {(row["path"], row["line"], row["after"]) for row in rows}
    wanted = {}
    for path, mutation in drawn:
        after = mutation.apply(sources[path]).splitlines()[mutation.line - 1].decode().strip()
        wanted[path, mutation.line, after] = (path, mutation)
    left = [pair for key, pair in wanted.items() if key not in done]
    print(f"{len(drawn)} changes, {len(left)} left", flush=True)
    processes = [
        multiprocessing.get_context("fork").Process(
            target=_work, args=(tree, work, left[worker :: options.workers], tests, rows_file)
        )
        for worker in range(options.workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    rows = [row for row in rows if (row["path"], row["line"], row["after"]) in wanted]
    print(summarise(rows))
    rate = noticed_rate(rows)
    sample = {"seed": options.seed, "commit": revision(tree), "drawn": len(drawn), "rate": rate, "rows": rows}
    add_sample(options.output, sample)
    return 0 if rate >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
