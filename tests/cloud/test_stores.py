"""Runs, checkpoints and data over the real protocols: killed, resumed, damaged, slow, failing.

Deselected unless asked for with `-m cloud`. For S3 it needs s3fs and moto[server], for Google Cloud Storage gcsfs and
fake-gcs-server. The machines of a test are folders of their own as caches.
"""

import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import flip_bit
from photos import encoded, photo

import zoo
from tests.cloud import servers
from tests.clusters import runs
from zoo.checkpoint.manifest import MANIFEST, write_manifest
from zoo.data.sources import open_dataset
from zoo.pretrained.names import shipped_folder
from zoo.stores import folders, object_cache, objects
from zoo.stores.lease import FOLDER as LEASES
from zoo.training.run_store import open_store

pytestmark = pytest.mark.cloud

numbers = itertools.count()


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request):
    """Yield (scheme, URL) of a store."""
    if absent := servers.missing(request.param):
        pytest.skip(f"needs {absent}")
    with servers.serve(request.param) as url, pytest.MonkeyPatch.context() as patch:
        for name, value in {**servers.CREDENTIALS, servers.ENDPOINTS[request.param]: url}.items():
            patch.setenv(name, value)
        objects._filesystem.cache_clear()
        yield request.param, url
    objects._filesystem.cache_clear()


@pytest.fixture
def address(store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    return f"{store[0]}://{servers.BUCKET}/test{next(numbers)}/run"


def command(*words):
    return [sys.executable, "-m", "zoo.cli", *map(str, words)]


def call(store, machine, *words, url=None, timeout=600, **variables):
    """Run a command to its end and return (exit code, stdout, stderr)."""
    environment = {**servers.environment(store[0], url or store[1], machine), **variables}
    done = subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def train_words(address):
    return [*runs.WORDS, "--workdir", address]


def saved_steps(address):
    return [int(name[11:20]) for name in objects.listing(address) if re.fullmatch(rf"state/step_\d+/{MANIFEST}", name)]


def wait_for_save(address, least, process, seconds=400):
    deadline = time.monotonic() + seconds
    while max(saved_steps(address), default=0) < least:
        assert process.poll() is None, "the training was too short to interrupt"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def fingerprint(address, folder):
    """Return the hashes of a finished run in the store."""
    names = [name for name in objects.listing(address) if not name.startswith((LEASES, "state/"))]
    folders.download_files(address, names, folder)
    return runs.fingerprint(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    environment = servers.environment("s3", "", folder / "cache")
    subprocess.run(command(*train_words(folder / "run")), env=environment, check=True, capture_output=True, timeout=600)
    return runs.fingerprint(folder / "run")


@pytest.mark.parametrize("machine", ["the same machine", "another machine"])
def test_a_killed_run_ends_with_the_same_bits_and_is_used(store, address, tmp_path, undisturbed, machine):
    first = tmp_path / "machine1"
    process = subprocess.Popen(
        command(*train_words(address)), env=servers.environment(*store, first), stdout=subprocess.DEVNULL
    )
    wait_for_save(address, 20, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    second = first if machine == "the same machine" else tmp_path / "machine2"
    code, out, err = call(store, second, *train_words(address))
    assert code == 0, err
    assert int(re.search(r"Resuming at step (\d+)", out)[1]) >= 20
    assert ("in use by" in out) == (machine == "another machine")
    assert fingerprint(address, tmp_path / "fetched") == undisturbed
    best = f"{address}/best"
    assert call(store, second, "verify", best)[0] == 0
    assert call(store, second, "info", best)[0] == 0
    code, out, _ = call(store, second, "eval", best)
    assert code == 0
    assert "accuracy" in out
    picture = tmp_path / "digit.png"
    picture.write_bytes(encoded(photo(32, 32, seed=0)))
    assert call(store, second, "predict", best, picture)[0] == 0
    assert zoo.load(best).card.model == "resnet20"
    code, out, _ = call(store, tmp_path / "machine3", *train_words(address))
    assert code == 0
    assert f"This run is finished: {address}" in out


def test_a_signal_saves_in_the_store(store, address, tmp_path):
    process = subprocess.Popen(
        command(*train_words(address)), env=servers.environment(*store, tmp_path / "machine1"), stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    wait_for_save(address, 25, process)  # the evaluation has been compiled
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    found = re.search(r"saved at step (\d+)", err)
    assert found, err
    step = int(found[1])
    assert max(saved_steps(address)) == step
    with open_store(address, tmp_path / "machine2", pytest.fail):  # released: nothing to wait for
        assert (tmp_path / "machine2" / "timing.jsonl").exists()


def stored_run(address, tmp_path):
    """Store a run of two saves without training."""
    folder = tmp_path / "stored"
    with open_store(address, folder, print) as opened:
        (folder / "config.json").write_text("{}")
        shutil.copytree(shipped_folder() / "lenet5-mnist", folder / "best")
        for step in (1, 2):
            save = folder / "state" / f"step_{step:09d}"
            (save / "arrays").mkdir(parents=True)
            (save / "progress.json").write_text(str(step))
            (save / "arrays" / "p0").write_bytes(bytes(1000))
            write_manifest(save)
            (folder / "metrics.jsonl").write_text("1\n" * step)
            opened.push()


def test_a_flipped_bit_in_any_object_is_named(store, address, tmp_path):
    stored_run(address, tmp_path)
    checked = 0
    for number, name in enumerate(sorted(objects.listing(address))):
        if name.startswith(LEASES):
            continue
        raw, said = objects.read(f"{address}/{name}"), []
        objects.write(f"{address}/{name}", flip_bit(raw) if raw else b"x")
        if name.startswith("best/"):
            with pytest.raises(ValueError) as caught:
                zoo.load(f"{address}/best")
            said.append(str(caught.value))
        else:
            try:
                with open_store(address, tmp_path / f"machine{number}", said.append):
                    pass
            except ValueError as error:
                said.append(str(error))
        if not name.startswith("state/step_000000001"):  # the save before the newest is only read if that is damaged
            assert len(said) == 1, (name, said)
            assert name.rpartition("/")[2] in said[0] and "\n" not in said[0]
            checked += 1
        objects.write(f"{address}/{name}", raw)
    assert checked > 15
    code, _, err = call(store, tmp_path / "cli", "verify", f"{address}/best")
    assert code == 0, err
    objects.write(f"{address}/best/card.json", flip_bit(objects.read(f"{address}/best/card.json")))
    for words in (["verify"], ["info"], ["eval", "--data", "digits"]):
        code, out, err = call(store, tmp_path / "cli", *words[:1], f"{address}/best", *words[1:])
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "card.json has different content" in err


def test_of_many_that_create_an_object_one_succeeds(store, address):
    won = []
    threads = [
        threading.Thread(target=lambda n=n: won.append(n) if objects.create(f"{address}/lock", str(n).encode()) else 0)
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert objects.read(f"{address}/lock") == str(won[0]).encode()


@pytest.fixture
def proxy(store):
    proxy = servers.Proxy(store[1])
    yield proxy
    proxy.close()


def test_slow_and_failing_answers_change_nothing(store, address, tmp_path, undisturbed, proxy):
    answers = itertools.cycle([None, None, 0.3, None, 503, None, None, 500, None])
    proxy.fault = lambda method, path: next(answers)
    code, _, err = call(store, tmp_path / "machine1", *train_words(address), url=proxy.url)
    assert code == 0, err
    assert proxy.count > 100
    assert fingerprint(address, tmp_path / "fetched") == undisturbed


def test_a_store_that_fails_for_ever_loses_nothing(store, address, tmp_path, undisturbed, proxy):
    machine = tmp_path / "machine1"
    variables = {"ZOO_STORE_TIMEOUT": "3"}
    environment = {**servers.environment(store[0], proxy.url, machine), **variables}
    process = subprocess.Popen(
        command(*train_words(address)), env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    wait_for_save(address, 10, process)
    proxy.fault = lambda method, path: 503
    _, err = process.communicate(timeout=400)
    lines = [line for line in err.splitlines() if "; trying for" not in line]
    assert process.returncode == 75, err
    assert len(lines) == 1, err
    assert "503" in lines[0] and address in lines[0]
    step = int(re.search(r"kept up to step (\d+)", lines[0])[1])
    code, _, err = call(store, machine, *train_words(address), url=proxy.url, **variables)  # it still fails
    assert (code, err.count("\n") - err.count("; trying for")) == (2, 1), err
    proxy.fault = lambda method, path: None
    code, out, err = call(store, machine, *train_words(address), url=proxy.url)
    assert code == 0, err
    assert int(re.search(r"Resuming at step (\d+)", out)[1]) == step
    assert fingerprint(address, tmp_path / "fetched") == undisturbed


def test_several_processes(store, address, tmp_path):
    if store[0] != "s3":
        pytest.skip("once is enough")
    launched = ["launch", "-n", "2", "--"]
    environment = servers.environment(*store, tmp_path / "machine1")
    local = tmp_path / "local"
    words = command(*launched, *train_words(local))
    subprocess.run(words, env=environment, check=True, capture_output=True, timeout=600)
    words, null = command(*launched, *train_words(address)), subprocess.DEVNULL
    process = subprocess.Popen(words, env=environment, stdout=null, stderr=null)
    wait_for_save(address, 20, process)
    status = {int(file.parent.name): file.read_text() for file in Path("/proc").glob("[0-9]*/status")}
    for number in [process.pid, *(child for child, text in status.items() if f"PPid:\t{process.pid}\n" in text)]:
        os.kill(number, signal.SIGKILL)
    process.wait()
    code, out, err = call(store, tmp_path / "machine1", *launched, *train_words(address))
    assert code == 0, err
    assert "Resuming at step" in out
    assert fingerprint(address, tmp_path / "fetched") == runs.fingerprint(local)


@pytest.mark.parametrize("limit", ["1G", "20k", "0"])
def test_data_by_ranges_and_through_a_bounded_cache(store, address, tmp_path, monkeypatch, limit):
    monkeypatch.setenv(object_cache.LIMIT_VARIABLE, limit)
    object_cache.shared_cache.cache_clear()
    disk = tmp_path / "disk"
    disk.mkdir()
    rows = ["path,label"]
    for shard in range(3):
        with tarfile.open(disk / f"train-{shard}.tar", "w") as archive:
            for n in range(20 * shard, 20 * shard + 20):
                label, data = ("cat", "dog")[n % 2], encoded(photo(12, 16, seed=n))
                member = tarfile.TarInfo(f"{label}/{n}.png")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
                (disk / f"{n}.png").write_bytes(data)
                rows.append(f"{n}.png,{label}")
    (disk / "table.csv").write_text("\n".join(rows) + "\n")
    folders.upload_files(disk, folders.files_in(disk), address)
    for name in ("train-{0..2}.tar", "table.csv"):
        local, remote = open_dataset(disk / name), open_dataset(f"{address}/{name}")
        assert remote.fingerprint() == local.fingerprint()
        for split in ("train", "test"):
            pairs = (part.splits[split].read(np.arange(len(part.splits[split]))) for part in (local, remote))
            assert all(map(np.array_equal, *pairs))
    entries = [file.stat().st_size for file in (tmp_path / "here").rglob("objects/??/*")]
    assert sum(entries) <= object_cache.limit_bytes()
    assert bool(entries) == (limit != "0")
    assert call(store, tmp_path / "cli", "data", f"{address}/table.csv")[0] == 0
