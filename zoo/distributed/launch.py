"""Start `zoo` as several processes on this machine, each with its share of the CPU threads and GPUs."""

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

from zoo.data.threads import processors
from zoo.distributed.environments import visible_gpus

#: After a process has failed: seconds until the others receive SIGTERM, and from then on until SIGKILL.
GRACE_SECONDS = 10.0
POLL_SECONDS = 0.05


def launch(command: Sequence[str], processes: int) -> int:
    """Run a `zoo` command line in several processes and wait for them.

    Signals that would end this process are forwarded to the processes. Process 0 writes to the terminal; the lines of
    the others are printed with their number in front.

    Args:
        command: words after `zoo`, such as ["train", "--model", "lenet5"].
        processes: number of processes.

    Returns:
        The highest exit code.

    Raises:
        ValueError: if the GPUs cannot be divided evenly among the processes.
    """
    shares = [environment_share(os.environ, number, processes) for number in range(processes)]
    coordinator = f"127.0.0.1:{find_free_port()}"
    children: list[subprocess.Popen] = []
    printers: list[threading.Thread] = []
    with _forward_signals(children):
        for number, share in enumerate(shares):
            environment = share | {
                "ZOO_COORDINATOR": coordinator, "ZOO_PROCESSES": str(processes), "ZOO_PROCESS": str(number),
                "ZOO_LOCAL_PROCESSES": str(processes), "ZOO_LAUNCHED": f"launch --processes {processes} --",
            }  # fmt: skip
            # In a session of its own a child does not receive the terminal's Ctrl-C in addition to the forwarded one.
            child = subprocess.Popen(
                [sys.executable, "-m", "zoo.cli", *command], env=environment, start_new_session=True,
                stdout=subprocess.PIPE if number else None, stderr=subprocess.STDOUT if number else None,
            )  # fmt: skip
            children.append(child)
            if child.stdout is not None:
                arguments = (child.stdout, number, children[0])
                printers.append(threading.Thread(target=_print_with_number, args=arguments, daemon=True))
                printers[-1].start()
        code = wait_for_all(children)
    for printer in printers:
        printer.join(timeout=1)
    return code


def environment_share(environment: Mapping[str, str], number: int, processes: int) -> dict[str, str]:
    """Return the environment of one process, limited to its share of this machine.

    Args:
        environment: environment of the launcher.
        number: index of the process, from 0.
        processes: number of processes.

    Returns:
        The environment with PJRT_NPROC set to the number of CPU threads and, if there are NVIDIA GPUs to use,
        CUDA_VISIBLE_DEVICES to those of this process.

    Raises:
        ValueError: if the GPUs cannot be divided evenly.
    """
    threads = max(processors() // processes, 1)
    share = {**environment, "PJRT_NPROC": str(threads)}
    if gpus := visible_gpus(environment):
        per_process, remainder = divmod(len(gpus), processes)
        if remainder:
            raise ValueError(
                f"{len(gpus)} GPUs cannot be divided evenly among {processes} processes; change --processes or "
                "CUDA_VISIBLE_DEVICES"
            )
        share["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[number * per_process : (number + 1) * per_process])
    return share


def find_free_port() -> int:
    """Return a TCP port of this machine that is not in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _print_with_number(stream: IO[bytes], number: int, primary: subprocess.Popen) -> None:
    """Print the output of a process until process 0 has failed: later errors only repeat that it is gone."""
    with stream:
        for line in stream:
            if primary.poll():
                continue
            sys.stdout.write(f"[{number}] {line.decode(errors='replace')}")
            sys.stdout.flush()


@contextmanager
def _forward_signals(children: Sequence[subprocess.Popen]) -> Iterator[None]:
    """Forward SIGINT, SIGTERM, SIGUSR1 and SIGHUP to the children instead of ending this process.

    SIGHUP stays ignored, here and in the children, if it is (`nohup`).
    """

    def forward(signum, frame):
        for child in children:
            if child.poll() is None:
                child.send_signal(signum)

    # SIGHUP: a terminal closes, SIGUSR1: Slurm's --signal. Windows has neither.
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signals.remove(signal.SIGHUP)
    handlers = {signum: signal.signal(signum, forward) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def wait_for_all(children: Sequence[subprocess.Popen]) -> int:
    """Wait until all processes have ended and return the highest exit code.

    Once one has failed, the others would wait for it forever. They have GRACE_SECONDS to end by themselves, then
    receive SIGTERM, and after as long again SIGKILL. Codes that result from these signals do not count.
    """
    worst, failed_at, terminated = 0, None, False
    while None in (codes := [child.poll() for child in children]):
        failures = [_exit_code(code) for code in codes if code]
        if failures and failed_at is None:
            failed_at = time.monotonic()
            worst = max(failures)
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS * (2 if terminated else 1):
            for child in children:
                if child.poll() is None:
                    child.send_signal(signal.SIGKILL if terminated else signal.SIGTERM)
            terminated = True
        time.sleep(POLL_SECONDS)
    return worst or max(_exit_code(child.returncode) for child in children)


def _exit_code(returncode: int) -> int:
    """Return the exit code as shells report it: 128 + the signal's number for a process that a signal ended."""
    return 128 - returncode if returncode < 0 else returncode
