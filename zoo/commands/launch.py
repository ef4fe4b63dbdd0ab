"""`zoo launch --processes N -- train …`: a training as several processes on this machine, each with its own devices."""

import argparse
import glob
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

from zoo.commands import SIGNAL_EXIT, count
from zoo.data.threads import processors

#: Seconds that the others have to end by themselves once one process has failed, and then after being told to.
GRACE = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", metavar="N", type=count, required=True, help="how many to start")
    parser.add_argument("command_words", metavar="COMMAND", nargs=argparse.REMAINDER, help="-- train …, or -- devices")


def run(options: argparse.Namespace) -> int:
    command = [word for i, word in enumerate(options.command_words) if i or word != "--"]
    if options.processes < 1:
        raise ValueError("--processes must be at least 1")
    if command[:1] not in (["train"], ["devices"]):
        raise ValueError("write what to start after --, e.g. zoo launch --processes 2 -- train --model lenet5")
    return launch(command, options.processes)


def launch(command: Sequence[str], processes: int) -> int:
    """Start `zoo` with these words in every process, pass signals on, and return the worst exit code.

    The first process has the terminal; each line of another begins with its number.
    """
    coordinator = f"127.0.0.1:{_free_port()}"
    arguments = [sys.executable, "-m", "zoo.cli", *command]
    children: list[subprocess.Popen] = []
    printers: list[threading.Thread] = []
    with _passed_on(children):
        for number in range(processes):
            environment = share_of(os.environ, number, processes) | {
                "ZOO_COORDINATOR": coordinator, "ZOO_PROCESSES": str(processes), "ZOO_PROCESS": str(number),
                "ZOO_LOCAL_PROCESSES": str(processes), "ZOO_LAUNCHED": f"launch --processes {processes} --",
            }  # fmt: skip
            # A session of its own: the terminal's Ctrl-C comes through here, once, and not twice.
            child = subprocess.Popen(
                arguments, env=environment, start_new_session=True, stdout=subprocess.PIPE if number else None,
                stderr=subprocess.STDOUT if number else None,
            )  # fmt: skip
            children.append(child)
            if child.stdout is not None:
                printers.append(
                    threading.Thread(target=_prefixed, args=(child.stdout, number, children[0]), daemon=True)
                )
                printers[-1].start()
        code = _wait(children)
    for printer in printers:
        printer.join(timeout=1)
    return code


def share_of(environment: Mapping[str, str], number: int, processes: int) -> dict[str, str]:
    """The environment in which process `number` sees its share of this machine's CPU threads and NVIDIA GPUs."""
    threads = max(processors() // processes, 1)
    share = {**environment, "PJRT_NPROC": str(threads)}
    if environment.get("JAX_PLATFORMS", "cuda").partition(",")[0] not in ("cuda", "gpu"):
        return share
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    found = [name.removeprefix("/dev/nvidia") for name in _gpu_files()] if listed is None else listed.split(",")
    gpus = [gpu for gpu in found if gpu]
    if gpus:
        each, rest = divmod(len(gpus), processes)
        if rest:
            raise ValueError(f"{len(gpus)} GPUs cannot be divided among {processes} processes (CUDA_VISIBLE_DEVICES)")
        share["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[number * each : (number + 1) * each])
    return share


def _gpu_files() -> list[str]:
    return sorted(glob.glob("/dev/nvidia[0-9]*"), key=lambda name: (len(name), name))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _prefixed(stream: IO[bytes], number: int, first: subprocess.Popen) -> None:
    """Print what a process says, until the first one has failed: from then on the others complain of nothing else."""
    with stream:
        for line in stream:
            if first.poll():
                continue
            sys.stdout.write(f"[{number}] {line.decode(errors='replace')}")
            sys.stdout.flush()


@contextmanager
def _passed_on(children: Sequence[subprocess.Popen]) -> Iterator[None]:
    """While inside, what would end this process ends the children that are there instead: SIGINT, SIGTERM, SIGHUP."""

    def forward(signum, frame):
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)

    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):  # a terminal that is closed
        signals.append(signal.SIGHUP)
    before = {signum: signal.signal(signum, forward) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _wait(children: Sequence[subprocess.Popen]) -> int:
    """Until all have ended; where one fails the others, who would wait for it for ever, are ended too."""
    worst, failed, told = 0, None, False
    while None in [child.poll() for child in children]:
        codes = [child.returncode for child in children if child.returncode]
        now = time.monotonic()
        if codes and failed is None:
            failed = now
            worst = max(_exit_code(code) for code in codes)
        if failed is not None and now - failed > GRACE * (2 if told else 1):
            for child in children:
                if child.poll() is None:
                    child.send_signal(signal.SIGKILL if told else signal.SIGTERM)
            told = True
        time.sleep(0.05)
    # What was ended from here is no worse than what made it necessary.
    return worst or max(_exit_code(child.returncode) for child in children)


def _exit_code(code: int) -> int:
    return SIGNAL_EXIT - code if code < 0 else code
