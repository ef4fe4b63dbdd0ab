import os
import threading

import pytest

from zoo.files import atomic_writer, write_atomically


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
