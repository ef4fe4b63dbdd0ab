"""Environments that start several processes: how each is recognised, how many tasks it has, how to join them.

`ENVIRONMENTS` is the one table, nearest launcher first: a launcher that runs inside an allocation (mpirun in a Slurm
job) decides. A process that is one of several and joins none of them would train by itself, at full length, into the
same folder; `detect` therefore also recognises groups that cannot be joined, with the line that would join them.
"""

import hashlib
import os
import re
import sys
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from glob import glob
from importlib.util import find_spec
from itertools import takewhile

Variables = Mapping[str, str]

#: Value of `Group.coordinator` where JAX itself finds the coordinator.
BY_JAX = "auto"
#: Value of `Group.coordinator` where the processes agree on it through MPI.
BY_MPI = "mpi4py"

#: Ports of coordinators whose environment names none: the upper 4,096.
FIRST_PORT = 61440
#: SLURM_STEP_ID of the shell that `salloc` starts on a node, which is no task of the user.
INTERACTIVE_STEP = "4294967290"
ALONE = "add --coordinator none to train in this process alone"


@dataclass(frozen=True)
class Group:
    """The processes that belong together, as the environment of one of them shows.

    Attributes:
        environment: what started them, such as "Slurm".
        tasks: number of processes; 0 if unknown but more than one is to be expected.
        index: index of this process, from 0; None if unknown.
        coordinator: HOST:PORT of process 0, BY_JAX or BY_MPI; "" if this process cannot join.
        evidence: the variables that showed it, such as "SLURM_STEP_NUM_TASKS=4".
        advice: what to do if this process cannot join.
        started: False if the tasks were requested but have not been started, as in a batch script without srun.
    """

    environment: str
    tasks: int
    index: int | None
    coordinator: str
    evidence: str
    advice: str = ""
    started: bool = True

    @property
    def is_single(self) -> bool:
        """True if this process was meant to run alone."""
        return self.tasks == 1

    def __str__(self) -> str:
        tasks = {0: "several tasks", 1: "a single task"}.get(self.tasks, f"{self.tasks} tasks")
        return f"{self.environment}, {tasks} ({self.evidence})"


@dataclass(frozen=True)
class Environment:
    """A row of the table.

    Attributes:
        name: what starts the processes.
        markers: variables any of which shows it; each is "NAME", or "NAME+NAME" for several together.
        count: variable with the number of tasks.
        index: variable with the index of this one.
        coordinator: returns HOST:PORT of process 0, BY_JAX, BY_MPI or "".
        advice: how to join where `coordinator` returns "".
        recognise: further condition.
    """

    name: str
    markers: tuple[str, ...]
    count: str
    index: str
    coordinator: Callable[[Variables], str]
    advice: str = ""
    recognise: Callable[[Variables], bool] = lambda variables: True

    def detect(self, variables: Variables) -> Group | None:
        """Return the group that this environment shows; None if it is not this one.

        Raises:
            ValueError: naming a variable that is missing or is no number.
        """
        if not any(_all_set(variables, marker) for marker in self.markers) or not self.recognise(variables):
            return None
        for missing, present in ((self.count, self.index), (self.index, self.count)):
            if missing not in variables and not (present == self.count and variables.get(present) == "1"):
                shown = present if present in variables else self.markers[0].partition("+")[0]
                raise ValueError(
                    f"{shown}={variables.get(shown, '')} is set ({self.name}), but {missing} is not; pass both to "
                    f"every process, or {ALONE}"
                )
        tasks = read_number(variables, self.count, 1)
        evidence = f"{self.count}={tasks}"
        if tasks == 1:
            return Group(self.name, 1, 0, "", evidence)
        index = read_number(variables, self.index, 0)
        if index >= tasks:
            raise ValueError(f"{self.index}={index} does not fit {self.count}={tasks}: indices count from 0")
        coordinator = self.coordinator(variables)
        if coordinator not in ("", BY_JAX, BY_MPI):
            require_address(coordinator, f"the address of process 0 ({self.name})")
        return Group(self.name, tasks, index, coordinator, f"{evidence}, {self.index}={index}", self.advice)


def _all_set(variables: Variables, marker: str) -> bool:
    return all(variables.get(name) for name in marker.split("+"))


def read_number(variables: Variables, name: str, least: int) -> int:
    """Return the number in a variable.

    Raises:
        ValueError: naming the variable, if it holds no number of at least `least`.
    """
    text = variables[name].strip()
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise ValueError(f"environment variable {name}={text!r}: is not a whole number of at least {least}")
    return int(text)


def require_address(address: str, where: str) -> None:
    """Raise ValueError naming `where` unless the address is HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(f"{where} {address}: write it as HOST:PORT")


def _port(variables: Variables, identity: str, name: str = "") -> str:
    """Return the port that a variable gives, or one that follows from what identifies the job."""
    for variable in ("JAX_COORDINATOR_PORT", name):
        if variables.get(variable):
            return variables[variable]
    return str(FIRST_PORT + int(hashlib.sha256(identity.encode()).hexdigest(), 16) % (65536 - FIRST_PORT))


def first_host(nodes: str) -> str:
    """Return the first of Slurm's node list: "gpu[01-04,7],x" -> "gpu01"; "" if there is none."""
    match = re.match(r"([^\[\],]*)(?:\[([^\],-]+)[^\]]*\])?([^\[\],]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else ""


def _zoo(variables: Variables) -> str:
    return variables["ZOO_COORDINATOR"]


def _jax(variables: Variables) -> str:
    if "JAX_COORDINATOR_ADDRESS" not in variables:
        raise ValueError(
            f"JAX_NUM_PROCESSES={variables['JAX_NUM_PROCESSES']} is set, but JAX_COORDINATOR_ADDRESS is not; set it to "
            f"HOST:PORT of process 0, or {ALONE}"
        )
    return variables["JAX_COORDINATOR_ADDRESS"]


def _jaxjob(variables: Variables) -> str:
    address = variables["COORDINATOR_ADDRESS"]
    return address if ":" in address else f"{address}:{_port(variables, address, 'COORDINATOR_PORT')}"


def _torchrun(variables: Variables) -> str:
    if "MASTER_ADDR" not in variables:
        return ""
    port = read_number(variables, "MASTER_PORT", 1) if "MASTER_PORT" in variables else FIRST_PORT
    return f"{variables['MASTER_ADDR']}:{port + 1}"  # torchrun itself listens on MASTER_PORT


def _pytorchjob(variables: Variables) -> str:
    return f"{variables['MASTER_ADDR']}:{variables['MASTER_PORT']}"


def _pet(variables: Variables) -> str:
    address = variables.get("PET_MASTER_ADDR", "")
    return f"{address}:{_port(variables, address, 'PET_MASTER_PORT')}" if address else ""


def _open_mpi(variables: Variables) -> str:
    if variables.get("OMPI_COMM_WORLD_LOCAL_SIZE") == variables["OMPI_COMM_WORLD_SIZE"]:  # all on this host
        names = ("PMIX_NAMESPACE", "OMPI_MCA_orte_hnp_uri", "OMPI_MCA_ess_base_jobid", "PMIX_SERVER_URI2")
        return f"127.0.0.1:{_port(variables, '|'.join(variables.get(name, '') for name in names))}"
    return BY_MPI if find_spec("mpi4py") else ""


def _hydra(variables: Variables) -> str:
    return BY_MPI if find_spec("mpi4py") else ""


def _slurm(variables: Variables) -> str:
    host = first_host(variables.get("SLURM_STEP_NODELIST", ""))
    job = f"{variables.get('SLURM_JOB_ID', '')}.{variables.get('SLURM_STEP_ID', '')}"
    return f"{host}:{_port(variables, job)}" if host else ""


def _sky(variables: Variables) -> str:
    hosts = variables.get("SKYPILOT_NODE_IPS", "").split()
    return f"{hosts[0]}:{_port(variables, variables.get('SKYPILOT_TASK_ID', ''))}" if hosts else ""


#: Environments that show the number of tasks and the index of this one, the nearest launcher first.
ENVIRONMENTS = (
    Environment("zoo launch", ("ZOO_COORDINATOR",), "ZOO_PROCESSES", "ZOO_PROCESS", _zoo),
    Environment(
        "JAX_NUM_PROCESSES", ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"), "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", _jax
    ),
    Environment(
        "Kubeflow JAXJob", ("COORDINATOR_ADDRESS+NUM_PROCESSES+PROCESS_ID",), "NUM_PROCESSES", "PROCESS_ID", _jaxjob
    ),
    Environment(
        "torchrun", ("TORCHELASTIC_RUN_ID",), "WORLD_SIZE", "RANK", _torchrun,
        "set MASTER_ADDR to the host of process 0",
    ),
    Environment(
        "Open MPI", ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK",
        _open_mpi, "its tasks on several hosts find each other through MPI: pip install mpi4py",
    ),
    Environment(
        "MPI", ("PMI_SIZE+MPI_LOCALNRANKS", "PMI_SIZE+HYDI_CONTROL_FD"), "PMI_SIZE", "PMI_RANK", _hydra,
        "its tasks find each other through MPI: pip install mpi4py",
    ),
    Environment(
        "Slurm", ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID"), "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", _slurm,
        "pass all variables SLURM_STEP_* on to the processes",
        lambda variables: variables.get("SLURM_STEP_ID") != INTERACTIVE_STEP,
    ),
    Environment(
        "SkyPilot", ("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK"), "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", _sky,
        "pass SKYPILOT_NODE_IPS on to the processes",
    ),
    Environment(
        "Kubeflow Trainer", ("PET_NNODES", "PET_NODE_RANK"), "PET_NNODES", "PET_NODE_RANK", _pet,
        "use a runtime with the policy jax, or set PET_MASTER_ADDR",
    ),
    Environment(
        "PyTorchJob", ("WORLD_SIZE+RANK+MASTER_ADDR+MASTER_PORT",), "WORLD_SIZE", "RANK", _pytorchjob
    ),
)  # fmt: skip


def _slurm_allocation(variables: Variables) -> Group | None:
    """Recognise a process that runs in an allocation for several tasks, but was not started by srun."""
    if not variables.get("SLURM_JOB_ID"):
        return None
    counts = {
        name: read_number(variables, name, 1)
        for name in ("SLURM_NTASKS", "SLURM_JOB_NUM_NODES", "SLURM_NNODES")
        if variables.get(name)
    }
    name = max(counts, key=lambda name: counts[name], default="")
    if not name or counts[name] == 1:
        return Group("Slurm", 1, 0, "", f"SLURM_JOB_ID={variables['SLURM_JOB_ID']}", started=False)
    return Group(
        "Slurm", counts[name], None, "", f"{name}={counts[name]}, not started by srun",
        "put srun before the command: srun python train.py …", started=False,
    )  # fmt: skip


def _kubernetes(variables: Variables) -> Group | None:
    """Recognise a pod of an indexed job, such as those of a JobSet. The number of pods is not in the environment."""
    if not {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(variables):
        return None
    return Group(
        "Kubernetes", 0, read_number(variables, "JOB_COMPLETION_INDEX", 0), BY_JAX if find_spec("kubernetes") else "",
        f"JOB_COMPLETION_INDEX={variables['JOB_COMPLETION_INDEX']}",
        "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in the pod template",
    )  # fmt: skip


def _tpu(variables: Variables) -> Group | None:
    """Recognise a worker of a TPU pod slice, from the variables of GKE or the metadata of a TPU VM."""
    name, hosts = "TPU_WORKER_HOSTNAMES", variables.get("TPU_WORKER_HOSTNAMES", "")
    if not hosts and (glob("/dev/accel*") or glob("/dev/vfio/[0-9]*")) and find_spec("libtpu"):
        name, hosts = "worker-network-endpoints", read_metadata("attributes/worker-network-endpoints")
    count = len([host for host in hosts.split(",") if host.strip()])
    slices = read_number(variables, "MEGASCALE_NUM_SLICES", 1) if variables.get("MEGASCALE_NUM_SLICES") else 1
    if not count and slices == 1:
        return None
    evidence = f"{name}: {max(count, 1)} hosts" + (f", MEGASCALE_NUM_SLICES={slices}" if slices > 1 else "")
    total = max(count, 1) * slices
    return Group("TPU", total, None if total > 1 else 0, BY_JAX if total > 1 else "", evidence)


def read_metadata(name: str) -> str:
    """Return a value of the metadata server of Google's machines; "" where there is none."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/{name}", headers={"Metadata-Flavor": "Google"}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # proxies do not reach this server
    try:
        with direct.open(request, timeout=2) as response:
            return response.read(1 << 16).decode()
    except (OSError, ValueError):
        return ""


def _ray(variables: Variables) -> Group | None:
    """Recognise a worker of Ray Train. JaxTrainer joins the workers before it calls the training function."""
    train = sys.modules.get("ray.train")
    if train is None:
        return None
    try:
        context = train.get_context()
        tasks, index = int(context.get_world_size()), int(context.get_world_rank())
    except Exception:  # outside a worker Ray raises errors of several types
        return None
    return Group(
        "Ray", tasks, index, "", f"ray.train world size {tasks}",
        "start the workers with ray.train.v2.jax.JaxTrainer, which joins them",
    )  # fmt: skip


#: (variable that shows a launcher, index of a process on its host, number of processes there), the nearest first.
PLACES = (
    ("ZOO_LOCAL_PROCESSES", "", "ZOO_LOCAL_PROCESSES"),
    ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_LOCALNRANKS", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SLURM_STEP_TASKS_PER_NODE", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)

#: Environments that show their tasks in ways of their own.
OTHERS = (_slurm_allocation, _ray, _kubernetes, _tpu)


def detect(variables: Variables = os.environ) -> Group | None:
    """Return the group of processes that this one belongs to; None if nothing shows several.

    ZOO_COORDINATOR=none says that there is none.

    Raises:
        ValueError: in one line, for variables that are missing, contradict each other or are no numbers.
    """
    if variables.get("ZOO_COORDINATOR") == "none":
        return None
    nearest: Group | None = None
    for environment in ENVIRONMENTS:
        group = environment.detect(variables)
        if group is None:
            continue
        if nearest is None:
            nearest = group
            # Whoever writes JAX's variables by hand may write the same ones for all tasks of a real launcher.
            if environment.name != "JAX_NUM_PROCESSES":
                break
        elif environment.name in ("Open MPI", "MPI", "Slurm"):
            if (nearest.tasks, nearest.index) != (group.tasks, group.index):
                raise ValueError(
                    f"{nearest.evidence} contradict {group.evidence} ({group.environment}); unset JAX_NUM_PROCESSES "
                    f"and JAX_PROCESS_ID, or {ALONE}"
                )
            break
    if nearest is None:
        nearest = next(filter(None, (recognise(variables) for recognise in OTHERS)), None)
    address = variables.get("JAX_COORDINATOR_ADDRESS")
    if address and nearest is None:
        raise ValueError(
            f"JAX_COORDINATOR_ADDRESS={address} is set, but JAX_NUM_PROCESSES and JAX_PROCESS_ID are not; set all "
            f"three, or {ALONE}"
        )
    if address and nearest and nearest.tasks > 1 and nearest.index is not None and nearest.environment != "zoo launch":
        require_address(address, "environment variable JAX_COORDINATOR_ADDRESS")
        nearest = replace(nearest, coordinator=address)
    return nearest


def processes_on_this_host(variables: Variables = os.environ) -> int:
    """Return how many of the processes run on this machine according to the launcher; 1 if it does not say."""
    return _place_on_host(variables)[2]


def _place_on_host(variables: Variables) -> tuple[str, int | None, int]:
    """Return (marker of the nearest launcher, index of this process on its host, number of processes there)."""
    for marker, index, count in PLACES:
        counts = re.findall(r"(?:^|,)(\d+)", variables.get(count, ""))  # Slurm: "4(x2),3"
        if counts and variables.get(marker):
            place = variables.get(index, "")
            return marker, int(place) if place.isdecimal() else None, max(map(int, counts))
    return "", None, 1


def local_devices(variables: Variables = os.environ) -> list[int] | None:
    """Return the GPUs of this process, as indices of the visible ones, if it shares them with others on this machine.

    None means all visible ones: the launcher has given each process its own, or there are none.
    """
    launcher, index, count = _place_on_host(variables)
    # After srun --gpus-per-task each task sees its own GPUs only, unless that is overridden.
    has_own = launcher.startswith("SLURM") and variables.get("SLURM_GPUS_PER_TASK")
    if index is None or count == 1 or (has_own and variables.get("SLURM_GPU_BIND") != "none"):
        return None
    share = len(visible_gpus(variables)) // count
    return list(range(index * share, (index + 1) * share)) if share else None


def visible_gpus(variables: Variables = os.environ) -> list[str]:
    """Return the names of the NVIDIA GPUs that JAX may use on this machine, as CUDA_VISIBLE_DEVICES lists them."""
    if (variables.get("JAX_PLATFORMS") or "cuda").partition(",")[0] not in ("cuda", "gpu"):
        return []
    visible = variables.get("CUDA_VISIBLE_DEVICES")
    names = [name.removeprefix("/dev/nvidia") for name in _gpu_files()] if visible is None else visible.split(",")
    # CUDA ignores the list from its first invalid name on; -1 is the usual way to hide all GPUs.
    return [name for name in takewhile(lambda name: name.strip() not in ("-1", "NoDevFiles"), names) if name]


def _gpu_files() -> list[str]:
    return sorted(glob("/dev/nvidia[0-9]*"), key=lambda name: (len(name), name))
