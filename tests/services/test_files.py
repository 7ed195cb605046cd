"""Files written whole or not at all."""

import os
import stat
import threading

import pytest

from kvtuner_core.errors import InputError
from kvtuner_core.services.files import write_atomically


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "policy.json"
    for text in (b"old", b"new"):
        write_atomically(path, text)
        assert path.read_bytes() == text
    assert [item.name for item in tmp_path.iterdir()] == ["policy.json"]


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()), daemon=True)
    reader.start()
    write_atomically(path, b"text")
    reader.join(10)
    assert read == [b"text"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_folder_in_the_files_place_is_refused(tmp_path):
    with pytest.raises(InputError, match="Is a directory"):
        write_atomically(tmp_path, b"text")
    assert list(tmp_path.iterdir()) == []
