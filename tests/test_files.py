import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from zoo.files import atomic_writer, follow_link, read_bounded, read_text, require_regular, write_atomically


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_only_at_the_end(durable, unique, tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"old")
    with atomic_writer(file, durable=durable, unique=unique) as stream:
        stream.write(b"new")
        stream.flush()
        assert file.read_bytes() == b"old"
        (temporary,) = set(tmp_path.iterdir()) - {file}
        assert temporary.name == (f".a.bin.{os.getpid()}.tmp" if unique else ".a.bin.tmp")
    assert file.read_bytes() == b"new" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_file_as_it_was(error, tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"old")
    with pytest.raises(error), atomic_writer(file) as stream:
        stream.write(b"half")
        raise error
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_writer(tmp_path / "no" / "a.bin"):
        pass


def test_durable_files_are_flushed_to_disk(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor) or fsync(descriptor))
    with atomic_writer(tmp_path / "a", durable=False) as stream:
        stream.write(b"x")
    assert synced == []
    write_atomically(tmp_path / "b", "ä\n")
    assert len(synced) == 2 and (tmp_path / "b").read_bytes() == "ä\n".encode()  # the file and its folder


def test_threads_see_whole_files_only(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"0" * 1000)
    sizes = set()
    stop = threading.Event()

    def read():
        while not stop.is_set():
            sizes.add(len(file.read_bytes()))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        with atomic_writer(file, durable=False, unique=True) as stream:
            stream.write(b"1" * 500)
            stream.write(b"1" * 500)
    stop.set()
    reader.join()
    assert sizes == {1000}


# --- reading regular files --------------------------------------------------------------------------------------------


@pytest.fixture(params=["pipe", "socket", "device", "link to a device", "link to a pipe"])
def endless(request, tmp_path, monkeypatch):
    """A path that is no regular file. Reading most of them never ends."""
    path = tmp_path / "endless"
    if request.param.endswith("pipe"):
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            monkeypatch.chdir(tmp_path)  # the paths of sockets are short
            server.bind("endless")
    elif request.param == "device":
        return Path("/dev/zero")
    else:
        path.symlink_to("/dev/zero")
    if request.param == "link to a pipe":
        path = tmp_path / "link"
        path.symlink_to("endless")
    return path


def test_only_regular_files_are_read(endless):
    for read in (require_regular, read_text, lambda path: read_bounded(path, 10)):
        with pytest.raises(ValueError, match=f"{endless.name}: is a pipe, a socket or a device, not a regular file"):
            read(endless)


def test_folders_links_and_names_that_are_no_files(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path.name}: is a folder"):
        require_regular(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop", tmp_path / "nowhere", tmp_path / "nul\0"):
        with pytest.raises(OSError):
            read_bounded(path, 10)
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert require_regular(tmp_path / "link") == 5 and read_bounded(tmp_path / "link", 5) == b"12345"


def test_a_link_is_followed_unless_it_leads_to_itself(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "loop").symlink_to("loop")
    assert follow_link(tmp_path / "link") == (tmp_path / "folder").resolve()
    assert follow_link(tmp_path / "folder") == tmp_path / "folder"
    if sys.version_info < (3, 13):
        with pytest.raises(OSError, match="loop"):
            follow_link(tmp_path / "loop")


def test_files_are_read_up_to_a_limit(tmp_path):
    file = tmp_path / "two\nlines"
    file.write_bytes(b"123456")
    with pytest.raises(ValueError, match=r"two\\nlines: is larger than 5 bytes"):
        read_bounded(file, 5)
    with file.open("r+b") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(ValueError, match="is larger than 1,000 bytes"):
        read_text(file, 1000)


def test_text_has_an_encoding(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffé\n".encode())
    assert read_text(file) == "\ufeffé\n" and read_text(file, encoding="utf-8-sig") == "é\n"
    file.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"names\.txt: is not text in UTF-8; save it as UTF-8"):
        read_text(file, encoding="utf-8-sig")
