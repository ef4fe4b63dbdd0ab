"""Training under a real Slurm: requeued and signalled in the middle, with the bits of an undisturbed run.

Deselected unless asked for with `-m clusters`; needs root, Debian's slurm-wlm and munge, and about a minute per run.
"""

import pytest

from . import runs, slurm

pytestmark = pytest.mark.clusters


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm.missing():
        pytest.skip(reason)
    with slurm.Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


def submit(cluster, folder, nodes, tasks, **options):
    """Submit the training and return the number of the job."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    script = runs.batch_script(folder.with_suffix(".sh"), folder, **options)
    return cluster.submit(
        script, f"--nodes={nodes}", f"--ntasks={tasks}", "--open-mode=append", f"--output={folder}.out"
    )


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """Return a function of (nodes, tasks) that returns the fingerprint of an undisturbed run."""
    known = {}

    def fingerprint(nodes, tasks):
        if (nodes, tasks) not in known:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            job = cluster.wait_for_end(submit(cluster, folder, nodes, tasks))
            said = folder.with_suffix(".out").read_text()
            assert job["JobState"] == "COMPLETED" and job["Restarts"] == "0", said
            assert f"devices: jit over data={tasks}, {tasks} processes" in said
            assert sum(line.startswith(("n", "process")) or ": process" in line for line in said.splitlines())
            known[nodes, tasks] = runs.fingerprint(folder)
        return known[nodes, tasks]

    return fingerprint


@pytest.mark.parametrize(("nodes", "tasks"), [(2, 2), (4, 4), (2, 4)])
@pytest.mark.parametrize("disturb", ["requeue", "USR1", "TERM"])
def test_a_disturbed_job_ends_with_the_same_bits(cluster, undisturbed, tmp_path, nodes, tasks, disturb):
    """`scontrol requeue` kills the tasks; a signal makes them save and end with a code that RequeueExit requeues."""
    want, folder = undisturbed(nodes, tasks), tmp_path / "run"
    job = submit(cluster, folder, nodes, tasks)
    runs.wait_for_steps(folder, 20)
    said = cluster("scontrol", "requeue", job) if disturb == "requeue" else cluster("scancel", "-s", disturb, job)
    assert not said.strip(), said
    ended, said = cluster.wait_for_end(job), folder.with_suffix(".out").read_text()
    # On a slow machine Slurm may end the first step again when it has already begun anew: one more requeue.
    assert ended["JobState"] == "COMPLETED" and int(ended["Restarts"]) >= 1, said
    assert "Resuming at step" in said
    if disturb != "requeue":
        assert f"(SIG{disturb})" in said
    assert runs.fingerprint(folder) == want


def test_without_srun_nothing_is_trained(cluster, tmp_path):
    """One line says what to add."""
    job = submit(cluster, tmp_path / "run", 2, 2, starter="")
    ended, said = cluster.wait_for_end(job), (tmp_path / "run.out").read_text()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert said.startswith("zoo train: Slurm, 2 tasks") and "srun python" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_single_task_trains_alone(cluster, tmp_path):
    job = submit(cluster, tmp_path / "run", 1, 1, starter="")
    ended, said = cluster.wait_for_end(job), (tmp_path / "run.out").read_text()
    assert ended["JobState"] == "COMPLETED", said
    assert "processes" not in said
