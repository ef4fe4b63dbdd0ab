"""The table of environments that start several processes, with faked variables: whole, half, contradictory, wrong."""

import importlib.machinery
import sys
import types

import pytest

from zoo.distributed import environments, processes
from zoo.distributed.environments import BY_JAX, BY_MPI, detect

STEP = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1",
    "SLURM_STEP_NODELIST": "gpu[01-02]", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
BATCH = {
    "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NUM_NODES": "2", "SLURM_LOCALID": "0"
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-1",
}  # fmt: skip
HYDRA = {"PMI_SIZE": "2", "PMI_RANK": "0", "MPI_LOCALNRANKS": "2"}
SKY = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
JAX = {"JAX_COORDINATOR_ADDRESS": "a:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
PET = {"PET_NNODES": "3", "PET_NODE_RANK": "2", "PET_MASTER_ADDR": "job-0", "PET_MASTER_PORT": "29400"}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "29500"
}  # fmt: skip
PYTORCHJOB = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "23456"}
JAXJOB = {"COORDINATOR_ADDRESS": "a", "COORDINATOR_PORT": "6666", "NUM_PROCESSES": "2", "PROCESS_ID": "0"}
LAUNCH = {"ZOO_COORDINATOR": "127.0.0.1:9", "ZOO_PROCESSES": "3", "ZOO_PROCESS": "2"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture
def packages(monkeypatch):
    """Return a function that says which optional packages are installed; none by default."""

    def install(*names):
        spec = importlib.machinery.ModuleSpec("package", None)
        monkeypatch.setattr(environments, "find_spec", lambda name: spec if name in names else None)

    install()
    monkeypatch.setattr(environments, "glob", lambda pattern: [])
    return install


@pytest.mark.parametrize(
    ("variables", "name", "tasks", "index", "coordinator"),
    [
        (LAUNCH, "zoo launch", 3, 2, "127.0.0.1:9"),
        (JAX, "JAX_NUM_PROCESSES", 2, 1, "a:1234"),
        ({**JAX, **POD, "JOB_COMPLETION_INDEX": "1"}, "JAX_NUM_PROCESSES", 2, 1, "a:1234"),
        (JAXJOB, "Kubeflow JAXJob", 2, 0, "a:6666"),
        (TORCHRUN, "torchrun", 2, 0, "a:29501"),
        ({**TORCHRUN, **PET}, "torchrun", 2, 0, "a:29501"),
        (OPEN_MPI, "Open MPI", 2, 1, "127.0.0.1:"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "Open MPI", 2, 1, ""),
        ({**OPEN_MPI, **STEP}, "Open MPI", 2, 1, "127.0.0.1:"),  # mpirun in a job step
        (HYDRA, "MPI", 2, 0, ""),
        (STEP, "Slurm", 4, 1, "gpu01:"),
        ({**BATCH, **STEP}, "Slurm", 4, 1, "gpu01:"),  # srun in sbatch
        ({**STEP, "JAX_COORDINATOR_PORT": "777"}, "Slurm", 4, 1, "gpu01:777"),
        ({**STEP, "JAX_COORDINATOR_ADDRESS": "h:777"}, "Slurm", 4, 1, "h:777"),
        ({**STEP, "PMI_SIZE": "4", "PMI_RANK": "1"}, "Slurm", 4, 1, "gpu01:"),  # srun --mpi=pmi2
        ({**STEP, **JAX, "JAX_NUM_PROCESSES": "4"}, "JAX_NUM_PROCESSES", 4, 1, "a:1234"),
        ({**BATCH, **LAUNCH}, "zoo launch", 3, 2, "127.0.0.1:9"),
        (SKY, "SkyPilot", 2, 1, "10.0.0.1:"),
        ({**SKY, "SKYPILOT_NODE_IPS": ""}, "SkyPilot", 2, 1, ""),
        (PET, "Kubeflow Trainer", 3, 2, "job-0:29400"),
        (PYTORCHJOB, "PyTorchJob", 2, 1, "a:23456"),
        ({**POD, "JOB_COMPLETION_INDEX": "1"}, "Kubernetes", 0, 1, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU", 2, None, BY_JAX),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "TPU", 2, None, BY_JAX),
        # requested, but not started
        (BATCH, "Slurm", 4, None, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3"}, "Slurm", 3, None, ""),
        ({**BATCH, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}, "Slurm", 4, None, ""),  # salloc's shell
        # a single task
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, "Slurm", 1, 0, ""),
        ({**BATCH, **STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, "Slurm", 1, 0, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}, "Slurm", 1, 0, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_COUNT": "9", "SLURM_ARRAY_TASK_ID": "3"}, "Slurm", 1, 0, ""),
        ({"JAX_NUM_PROCESSES": "1"}, "JAX_NUM_PROCESSES", 1, 0, ""),
        ({**PET, "PET_NNODES": "1", **POD, "JOB_COMPLETION_INDEX": "0"}, "Kubeflow Trainer", 1, 0, ""),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, "TPU", 1, 0, ""),
        ({"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"}, "SkyPilot", 1, 0, ""),
    ],
)
def test_a_group_is_recognised(packages, variables, name, tasks, index, coordinator):
    group = detect(variables)
    assert (group.environment, group.tasks, group.index) == (name, tasks, index)
    assert group.coordinator.startswith(coordinator) if coordinator else not group.coordinator
    assert any(name in group.evidence for name in variables)
    if tasks != 1 and not group.coordinator:
        assert group.advice and "--coordinator none" in processes.describe_unjoined(group)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        POD,  # a pod of a deployment
        {"SLURM_CONF": "/etc/slurm.conf"},
        {"RANK": "0", "WORLD_SIZE": "4"},
        {"PROCESS_ID": "17", "NUM_PROCESSES": "2"},
        {"PMI_SIZE": "2"},
        {"JAX_PLATFORMS": "cpu"},
        {"JOB_COMPLETION_INDEX": "1"},
        {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
        {"JAX_NUM_PROCESSES": "", "JAX_PROCESS_ID": ""},  # set to nothing
        {"ZOO_COORDINATOR": "none"},
        {**STEP, "ZOO_COORDINATOR": "none"},
    ],
)
def test_no_group_is_recognised(packages, variables):
    assert detect(variables) is None


def test_every_row_is_covered():
    tested = {"zoo launch", "JAX_NUM_PROCESSES", "Kubeflow JAXJob", "torchrun", "Open MPI", "MPI", "Slurm", "SkyPilot"}
    assert {row.name for row in environments.ENVIRONMENTS} == tested | {"Kubeflow Trainer", "PyTorchJob"}


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        # half of them
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID"),
        ({"JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID"),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}, "SLURM_STEP_NUM_TASKS"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_RANK"),
        ({"SKYPILOT_NUM_NODES": "2"}, "SKYPILOT_NODE_RANK"),
        ({"ZOO_COORDINATOR": "a:1"}, "ZOO_PROCESSES"),
        # nonsense
        ({**JAX, "JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two'"),
        ({**JAX, "JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES='0'"),
        ({**JAX, "JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID='-1'"),
        ({**JAX, "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2"),
        ({**JAX, "JAX_PROCESS_ID": "²"}, "JAX_PROCESS_ID"),
        ({**JAX, "JAX_COORDINATOR_ADDRESS": "a"}, "HOST:PORT"),
        ({**JAX, "JAX_COORDINATOR_ADDRESS": "a:99999"}, "HOST:PORT"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "4(x2)"}, "SLURM_STEP_NUM_TASKS"),
        ({**STEP, "JAX_COORDINATOR_PORT": "http"}, "HOST:PORT"),
        ({**STEP, "JAX_COORDINATOR_ADDRESS": "h"}, "JAX_COORDINATOR_ADDRESS"),
        ({**BATCH, "SLURM_NTASKS": "many"}, "SLURM_NTASKS"),
        ({**PET, "PET_NNODES": "1:4"}, "PET_NNODES"),
        ({**TORCHRUN, "MASTER_PORT": "x"}, "MASTER_PORT"),
        ({**POD, "JOB_COMPLETION_INDEX": "x"}, "JOB_COMPLETION_INDEX"),
        # contradictory: the same variables of JAX for all tasks of a launcher
        ({**STEP, **JAX}, "SLURM_STEP_NUM_TASKS=4"),
        ({**STEP, **JAX, "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}, "SLURM_PROCID=1"),
        ({**STEP, "JAX_NUM_PROCESSES": "1"}, "SLURM_STEP_NUM_TASKS=4"),
        ({**OPEN_MPI, **JAX, "JAX_PROCESS_ID": "0"}, "OMPI_COMM_WORLD_RANK=1"),
    ],
)
def test_variables_that_make_no_sense_are_refused(packages, variables, named):
    with pytest.raises(ValueError) as caught:
        detect(variables)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_installed_packages_join_what_the_variables_do_not(packages):
    packages("mpi4py", "kubernetes")
    assert detect({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}).coordinator == BY_MPI
    assert detect(HYDRA).coordinator == BY_MPI
    assert detect({**POD, "JOB_COMPLETION_INDEX": "0"}).coordinator == BY_JAX


def test_all_tasks_agree_on_the_coordinator_and_steps_differ(packages):
    first, second = (detect({**STEP, "SLURM_PROCID": index}).coordinator for index in ("0", "3"))
    assert first == second != detect({**STEP, "SLURM_STEP_ID": "1"}).coordinator
    assert environments.FIRST_PORT <= int(first.rpartition(":")[2]) < 65536


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("a", "a"), ("a,b", "a"), ("gpu[01-04,7],x", "gpu01"), ("gpu[3,5]", "gpu3"), ("r[1-2]n1", "r1n1"), ("", ""),
        ("a-b-[1-2]", "a-b-1"),
    ],
)  # fmt: skip
def test_the_first_host_of_a_node_list(nodes, host):
    assert environments.first_host(nodes) == host


def test_workers_of_ray_are_recognised(packages, monkeypatch):
    context = types.SimpleNamespace(get_world_size=lambda: 2, get_world_rank=lambda: 1)
    module = types.SimpleNamespace(get_context=lambda: context)
    monkeypatch.setitem(sys.modules, "ray.train", module)
    group = detect({})
    assert (group.environment, group.tasks, group.coordinator) == ("Ray", 2, "") and "JaxTrainer" in group.advice

    def outside():
        raise RuntimeError("not in a worker")

    module.get_context = outside
    assert detect({}) is None


def test_hosts_of_a_tpu_slice_are_read_from_its_metadata(packages, monkeypatch):
    packages("libtpu")
    asked = []
    monkeypatch.setattr(environments, "read_metadata", lambda name: asked.append(name) or "a:b:1,c:d:2")
    assert detect({}) is None and not asked  # no TPU on this machine
    monkeypatch.setattr(environments, "glob", lambda pattern: ["/dev/accel0"])
    assert detect({}).tasks == 2 and asked == ["attributes/worker-network-endpoints"]


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({}, None),
        ({**STEP, "CUDA_VISIBLE_DEVICES": "0,1"}, [1]),
        ({**STEP, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2, 3]),
        ({**STEP, "CUDA_VISIBLE_DEVICES": "0"}, None),  # --gpus-per-task=1: each has its own
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "CUDA_VISIBLE_DEVICES": "0,1"}, None),  # all of the node
        ({**STEP, "CUDA_VISIBLE_DEVICES": "0,1", "JAX_PLATFORMS": "cpu"}, None),
        ({**LAUNCH, "ZOO_LOCAL_PROCESSES": "2", "SLURM_LOCALID": "0", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({**STEP, "SLURM_GPUS_PER_TASK": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({**STEP, "SLURM_GPUS_PER_TASK": "1", "SLURM_GPU_BIND": "none", "CUDA_VISIBLE_DEVICES": "0,1"}, [1]),
        ({**STEP, "CUDA_VISIBLE_DEVICES": "-1"}, None),
        ({**TORCHRUN, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2, 3]),
        # torchrun with two processes on the node in a step with one task for each node, which has all of its GPUs
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0", "SLURM_GPUS_PER_TASK": "2", **TORCHRUN,
          "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, [1]),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, None),  # left over
    ],
)  # fmt: skip
def test_tasks_of_a_host_share_its_gpus(variables, devices):
    assert environments.local_devices(variables) == devices


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({}, 1),
        ({"ZOO_LOCAL_PROCESSES": "3"}, 3),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),5"}, 5),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x12)"}, 4),
        ({"ZOO_LOCAL_PROCESSES": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 2),
    ],
)
def test_processes_on_this_host(variables, count):
    assert environments.processes_on_this_host(variables) == count


# --- joining ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def connected(packages, monkeypatch):
    """Return the calls of jax.distributed.initialize."""
    calls = []
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(processes, "_require_free_port", lambda address: None)
    return calls


def use(monkeypatch, variables):
    for name in list(environments.os.environ):
        if name.startswith(("SLURM", "OMPI", "JAX_NUM", "JAX_PROC", "JAX_COORD", "ZOO_PROC", "ZOO_COORD")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_recognised_group_is_joined(connected, monkeypatch):
    use(monkeypatch, STEP)
    processes.initialize()
    [call] = connected
    assert (call["num_processes"], call["process_id"]) == (4, 1)
    assert call["coordinator_address"].startswith("gpu01:")


@pytest.mark.parametrize("variables", [BATCH, {**POD, "JOB_COMPLETION_INDEX": "0"}, {**SKY, "SKYPILOT_NODE_IPS": ""}])
def test_nothing_is_trained_alone_by_accident(connected, monkeypatch, variables):
    """Neither by the command line nor from Python, unless it is asked for."""
    use(monkeypatch, variables)
    with pytest.raises(ValueError, match="--coordinator none") as caught:
        processes.initialize()
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="ZOO_COORDINATOR=none"):
        processes.require_joined()
    processes.initialize("none")
    monkeypatch.setenv("ZOO_COORDINATOR", "none")
    processes.initialize()
    processes.require_joined()
    assert not connected


def test_python_programs_join_before_they_train(connected, monkeypatch):
    import zoo

    use(monkeypatch, STEP)
    with pytest.raises(ValueError, match="initialize"):
        zoo.fit("mlp", "digits")


def test_a_group_that_the_program_has_joined_is_kept(connected, monkeypatch):
    use(monkeypatch, STEP)
    monkeypatch.setattr(processes.jax.distributed, "is_initialized", lambda: True)
    processes.initialize()
    processes.require_joined()
    assert not connected


def test_a_single_task_connects_to_nobody(connected, monkeypatch):
    use(monkeypatch, {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"})
    processes.initialize()
    processes.require_joined()
    assert not connected


def test_explicit_options_and_auto(connected, monkeypatch):
    use(monkeypatch, STEP)
    processes.initialize("h:5", 2, 1)
    assert connected.pop()["coordinator_address"] == "h:5"
    use(monkeypatch, {})
    processes.initialize("auto")
    assert "coordinator_address" not in connected.pop()


def test_a_port_that_is_taken_is_named():
    import socket

    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} .*JAX_COORDINATOR_PORT"):
            processes._require_free_port(f"h:{port}")
    processes._require_free_port(f"h:{port}")
