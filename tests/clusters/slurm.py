"""A Slurm cluster on loopback: munged, slurmctld and four slurmd, from Debian's slurm-wlm and munge.

It needs root, but neither systemd nor cgroups. Each daemon sees an /etc/hosts of its own, which names the nodes.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

NODES = ("n1", "n2", "n3", "n4")
MUNGE_OPTIONS = ("key-file", "socket", "pid-file", "log-file", "seed-file")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "unshare", "mount")

CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
RequeueExit=75
KillWait=30
MinJobAge=3600
{nodes}
PartitionName=all Nodes={names} Default=YES State=UP MaxTime=INFINITE
"""


def missing() -> str:
    """Return why no cluster can be started here; "" if one can."""
    lacking = [program for program in PROGRAMS if not shutil.which(program)]
    if lacking:
        return f"needs {', '.join(lacking)} (apt install slurm-wlm munge)"
    if os.geteuid():
        return "needs root"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        return "needs mount namespaces"
    return ""


class Cluster:
    """The daemons, while the context is open."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.daemons: list[subprocess.Popen] = []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> "Cluster":
        folder = self.folder
        for name in ("state", "munge", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir(parents=True)
        (folder / "hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()} {' '.join(NODES)}\n")
        (folder / "munge").chmod(0o711)
        (folder / "munge/key").write_bytes(os.urandom(1024))
        (folder / "munge/key").chmod(0o400)
        ports = free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        text = CONFIGURATION.format(folder=folder, controller=ports[0], nodes=nodes, names=",".join(NODES))
        (folder / "slurm.conf").write_text(text)
        files = {name: folder / "munge" / name.removesuffix("-file") for name in MUNGE_OPTIONS}
        options = [f"--{name}={file}" for name, file in files.items()]
        try:
            self._start("munged", "--force", "--foreground", *options)
            self._wait(lambda: (folder / "munge/socket").exists(), "munged")
            self._start("slurmctld", "-D", "-f", f"{folder}/slurm.conf")
            for node in NODES:
                self._start("slurmd", "-D", "-N", node, "-f", f"{folder}/slurm.conf")
            self._wait(lambda: self("sinfo", "-h", "-o", "%T").split() == ["idle"], "idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons:
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def _start(self, *words: str) -> None:
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        with open(self.folder / f"{words[0]}.out", "ab") as output:
            self.daemons.append(
                subprocess.Popen(
                    ["unshare", "-m", "--propagation", "private", "sh", "-c", script, self.folder / "hosts", *words],
                    stdout=output, stderr=output, env=self.environment, start_new_session=True,
                )
            )  # fmt: skip

    def _wait(self, condition, what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} after {seconds:g} s; see the logs in {self.folder}")
            time.sleep(0.2)

    def __call__(self, *words: str) -> str:
        """Run a command of Slurm and return its output."""
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment)
        return done.stdout + done.stderr

    def submit(self, script: Path, *options: str) -> str:
        """Submit a script and return the number of the job."""
        said = self("sbatch", *options, str(script))
        match = re.fullmatch(r"Submitted batch job (\d+)", said.strip().splitlines()[-1])
        assert match, said
        return match[1]

    def show(self, job: str) -> dict[str, str]:
        """Return what the controller knows of a job."""
        words = self("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_end(self, job: str, seconds: float = 600) -> dict[str, str]:
        """Wait until a job has ended for good and return what is known of it."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self._wait(lambda: self.show(job).get("JobState") in ended, f"end of job {job}", seconds)
        return self.show(job)


def free_ports(count: int) -> list[int]:
    """Return TCP ports that are not in use."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
