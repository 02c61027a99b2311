"""The path of the socket: what a template makes, replaces and refuses."""

from __future__ import annotations

import os
import socket
import stat
import tempfile

import pytest

from bridge.addresses import unix_path
from bridge.template.listener import Listener, ListenFailed, is_trusted


@pytest.fixture
def folder():
    """Return a folder with a short path."""
    with tempfile.TemporaryDirectory(prefix="bridge-") as path:
        yield path


@pytest.fixture
def listen():
    """Return a function that listens until the end of the test."""
    listeners = []

    def start(path):
        listeners.append(Listener(path))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


def test_only_this_user_may_connect(folder, listen):
    path = f"{folder}/run/bridge/s"
    listen(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(f"{folder}/run/bridge").st_mode) == 0o700


def test_a_folder_that_exists_keeps_its_mode(folder, listen):
    os.chmod(folder, 0o755)
    listen(f"{folder}/s")
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o755


def test_a_socket_that_nobody_listens_on_is_replaced(folder, listen):
    path = f"{folder}/s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    listen(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


@pytest.mark.parametrize("is_full", [False, True])
def test_a_socket_that_is_listened_on_is_refused(folder, is_full):
    path = f"{folder}/s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(2 * is_full)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(path)
        with pytest.raises(ListenFailed, match="another process listens there"):
            Listener(path)
        for client in waiting:
            client.close()
    assert os.path.exists(path)


def test_replace_takes_the_place_of_another_socket_only(folder, listen):
    path = f"{folder}/s"
    listen(path)
    Listener(path, replace=True).close()
    assert os.listdir(folder) == []
    os.mkdir(path)
    with pytest.raises(ListenFailed, match="is a directory"):
        Listener(path, replace=True)


@pytest.mark.parametrize(("kind", "message"), [("directory", "is a directory"), ("file", "is not a socket")])
def test_what_is_no_socket_is_never_removed(folder, kind, message):
    path = f"{folder}/s"
    if kind == "directory":
        os.mkdir(path)
    else:
        with open(path, "w") as file:
            file.write("precious")
    with pytest.raises(ListenFailed, match=message):
        Listener(path)
    assert os.path.exists(path)


def test_a_folder_that_is_not_writable_is_refused(folder):
    if os.geteuid() == 0:
        with pytest.raises(ListenFailed, match="/proc/s"):
            Listener("/proc/s")
        return
    os.chmod(folder, 0o500)
    with pytest.raises(ListenFailed, match="Permission denied"):
        Listener(f"{folder}/s")


def test_a_file_in_place_of_the_folder_is_refused(folder):
    with open(f"{folder}/file", "w"):
        pass
    with pytest.raises(ListenFailed, match=f"{folder}/file is not a folder"):
        Listener(f"{folder}/file/s")


def test_close_does_not_remove_the_socket_of_a_successor(folder, listen):
    path = f"{folder}/s"
    first = listen(path)
    os.unlink(path)
    listen(path)
    first.close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_close_once_more_does_not_remove_the_socket_of_a_successor(folder, listen):
    """Whose file may have the number of the one that was removed."""
    path = f"{folder}/s"
    first = listen(path)
    first.close()
    listen(path)
    first.close()
    assert os.path.exists(path)


def test_connections_to_a_hidden_socket_can_be_accepted(folder, listen):
    listener = listen(f"{folder}/s")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.path)
        listener.hide()
        assert os.listdir(folder) == []
        listener.accept().close()


def test_what_was_left_of_a_replacement_does_not_prevent_another(folder, listen):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{folder}/.{os.getpid()}")
    Listener(f"{folder}/s", replace=True).close()
    assert os.listdir(folder) == []


def test_a_replacement_that_fails_leaves_nothing(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "rename", refuse)  # as in /tmp, for the socket of another user
    with pytest.raises(ListenFailed, match="Operation not permitted"):
        Listener(f"{folder}/s", replace=True)
    assert os.listdir(folder) == []


def test_the_uid_of_a_peer_decides(folder, listen, monkeypatch):
    listener = listen(f"{folder}/s")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.path)
        with listener.accept() as connection:
            assert is_trusted(connection)
            if os.geteuid() != 0:
                monkeypatch.setattr(os, "geteuid", lambda: 12345)
                assert not is_trusted(connection)
    assert listener.accept() is None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("/run/bridge.sock", "is not an address like unix:/run/bridge.sock"),
        ("tcp:localhost:80", "is not an address like"),
        ("unix:", "has no path"),
        ("unix:a\0b", "has no path"),
        ("unix:/" + "x" * 107, "at most 107 bytes, not 108"),
        ("unix:/" + "ä" * 54, "at most 107 bytes, not 109"),
        ("unix:/run/bridge/", "name of a folder"),
        ("unix:\ud800", "is not the name of a file"),
    ],
)
def test_addresses_that_are_refused(address, message):
    with pytest.raises(ValueError, match=message):
        unix_path(address)


def test_the_longest_path_can_be_listened_on(folder, listen):
    path = f"{folder}/" + "x" * (106 - len(folder))
    assert len(unix_path(f"unix:{path}")) == 107
    listen(path)
