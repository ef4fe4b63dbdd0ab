"""Checkpoints on the Hugging Face Hub, against a server of the tests on the loopback interface."""

import builtins
import json
from pathlib import Path

import hub_server
import pytest
from helpers import assert_one_line, run_command

import zoo
from zoo.checkpoint import CorruptCheckpointError
from zoo.checkpoint.manifest import listed_files
from zoo.data.images.preprocess import Preprocess
from zoo.loading import open_init
from zoo.pretrained import hub

constants = pytest.importorskip("huggingface_hub.constants")
NAME = "hf:ada/pets"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the library, on upload


def save(folder, seed=0, **metadata):
    model = zoo.create("mlp", num_classes=2, image_size=8, widths=(64,))
    preprocess = Preprocess(size=(8, 8), resize=(8, 8), channels="L", mean=(0.5,), std=(0.5,))
    zoo.save(folder, model, zoo.init(model, seed), ("cat", "dog"), preprocess, **metadata)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("hub") / "pets", licence="MIT", command="zoo train --data mine")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub with a large-file storage for arrays, an empty cache, and the token of someone who may write."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server has the plain storage only
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    with hub_server.serving(hub_server.Hub(large_bytes=5000)) as serving:
        monkeypatch.setenv("HF_ENDPOINT", serving.url)
        if template := getattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", ""):  # read once on import
            monkeypatch.setattr(
                constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace(constants.ENDPOINT, serving.url)
            )
        monkeypatch.setattr(constants, "ENDPOINT", serving.url)
        yield serving


@pytest.fixture
def pushed(server, folder):
    """The repository of a pushed checkpoint."""
    hub.upload(hub.plan_upload(folder, NAME))
    return server.repositories["ada/pets"]


def files(repository):
    return repository.commits[repository.head]


def edit(repository, **changes):
    """Commit other contents of files; None deletes one."""
    new = {**files(repository), **{name.replace("__", "."): data for name, data in changes.items()}}
    return repository.commit({name: data for name, data in new.items() if data is not None}, "by hand")


def test_push_shows_and_uploads_what_the_manifest_lists(server, folder, capsys, monkeypatch):
    (folder / "notes.txt").write_text("beside the checkpoint, and not of it")
    code, out, err = run_command(capsys, "push", folder, NAME, "--private", "--dry-run")
    assert code == 0 and not err and not server.repositories and "nothing was uploaded" in out
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        code, local, err = run_command(capsys, "push", folder, NAME, "--private", "--dry-run")
        assert code == 0 and not err and "(private, not checked)" in local and "HF_HUB_OFFLINE=1" in local
        shown = out.replace("(private, new)", "(private, not checked)").splitlines()
        assert [line for line in local.splitlines() if "; not checked: the repository" not in line] == shown
    code, out, err = run_command(capsys, "push", folder, NAME, "--private", "--message", "First pets")
    (folder / "notes.txt").unlink()
    assert code == 0 and not err
    assert f"{server.url}/ada/pets (private, new)" in out and "README.md" in out and "arrays/" in out
    assert "the card names" not in out and "holds the command zoo train --data mine" in out and "licence" not in out
    repository = server.repositories["ada/pets"]
    assert repository.private and repository.messages == ["initial commit", "First pets"]
    assert f"{server.url}/ada/pets/commit/{repository.head}" in out
    expected = {*listed_files(folder), "manifest.json", "README.md", ".gitattributes"}
    pushed_manifest = json.loads(files(repository)["manifest.json"])
    assert set(pushed_manifest["files"]) == set(listed_files(folder)) - {"README.md"}
    assert set(files(repository)) == expected and repository.large  # the array went to large-file storage
    for name in expected - {"README.md", "manifest.json", ".gitattributes"}:
        assert files(repository)[name] == (folder / name).read_bytes()
    readme = files(repository)["README.md"].decode()
    assert "zoo predict hf:ada/pets photo.jpg" in readme and "USER/NAME" not in readme


def test_a_pushed_checkpoint_is_loaded_by_its_name(pushed, server, folder, capsys, monkeypatch):
    loaded = zoo.load(NAME)
    assert loaded.card == zoo.load(folder).card
    code, out, _ = run_command(capsys, "verify", NAME)
    assert code == 0 and "ok" in out
    assert open_init(NAME).card == loaded.card  # --init
    first = pushed.head
    pushed.tags["v1"] = first
    save(folder.with_name("other"), seed=1, licence="CC0-1.0")
    hub.upload(hub.plan_upload(folder.with_name("other"), NAME))
    assert zoo.load(NAME).card.licence == "CC0-1.0"
    for revision in ("v1", first):
        assert zoo.load(f"{NAME}@{revision}").card.licence == "MIT"
    server.requests.clear()
    assert zoo.load(f"{NAME}@{first}").card.licence == "MIT" and not server.requests  # a commit never changes
    assert hub.fetch(NAME).name == pushed.head
    assert not any("README" in request for request in server.requests)


def test_a_second_push_replaces_arrays_and_keeps_an_edited_readme(pushed, folder, tmp_path, capsys):
    other = save(tmp_path / "other", seed=1, licence="MIT")
    code, out, _ = run_command(capsys, "push", other, NAME)
    assert code == 0 and "(public, exists)" in out and "is kept" not in out
    arrays = {name for name in files(pushed) if name.startswith("arrays/")}
    assert arrays == {name for name in listed_files(other) if name.startswith("arrays/")}
    edit(pushed, README__md=files(pushed)["README.md"] + b"\nThanks to Ada.\n")
    code, out, _ = run_command(capsys, "push", folder, NAME)
    assert code == 0 and "README.md on the Hub was edited there and is kept" in out
    assert files(pushed)["README.md"].endswith(b"Thanks to Ada.\n") and zoo.load(NAME).card == zoo.load(folder).card
    code, out, _ = run_command(capsys, "push", folder, NAME, "--overwrite-readme")
    assert code == 0 and "is kept" not in out and b"Thanks" not in files(pushed)["README.md"]


def test_a_checkpoint_of_before_readmes_gets_one_which_is_no_edit(server):
    old = Path(__file__).parents[1] / "checkpoint" / "format1" / "best"
    hub.upload(hub.plan_upload(old, NAME))
    assert b"zoo predict hf:ada/pets" in files(server.repositories["ada/pets"])["README.md"]
    assert hub.plan_upload(old, NAME).readme
    edit(server.repositories["ada/pets"], README__md=b"mine")
    assert not hub.plan_upload(old, NAME).readme


def test_a_readme_that_the_page_of_the_hub_made_is_kept(server, folder):
    repository = server.repositories["ada/pets"] = hub_server.Repository()
    repository.commit({".gitattributes": b"", "README.md": b"---\nlicense: mit\n---\n"}, "by hand")
    planned = hub.plan_upload(folder, NAME)
    assert not planned.readme and "README.md" not in planned.files and "kept" in planned.notes[-1]
    assert hub.plan_upload(folder, NAME, overwrite_readme=True).readme


def test_what_is_not_pushed_and_why(pushed, server, folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="public repository") as caught:
        hub.plan_upload(folder, NAME, private=True)
    assert_one_line(caught, NAME, "/settings")
    server.repositories["ada/bert"] = hub_server.Repository()
    server.repositories["ada/bert"].commit({"config.json": b"{}", "model.safetensors": b""})
    with pytest.raises(ValueError, match="holds no checkpoint of this zoo, but config") as caught:
        hub.plan_upload(folder, "hf:ada/bert")
    with pytest.raises(ValueError, match="main branch; write hf:ada/pets"):
        hub.plan_upload(folder, f"{NAME}@v1")
    damaged = save(tmp_path / "damaged")
    (damaged / "card.json").write_text((damaged / "card.json").read_text() + " ")
    with pytest.raises(CorruptCheckpointError, match=r"not pushed: card\.json"):
        hub.plan_upload(damaged, NAME)
    planned = hub.plan_upload(folder, NAME)
    edit(pushed, notes__md=b"meanwhile")
    with pytest.raises(ValueError, match="changed by someone else meanwhile") as caught:
        hub.upload(planned)
    assert_one_line(caught, NAME)
    for token, reason in ((hub_server.READER, "no permission to write"), ("hf_wrong", "no permission"), ("", "write")):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(PermissionError, match=reason) as caught:
            hub.upload(hub.plan_upload(folder, "hf:ada/new"))
        assert_one_line(caught, "hf:ada/new", "hf auth login", "HF_TOKEN")
    assert set(server.repositories) == {"ada/pets", "ada/bert"}


def test_what_cannot_be_loaded_and_why(pushed, server, monkeypatch, capsys):
    server.repositories["ada/empty"] = hub_server.Repository()
    server.repositories["ada/empty"].commit({"README.md": b""})
    server.repositories["ada/secret"] = hub_server.Repository(private=True)
    server.repositories["ada/secret"].commit({})
    for name, kind, reason in (
        ("hf:ada/none", FileNotFoundError, "no such repository on 127.0.0.1"),
        (f"{NAME}@v9", FileNotFoundError, "has no revision 'v9'"),
        ("hf:ada/empty", FileNotFoundError, "not a checkpoint of this zoo (no card.json and no manifest.json)"),
        ("hf:pets", ValueError, "write hf:USER/NAME"),
        ("hf:../../pets", ValueError, "write hf:USER/NAME"),
        ("hf:ada/pets@../x", ValueError, "write hf:USER/NAME"),
    ):
        with pytest.raises(kind) as caught:
            zoo.load(name)
        assert_one_line(caught, name, reason)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(FileNotFoundError) as caught:
        zoo.load("hf:ada/secret")
    assert_one_line(caught, "if it is private, log in with `hf auth login`, or set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PermissionError) as caught:
        zoo.load(NAME)
    assert_one_line(caught, "no permission to read (401)", "HF_TOKEN")
    server.status["/api/models"] = 503
    with pytest.raises(ConnectionError) as caught:
        zoo.load(NAME)
    assert_one_line(caught, "answers 503", "not in the cache")
    code, _, err = run_command(capsys, "predict", "ada/pets", "x.png")
    assert code == 2 and "did you mean hf:ada/pets?" in err


def test_the_cache_is_used_without_network(pushed, server, folder, monkeypatch, capsys):
    zoo.load(NAME)
    capsys.readouterr()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert zoo.load(NAME).card == zoo.load(folder).card
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "127.0.0.1:9 cannot be reached" in err and pushed.head[:12] in err
    with pytest.raises(ConnectionError) as caught:
        zoo.load("hf:ada/none")
    assert_one_line(caught, "cannot be reached", "not in the cache")
    with pytest.raises(ConnectionError, match="cannot be reached"):
        hub.plan_upload(folder, NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert zoo.load(NAME).card.licence == "MIT" and not capsys.readouterr().err
    array = max((hub.fetch(NAME) / "arrays").rglob("*"), key=lambda path: path.stat().st_size)
    array.unlink()
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE=1 forbids"):
        zoo.load(NAME)


def test_a_damaged_file_in_the_cache_is_downloaded_again(pushed, folder):
    array = max((hub.fetch(NAME) / "arrays").rglob("*"), key=lambda path: path.stat().st_size).resolve()
    data = bytearray(array.read_bytes())
    data[100] ^= 1
    array.write_bytes(data)
    assert zoo.load(NAME).card == zoo.load(folder).card


def test_damage_on_the_hub_is_noticed(pushed):
    whole = files(pushed)
    name = max((name for name in whole if name.startswith("arrays/")), key=lambda name: len(whole[name]))
    for change, reason in (
        (whole[name][:-1] + b"x", "different content"), (whole[name] + b"x", "bytes instead of"), (None, "is missing"),
    ):  # fmt: skip
        pushed.commit({key: data for key, data in {**whole, name: change}.items() if data is not None}, reason)
        with pytest.raises(CorruptCheckpointError, match=reason) as caught:
            zoo.load(NAME)
        assert_one_line(caught, name)
    for manifest in (b"{}", json.dumps({"files": {"../../x": {}}, "format": 2}).encode()):
        pushed.commit({**whole, "manifest.json": manifest}, str(manifest))
        with pytest.raises(CorruptCheckpointError, match=r"manifest\.json") as caught:
            zoo.load(NAME)
        assert_one_line(caught, NAME)


def test_only_listed_files_of_bounded_size_are_downloaded(pushed, server, monkeypatch):
    edit(pushed, huge__bin=b"x" * 10_000, evil__py=b"raise SystemExit")
    folder = hub.fetch(NAME)
    assert not (folder / "evil.py").exists() and not (folder / "huge.bin").exists()
    assert not any("evil" in request or "huge" in request for request in server.requests if "resolve" in request)
    monkeypatch.setattr(hub, "MAX_JSON", 10)
    with pytest.raises(ValueError, match=r"card\.json is larger than 10 bytes"):
        hub.fetch(NAME)
    monkeypatch.undo()


def test_without_its_package(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("huggingface_hub"):
            raise ImportError(name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError) as caught:
        zoo.load(NAME)
    assert_one_line(caught, NAME, "pip install 'jax-model-zoo[hub]'")
