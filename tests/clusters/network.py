"""Two hosts with a bad network between them: network namespaces joined by a program that delays and drops packets.

`python -m tests.clusters.network` trains with a process in each, under every fault, and prints what happens.
It needs root and /dev/net/tun. (The kernel's own netem does the same, but is often not built.)
"""

import ctypes
import fcntl
import heapq
import os
import random
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("a", "b")
CLONE_NEWNET, TUNSETIFF, IFF_TUN_NO_PI = 0x40000000, 0x400454CA, 0x1001
TRAIN = shlex.split(
    "train --model mlp --data digits --set widths=(32,) --epochs 5000 --save-every 5 --no-report --processes 2 "
    "--coordinator 10.99.0.1:7000"
)


class Link:
    """The network between the sides. Attributes may be changed while it runs.

    Attributes:
        delay: seconds each way.
        loss: share of packets that are dropped.
        cut: True drops all.
    """

    def __init__(self) -> None:
        self.delay, self.loss, self.cut = 0.0, 0.0, False
        self.closed = threading.Event()

    def __enter__(self) -> "Link":
        self.files = []
        for number, side in enumerate(SIDES, 1):
            run("ip", "netns", "add", f"zoo-{side}")
            thread = threading.Thread(target=self._open, args=(side,))  # a thread has a namespace of its own
            thread.start()
            thread.join()
            inside = ("ip", "-n", f"zoo-{side}")
            run(*inside, "addr", "add", f"10.99.0.{number}/24", "dev", "zoo0")
            run(*inside, "link", "set", "zoo0", "up")
            run(*inside, "link", "set", "lo", "up")
        self.thread = threading.Thread(target=self._forward, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closed.set()
        self.thread.join()
        for file, side in zip(self.files, SIDES, strict=True):
            os.close(file)
            run("ip", "netns", "del", f"zoo-{side}")

    def _open(self, side: str) -> None:
        with open(f"/run/netns/zoo-{side}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", b"zoo0", IFF_TUN_NO_PI))
        self.files.append(file)

    def _forward(self) -> None:
        rng, waiting, number = random.Random(0), [], 0
        while not self.closed.is_set():
            timeout = max(waiting[0][0] - time.monotonic(), 0) if waiting else 0.1
            for file in select.select(self.files, [], [], min(timeout, 0.1))[0]:
                packet = os.read(file, 65536)
                if not self.cut and rng.random() >= self.loss:
                    other = self.files[1 - self.files.index(file)]
                    heapq.heappush(waiting, (time.monotonic() + self.delay, number, other, packet))
                    number += 1
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, other, packet = heapq.heappop(waiting)
                try:
                    os.write(other, packet)
                except OSError:  # its queue is full: dropped
                    continue


def run(*words: str) -> None:
    subprocess.run(words, check=True)


class Training:
    """A process on each side, which train together in one folder."""

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, []
        for number, side in enumerate(SIDES):
            hosts = folder / f"hosts-{side}"
            hosts.write_text(f"127.0.0.1 localhost\n10.99.0.{number + 1} host-{side}\n")
            script = f'hostname host-{side}; mount --bind {hosts} /etc/hosts && exec "$@"'
            words = [
                "ip", "netns", "exec", f"zoo-{side}", "unshare", "--uts", "sh", "-c", script, "sh",
                sys.executable, "-m", "zoo.cli", *TRAIN, "--process", str(number), "--workdir", str(folder / "run"),
            ]  # fmt: skip
            environment = {
                **os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PJRT_NPROC": "1", "OMP_NUM_THREADS": "1"
            }  # fmt: skip
            with open(folder / f"{side}.out", "wb") as output:
                self.processes.append(
                    subprocess.Popen(words, stdout=output, stderr=output, env=environment, start_new_session=True)
                )

    @property
    def step(self) -> int:
        """The newest step that is saved."""
        saves = [int(save.name[5:]) for save in self.folder.glob("run/state/step_*")]
        return max(saves, default=0)

    def wait(self, condition, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.1)
        return condition()

    @property
    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    def said(self, side: str) -> str:
        """Return the last line that is this program's own, or JAX's reason to end the process."""
        lines = (self.folder / f"{side}.out").read_text(errors="replace").splitlines()
        own = [line for line in lines if line.startswith("zoo train:")]
        fatal = [re.sub(r"^F.*?\] ", "JAX: ", line) for line in lines if re.match(r"F\d{4} ", line)]
        return ([*fatal, *own] or [""])[-1][:160]

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


#: name -> (delay in seconds, share of lost packets, seconds without a connection)
FAULTS = {
    "none": (0.0, 0.0, 0.0), "delay of 10 ms each way": (0.01, 0.0, 0.0), "delay of 50 ms each way": (0.05, 0.0, 0.0),
    "1 % of packets lost": (0.0, 0.01, 0.0), "5 % of packets lost": (0.0, 0.05, 0.0),
    "no connection for 10 s": (0.0, 0.0, 10.0), "no connection from then on": (0.0, 0.0, 300.0),
}  # fmt: skip


def measure(name: str, folder: Path, seconds: float = 20.0) -> str:
    """Train under a fault and return its row of the table."""
    delay, loss, cut = FAULTS[name]
    with Link() as link:
        training = Training(folder)
        try:
            if not training.wait(lambda: training.step or training.ended, 300) or training.ended:
                return f"| {name} | did not begin to train: {training.said('a')} |"
            link.delay, link.loss = delay, loss
            time.sleep(2)
            began, first = time.monotonic(), training.step
            link.cut = bool(cut)
            if cut:
                training.wait(lambda: training.ended, cut)
                took = time.monotonic() - began
                link.cut = False
                if training.ended:
                    codes = ", ".join(str(process.returncode) for process in training.processes)
                    said = f"process 0: {training.said('a')}; process 1: {training.said('b')}"
                    return f"| {name} | both end within {took:.0f} s, exit codes {codes}; {said} |"
                began, first = time.monotonic(), training.step
            went_on = training.wait(lambda: training.ended, seconds)
            speed = (training.step - first) / (time.monotonic() - began)
            state = f"ends: {training.said('a')}" if went_on else f"trains on, {speed:.1f} steps per second"
            return f"| {name} | {state} |"
        finally:
            training.stop()


def main() -> None:
    chosen = [name for name in FAULTS if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    print("| network | what happens |\n|---|---|", flush=True)
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(name, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
