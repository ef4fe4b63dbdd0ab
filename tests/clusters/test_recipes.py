"""The files of examples/clusters: they parse, their commands exist, and their settings fit together."""

import ast
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from zoo.cli import _parsers
from zoo.commands import UNFINISHED_EXIT
from zoo.distributed.environments import detect
from zoo.distributed.watch import LOST_EXIT

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "clusters"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
DOCKERFILES = sorted(FOLDER.glob("Dockerfile*"))


def documents(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def parse(words):
    """Parse the words after `zoo` and return the options."""
    parser, _ = _parsers(list(words))
    options, unknown = parser.parse_known_args(list(words))
    assert not unknown
    return options


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_parse_and_their_commands_exist(file):
    assert subprocess.run(["bash", "-n", str(file)], capture_output=True).returncode == 0
    text = file.read_text().replace("\\\n", " ")
    commands = re.findall(r"-m zoo\.cli (train [^\n]*)", text)
    assert commands
    for command in commands:
        options = parse(shlex.split(command.removesuffix('"') if command.count('"') % 2 else command))
        assert options.workdir.startswith("/shared/")


def test_slurm_scripts_requeue_an_unfinished_run_and_are_signalled_in_time():
    for name in ("slurm.sh", "slurm-array.sh"):
        text = (FOLDER / name).read_text()
        assert f'[ "$code" -eq {UNFINISHED_EXIT} ]' in text and "scontrol requeue" in text
        assert "#SBATCH --requeue" in text and "#SBATCH --signal=USR1@120" in text and "--open-mode=append" in text


def test_pods_of_the_jobset_find_each_other():
    [jobset] = documents("jobset.yaml")
    [worker] = jobset["spec"]["replicatedJobs"]
    job = worker["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    variables = {entry["name"]: entry.get("value", "2") for entry in container["env"]}
    group = detect({**variables, "KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"})
    assert group.tasks == job["parallelism"] == job["completions"] and group.index == 2
    name, host = jobset["metadata"]["name"], group.coordinator.partition(":")[0]
    assert host == f"{name}-{worker['name']}-0-0.{name}"
    index = next(entry for entry in container["env"] if entry["name"] == "JAX_PROCESS_ID")
    assert "job-completion-index" in index["valueFrom"]["fieldRef"]["fieldPath"]
    codes, _ = job["podFailurePolicy"]["rules"]
    assert codes["onExitCodes"]["values"] == [LOST_EXIT, UNFINISHED_EXIT]
    assert codes["onExitCodes"]["containerName"] == container["name"]
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] > 30
    assert parse(container["args"]).model == "resnet50"
    assert_volumes(job["template"]["spec"])


def assert_volumes(pod):
    names = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} <= names


def test_the_job_of_kubeflow_uses_its_runtime():
    runtime, job = documents("kubeflow.yaml")
    assert "jax" in runtime["spec"]["mlPolicy"]
    assert job["spec"]["runtimeRef"] == {
        "apiGroup": runtime["apiVersion"].partition("/")[0], "kind": runtime["kind"],
        "name": runtime["metadata"]["name"],
    }  # fmt: skip
    [node] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node" and "trainer" in node["template"]["metadata"]["labels"].values()
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["name"] == "node" and pod["terminationGracePeriodSeconds"] > 30
    assert_volumes(pod)
    assert parse(job["spec"]["trainer"]["args"]).model == "resnet50"


def test_nodes_of_skypilot_run_a_command_that_exists():
    [task] = documents("skypilot.yaml")
    assert task["num_nodes"] > 1 and task["resources"]["use_spot"]
    program, *words = shlex.split(task["run"])
    assert program == "zoo" and parse(words).workdir.startswith(next(iter(task["file_mounts"])))


def test_ray_workers_call_fit():
    import inspect

    import zoo

    tree = ast.parse((FOLDER / "ray_train.py").read_text())
    [config] = [
        ast.literal_eval(keyword.value) for node in ast.walk(tree) if isinstance(node, ast.Call)
        for keyword in node.keywords if keyword.arg == "train_loop_config"
    ]  # fmt: skip
    inspect.signature(zoo.fit).bind(**config)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_copy_what_exists_and_signals_reach_the_program(file):
    lines = file.read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied and all((FOLDER.parents[1] / name).exists() for name in copied)
    assert 'ENTRYPOINT ["zoo"]' in lines
    python = re.fullmatch(r"FROM python:3\.(\d+)-slim", next(line for line in lines if line.startswith("FROM")))
    assert int(python[1]) >= 11
