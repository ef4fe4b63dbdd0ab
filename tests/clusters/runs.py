"""A short training, and what must be equal to the bit when it was interrupted."""

import hashlib
import json
import shlex
import sys
import time
from pathlib import Path

from zoo import checkpoint
from zoo.trees import flatten

ROOT = Path(__file__).resolve().parents[2]
#: Seconds of work for two processes, so that there is a middle to interrupt.
WORDS = shlex.split(
    "train --model resnet20 --set blocks=(1,) --set width=8 --data digits --epochs 6 --set eval_every_epochs=1 "
    "--set warmup_epochs=0 --augment flip --batch-size 64 --save-every 2 --no-report"
)


def command(folder: Path) -> str:
    """Return the command line of the training, with one thread for each process."""
    exports = f"export PYTHONPATH={ROOT} JAX_PLATFORMS=cpu PJRT_NPROC=1 OMP_NUM_THREADS=1 XLA_FLAGS= ZOO_MESH=\n"
    return exports + "exec_prefix " + shlex.join([sys.executable, "-m", "zoo.cli", *WORDS, "--workdir", str(folder)])


def batch_script(file: Path, folder: Path, starter: str = "srun --kill-on-bad-exit=1") -> Path:
    """Write the batch script of the training."""
    file.write_text("#!/bin/bash\n" + command(folder).replace("exec_prefix", starter) + "\n")
    return file


def fingerprint(folder: Path) -> dict[str, str]:
    """Return hashes of the arrays of the best checkpoint, of the last state, and of the rows of a finished run."""
    _, variables = checkpoint.load_checkpoint(folder / "best")
    digests = {path: hashlib.sha256(leaf.tobytes()).hexdigest() for path, leaf in flatten(variables).items()}
    digests["metrics.jsonl"] = hashlib.sha256((folder / "metrics.jsonl").read_bytes()).hexdigest()
    results = json.loads((folder / "results.json").read_text())
    digests["results.json"] = hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()
    return digests


def wait_for_steps(folder: Path, least: int, seconds: float = 300) -> None:
    """Wait until the run has saved its state at step `least` or later."""
    deadline = time.monotonic() + seconds
    while not any(int(save.name.rpartition("_")[2]) >= least for save in folder.glob("state/step_*[0-9]")):
        assert not (folder / "results.json").exists(), "the training was too short to interrupt"
        assert time.monotonic() < deadline, f"no save at step {least} after {seconds:g} s"
        time.sleep(0.1)
