from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from metarl.core.errors import InputError
from metarl.core.files import (
    WriteError,
    made_folder,
    parse_json,
    read_file,
    remove_unfinished,
    require_output,
    write_atomically,
    write_durably,
    write_error,
    writing,
)


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    old_mask = os.umask(0o022)
    try:
        write_atomically(path, b"new")
    finally:
        os.umask(old_mask)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert listed(tmp_path) == ["a.json"]


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Path]:
    """A folder with one file of each kind that is not a regular file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "target").write_bytes(b"kept")
    for name, target in (("link", "target"), ("dangling", "absent"), ("device", "/dev/null"), ("piped", "pipe")):
        (tmp_path / name).symlink_to(target)
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(tmp_path):
        listening.bind("socket")
        yield tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pipe", "named pipe"),
        ("piped", "named pipe"),
        ("folder", "directory"),
        ("socket", "device or address"),
        ("device", "device"),
        ("dangling", "No such file"),
        ("a\0b", "a valid file name"),
        ("\ud800", "a valid file name"),
        (9999 * "a", "File name too long"),
    ],
)
def test_only_regular_files_are_read_and_nothing_waits(odd: Path, name: str, said: str) -> None:
    with pytest.raises(OSError, match=said):
        read_file(odd / name)


def test_an_endless_or_a_large_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="device"):
        read_file(Path("/dev/zero"))
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 2**40)
    (tmp_path / "small").write_bytes(b"123")
    assert read_file(tmp_path / "small", largest=3) == b"123"
    for name, largest in (("sparse", 2**30), ("sparse", None), ("small", 2)):
        with pytest.raises(OSError, match="Has more than"):
            read_file(tmp_path / name, largest=largest)
    with pytest.raises(OSError, match="Has more than"):  # the system does not give its size
        read_file(Path("/proc/self/status"), largest=10)


@pytest.mark.parametrize("name", ["pipe", "piped", "folder", "socket", "device", "link", "dangling", "a\0b"])
def test_only_regular_files_are_replaced(odd: Path, name: str) -> None:
    before = {path.name: path.lstat() for path in odd.iterdir()}
    with pytest.raises(OSError, match=r"regular file|directory|a valid file name"):
        write_atomically(odd / name, b"new")
    with pytest.raises(InputError, match=r"^--out = .*: (cannot be written|must be a file in a folder)"):
        require_output(odd / name, "--out")
    assert (odd / "target").read_bytes() == b"kept"
    assert {path.name: path.lstat().st_ino for path in odd.iterdir()} == {
        name: found.st_ino for name, found in before.items()
    }


@pytest.mark.parametrize("path", ["-", "./-", "absent/a", 256 * "a", "/proc/a"])
def test_where_no_file_can_be_made_is_refused_before_the_work(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^--json = .*: (cannot be written|must be)"):
        require_output(Path(path), "--json")
    assert listed(tmp_path) == []


def test_the_longest_name_of_a_file_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / (255 * "a")
    require_output(path, "--json")
    assert listed(tmp_path) == []
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NaN", "not a finite number"),
        ("[-Infinity]", "not a finite number"),
        ("1e400", "not a finite number"),
        ('{"a": 1, "a": 2}', "same name twice"),
        (100_000 * "[", "nested too deeply"),
        (5000 * "9", "digits"),
        ("\udce9", "can't decode"),
    ],
)
def test_odd_json_is_a_value_error(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(text.encode(errors="surrogateescape"))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail) if step == "fsync" else monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert listed(tmp_path) == ["a.json"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:3]))
    descriptor = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
    write_durably(descriptor, b"0123456789")
    os.close(descriptor)
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-a").write_text("")
    (tmp_path / ".unfinished-b" / "c").mkdir(parents=True)
    (tmp_path / "kept").write_text("")
    remove_unfinished(tmp_path)
    assert listed(tmp_path) == ["kept"]
    remove_unfinished(tmp_path / "absent")


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, WriteError), (errno.EIO, WriteError), (errno.EACCES, InputError)]
)
def test_a_full_disk_is_not_the_users_fault_and_a_bad_path_is(number: int, kind: type[Exception]) -> None:
    error = write_error("a: cannot be written", OSError(number, os.strerror(number)), " (because)")
    assert type(error) is kind
    assert str(error) == f"a: cannot be written: {os.strerror(number)} (because)"


def test_writing_to_a_full_device_is_said_in_one_line() -> None:
    said = r"^/dev/full: cannot be written: No space left on device$"
    with pytest.raises(WriteError, match=said), writing(Path("/dev/full")), Path("/dev/full").open("w") as file:
        file.write("x")


def test_a_made_folder_is_gone_again_with_its_parents_if_it_stays_empty(tmp_path: Path) -> None:
    with made_folder(tmp_path / "a" / "b"):
        assert listed(tmp_path / "a") == ["b"]
    assert listed(tmp_path) == []
    with made_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "c").mkdir()
    assert listed(tmp_path / "a") == ["c"]
    with made_folder(tmp_path / "a" / "c"):  # was there before
        pass
    with pytest.raises(FileExistsError), made_folder(tmp_path / "a" / "c", exist_ok=False):
        pass
    assert listed(tmp_path / "a") == ["c"]
