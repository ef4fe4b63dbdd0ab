"""Fuzzing guided by coverage, with atheris (libFuzzer for Python): inputs that reach new lines are changed further.

Half of the changes are those of libFuzzer, half are those of the reader's own format. Needs `pip install atheris`.
"""

import os
import sys
import tempfile
from pathlib import Path
from random import Random

from . import contract


def main(names: list[str], seconds: int, seed: int, folder: Path) -> int:
    """Fuzz a reader for some seconds; returns 1 if an input breaks the contract, whose files then stay.

    Args:
        names: the reader; only readers of a single file are supported, one per call.
        seconds: duration.
        seed: seed of libFuzzer.
        folder: folder for inputs and the corpus.
    """
    try:
        import atheris
    except ImportError:
        raise SystemExit("--coverage-guided needs atheris: pip install atheris") from None
    if len(names) != 1:
        raise SystemExit("--coverage-guided takes one --reader")
    with atheris.instrument_imports(include=["zoo", "PIL", "h5py", "numpy.lib", "zipfile", "tarfile", "pickletools"]):
        from tests.fuzz.readers import READERS
    if names[0] not in READERS:
        raise SystemExit(f"no reader {names[0]!r}; choose from {', '.join(READERS)}")
    reader = READERS[names[0]]
    files = reader.seeds()[0]
    name = next(name for name in files if "." in name)
    corpus, cache = Path(tempfile.mkdtemp(dir=folder)), folder / "cache"
    os.environ["XDG_CACHE_HOME"] = str(cache)
    for number, each in enumerate(reader.seeds()):
        (corpus / str(number)).write_bytes(each.get(name, b""))
        contract.write_files(folder / f"seed{number}", each)
        reader.read(folder / f"seed{number}")
    count = 0
    faults: dict[str, Path] = {}

    def test_one_input(data: bytes) -> None:
        nonlocal count
        count += 1
        box = folder / f"guided{count}"
        contract.write_files(box, {**files, name: data})
        outcome = contract.check(reader.read, box, reader.max_bytes, cache)
        new = [fault for fault in outcome.faults if fault not in faults]
        for fault in new:
            faults[fault] = box
            print(f"{names[0]}: {fault} ({box})", flush=True)
        if not new:
            contract.remove(box)

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        rng = Random(number)
        if rng.random() < 0.5:
            try:
                return reader.mutate(rng, [{**files, name: data}])[name][:max_size]
            except Exception:  # the input is too damaged to be taken apart
                pass
        return atheris.Mutate(data, max_size)

    arguments = [
        sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-seed={seed + 1}", "-max_len=20000",
        "-rss_limit_mb=0", "-timeout=100", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup(arguments, test_one_input, custom_mutator=mutate, enable_python_coverage=True)
    pid = os.fork()  # libFuzzer ends the process
    if pid == 0:
        atheris.Fuzz()
        os._exit(0)
    os.waitpid(pid, 0)
    print(f"inputs with faults stay in {folder}")
    return int(any(folder.glob("guided*")))
