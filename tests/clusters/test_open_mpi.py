"""Training under a real Open MPI: ended in the middle and repeated, with the bits of an undisturbed run.

Deselected unless asked for with `-m clusters`; needs Debian's openmpi-bin. Where mpi4py is installed, tasks that take
each other for distant ones find process 0 through it.
"""

import os
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from . import runs

pytestmark = [
    pytest.mark.clusters,
    pytest.mark.skipif(not shutil.which("mpirun"), reason="needs mpirun (apt install openmpi-bin)"),
]

MPIRUN = "mpirun --allow-run-as-root --oversubscribe -n {tasks} {options}"


def start(folder, tasks, options=""):
    """Start the training; its output goes beside the folder."""
    starter = "exec " + MPIRUN.format(tasks=tasks, options=options)
    script = runs.batch_script(folder.with_suffix(".sh"), folder, starter)
    with open(folder.with_suffix(".out"), "ab") as output:
        return subprocess.Popen(["bash", str(script)], stdout=output, stderr=output, start_new_session=True)


def tasks_of(mpirun):
    """Return the processes that mpirun has started, in the order of their numbers."""
    status = {int(file.parent.name): file.read_text() for file in Path("/proc").glob("[0-9]*/status")}
    children = [number for number, text in status.items() if f"PPid:\t{mpirun}\n" in text and "Name:\tpython" in text]
    return sorted(children)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    known = {}

    def fingerprint(tasks):
        if tasks not in known:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            code, said = start(folder, tasks).wait(600), folder.with_suffix(".out").read_text()
            assert code == 0 and f"{tasks} processes" in said, said
            known[tasks] = runs.fingerprint(folder)
        return known[tasks]

    return fingerprint


@pytest.mark.parametrize("tasks", [2, 4])
@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL])
def test_a_disturbed_run_ends_with_the_same_bits(undisturbed, tmp_path, tasks, signum):
    """mpirun passes SIGUSR1 on; on SIGTERM it ends its tasks; when a task is killed, it ends the others."""
    want, folder = undisturbed(tasks), tmp_path / "run"
    job = start(folder, tasks)
    runs.wait_for_steps(folder, 20)
    if signum == signal.SIGKILL:
        os.kill(tasks_of(job.pid)[-1], signum)
    else:
        job.send_signal(signum)
    code = job.wait(240)
    said = folder.with_suffix(".out").read_text()
    assert not (folder / "results.json").exists(), said
    if signum == signal.SIGUSR1:
        assert code == 75 and "(SIGUSR1)" in said, said
    code = start(folder, tasks).wait(600)
    said = folder.with_suffix(".out").read_text()
    assert code == 0 and "Resuming at step" in said, said
    assert runs.fingerprint(folder) == want


@pytest.mark.skipif(not find_spec("mpi4py"), reason="needs mpi4py")
def test_tasks_on_several_hosts_agree_through_mpi(undisturbed, tmp_path):
    """All tasks run here, but the variable says that each is alone on its host."""
    folder = tmp_path / "run"
    code = start(folder, 2, "env OMPI_COMM_WORLD_LOCAL_SIZE=1").wait(600)
    assert code == 0, folder.with_suffix(".out").read_text()
    assert runs.fingerprint(folder) == undisturbed(2)
