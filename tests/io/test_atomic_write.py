"""Files that are written whole or not at all."""

import fcntl
import os

import pytest

from lsdm_diffusers.io.atomic_write import part_file, write_atomically


def test_a_file_appears_whole_and_its_folder_with_it(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with part_file(path) as part:
        part.write_bytes(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_the_file_that_is_synced_is_open_for_writing(tmp_path, monkeypatch):
    """Windows refuses to sync a file that is open for reading only."""
    synced = []

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        synced.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "a.txt", b"content")
    assert (tmp_path / "a.txt").read_bytes() == b"content" and synced


def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), part_file(path) as part:
        part.write_bytes(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
