"""Saved sessions on a disk that fails: whatever happens, the old file or the new one is there, whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import legato
from legato.errors import CapacityError, LegatoError, RequestError, SessionError, UsageError
from legato.runtime.session_file import Disk, Fingerprint
from legato.runtime.session_folder import SessionFolder, checked_name

PAGE_BYTES = 200
PRINT = Fingerprint("m", "s", "auto", "int8", "avx2", 4, PAGE_BYTES, 1, "0.1.0")
CALLS = ("create", "open", "write", "read", "size", "sync", "close", "replace", "remove", "sync_folder")
CAP = 1 << 20


class Failing(Disk):
    """The call of number `fail_at` fails (and all later ones, if `for_good`); writes take at most `most` bytes."""

    def __init__(self, fail_at: int, error: int = errno.EIO, for_good: bool = False, most: int = 1 << 30) -> None:
        self.fail_at, self.error, self.for_good, self.most = fail_at, error, for_good, most
        self.count = 0

    def __getattribute__(self, name: str) -> object:
        if name in CALLS:
            self.count += 1
            if self.count == self.fail_at or (self.for_good and self.count > self.fail_at):
                number = self.error
                if name == "close":  # the handle is closed all the same, as in Linux

                    def close(handle: int) -> None:
                        os.close(handle)
                        raise OSError(number, os.strerror(number))

                    return close

                def fail(*arguments: object) -> None:
                    raise OSError(number, os.strerror(number))

                return fail
        return super().__getattribute__(name)

    def write(self, handle: int, data: memoryview) -> int:
        return os.write(handle, data[: self.most])


def pages(seed: int, count: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, PAGE_BYTES), dtype=np.uint8)


def save(folder: SessionFolder, name: str, seed: int, count: int = 5) -> None:
    folder.save(
        name,
        model="tiny",
        fingerprint=PRINT,
        salt="",
        token_ids=[seed] * (4 * count + 1),
        messages=[{"role": "user", "content": str(seed)}],
        pages_NB=pages(seed, count),
    )


def content(path: Path, name: str) -> int:
    """Which save is there; it must be whole."""
    folder = SessionFolder(path, CAP)
    with folder.open(name) as file:
        seed = file.header.token_ids[0]
        [(_, rows)] = file.pages()
        assert file.problem is None and rows.tobytes() == pages(seed).tobytes()
    return seed


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SessionFolder]:
    made = SessionFolder(tmp_path / "sessions", CAP)
    yield made
    made.close()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("for_good", [False, True])
def test_any_call_of_a_save_may_fail_and_nothing_is_lost(tmp_path: Path, error: int, for_good: bool) -> None:
    """The N-th call fails, N = 1, 2, ... until a save needs fewer."""
    failed = 0
    for fail_at in range(1, 200):
        where = tmp_path / str(fail_at)
        with_sound_disk = SessionFolder(where, CAP)
        save(with_sound_disk, "talk", 1)
        save(with_sound_disk, "other", 9)
        with_sound_disk.close()
        disk = Failing(fail_at, error, for_good)
        folder = SessionFolder(where, CAP, disk)
        try:
            save(folder, "talk", 2)
            told = False
        except SessionError as refusal:
            told = True
            assert os.strerror(error) in str(refusal)
        finally:
            folder.close()
        assert content(where, "talk") in ((1, 2) if told else (2,)), "an answer of `saved` means saved"
        assert content(where, "other") == 9
        failed += told
        if disk.count < fail_at:
            break
        again = SessionFolder(where, CAP)
        save(again, "talk", 3)
        again.close()
        assert content(where, "talk") == 3
        assert sorted(path.name for path in where.iterdir()) == [".lock", "other.session", "talk.session"]
    else:
        raise AssertionError("a save never ends")
    assert failed >= 4


@pytest.mark.parametrize("for_good", [False, True])
def test_any_call_of_a_load_may_fail_and_no_wrong_page_comes(tmp_path: Path, for_good: bool) -> None:
    sound = SessionFolder(tmp_path, CAP)
    save(sound, "talk", 1)
    sound.close()
    for fail_at in range(1, 100):
        disk = Failing(fail_at, for_good=for_good)
        try:
            with SessionFolder(tmp_path, CAP, disk).open("talk") as file:
                got = [rows for _, rows in file.pages()]
                assert got or file.problem is not None
                if got:
                    assert got[0].tobytes() == pages(1)[: len(got[0])].tobytes()
        except (SessionError, OSError):
            pass
        if disk.count < fail_at:
            return
    raise AssertionError("a load never ends")


def test_short_writes_are_gone_on_with(tmp_path: Path) -> None:
    folder = SessionFolder(tmp_path, CAP, Failing(0, most=7))
    save(folder, "talk", 4)
    folder.close()
    assert content(tmp_path, "talk") == 4


def test_a_disk_that_takes_nothing_is_full(tmp_path: Path) -> None:
    folder = SessionFolder(tmp_path, CAP, Failing(0, most=0))
    with pytest.raises(SessionError, match="stays as it was"):
        save(folder, "talk", 4)
    folder.close()


@pytest.mark.parametrize("moment", ["write", "sync", "replace", "sync_folder"])
def test_killed_in_the_middle_of_a_save(tmp_path: Path, moment: str) -> None:
    sound = SessionFolder(tmp_path, CAP)
    save(sound, "talk", 1)
    sound.close()
    script = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_session_disk as t
        class Dying(t.Disk):
            def {moment}(self, *arguments):
                os.kill(os.getpid(), 9)
        t.save(t.SessionFolder(t.Path({str(tmp_path)!r}), t.CAP, Dying()), "talk", 2)
    """
    env = {**os.environ, "PYTHONPATH": str(Path(legato.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=env, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert content(tmp_path, "talk") == (2 if moment == "sync_folder" else 1)
    left = [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    assert len(left) == (moment != "sync_folder")
    after = SessionFolder(tmp_path, CAP)
    save(after, "more", 3)
    after.close()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")], "half-written files are cleared"
    assert content(tmp_path, "talk") in (1, 2) and content(tmp_path, "more") == 3


def test_two_writers_on_one_folder_are_one_too_many(tmp_path: Path) -> None:
    first, second = SessionFolder(tmp_path, CAP), SessionFolder(tmp_path, CAP)
    save(first, "talk", 1)
    for refused in (lambda: save(second, "talk", 2), lambda: second.delete("talk"), lambda: second.expire()):
        with pytest.raises(SessionError, match="another process uses these sessions"):
            refused()
    assert [info.name for info in second.infos()] == ["talk"], "reading needs no lock"
    assert content(tmp_path, "talk") == 1
    first.close()
    save(second, "talk", 2)
    second.close()
    assert content(tmp_path, "talk") == 2


BAD_NAMES = [
    "", ".", "..", ".hidden", "a/b", "../a", "/etc/passwd", "a\\b", "a\0", "a\n", "a b", "ä", "a" * 65, "%2e%2e", "a:b",
    "~", "$HOME", "a*", "-\u202e", None, 7, b"a", ["a"],
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_names_that_are_no_names(tmp_path: Path, name: object) -> None:
    with pytest.raises(RequestError, match="session name"):
        checked_name(name)
    folder = SessionFolder(tmp_path / "x", CAP)
    for use in (folder.delete, folder.info, lambda n: save(folder, n, 1), lambda n: folder.fork("a", n)):
        with pytest.raises(RequestError):
            use(name)  # type: ignore[arg-type]
    folder.close()
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".session"]


def test_names_that_are(folder: SessionFolder) -> None:
    for name in ("a", "talk-1", "v1.2_final", "A" * 64, "0", "-"):
        save(folder, name, 1)
    assert len(folder.infos()) == 6


def test_a_link_in_place_of_a_file_is_not_followed(folder: SessionFolder, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    save(folder, "a", 1)
    (folder.path / "b.session").symlink_to(secret)
    with pytest.raises(SessionError):
        folder.info("b")
    save(folder, "b", 2)
    assert secret.read_text() == "mine" and content(folder.path, "b") == 2


def test_unknown_names_are_told_with_the_nearest(folder: SessionFolder) -> None:
    save(folder, "holiday", 1)
    for use in (folder.delete, folder.info):
        with pytest.raises(UsageError, match="did you mean holiday"):
            use("holidya")
    with pytest.raises(UsageError, match="sessions list"):
        folder.info("zzz")


def test_a_fork_goes_its_own_way_and_needs_a_free_name(folder: SessionFolder) -> None:
    save(folder, "a", 1)
    info = folder.fork("a", "b")
    assert (info.name, info.tokens, info.problem) == ("b", 21, None)
    save(folder, "a", 2)
    assert (content(folder.path, "a"), content(folder.path, "b")) == (2, 1)
    with pytest.raises(UsageError, match="already"):
        folder.fork("a", "b")
    with pytest.raises(UsageError, match="no session"):
        folder.fork("nobody", "c")


def test_the_oldest_go_first_when_the_cap_is_reached(tmp_path: Path) -> None:
    clock = iter([50.0, 40.0, 30.0, 20.0, 10.0])  # a clock that runs backwards changes no order
    probe = SessionFolder(tmp_path / "probe", CAP)
    save(probe, "a", 1)
    size = probe.infos()[0].bytes
    probe.close()
    folder = SessionFolder(tmp_path / "s", 3 * size + 10, clock=lambda: next(clock))
    for i, name in enumerate("abcab"):
        save(folder, name, i)
    assert [info.name for info in folder.infos()] == ["b", "a", "c"]
    folder.cap = 2 * size + 10
    folder._clock = lambda: 0.0
    save(folder, "d", 9)
    assert [info.name for info in folder.infos()] == ["d", "b"]
    with pytest.raises(CapacityError) as refused:
        save(folder, "big", 1, count=50)
    assert str(refused.value.needed) in str(refused.value) and str(folder.cap) in str(refused.value)
    assert [info.name for info in folder.infos()] == ["d", "b"], "a refusal costs nobody anything"
    folder.close()


def test_expiry_by_age_and_by_size(tmp_path: Path) -> None:
    now = 1000.0
    folder = SessionFolder(tmp_path, CAP, clock=lambda: now)
    for name in "abc":
        save(folder, name, 1)
        now += 100
    assert folder.expire(older_than_s=250) == ["a"]
    assert folder.expire(older_than_s=10_000) == []
    assert folder.expire(keep_bytes=folder.infos()[0].bytes) == ["b"]
    assert folder.expire(keep_bytes=0) == ["c"]
    assert folder.infos() == []
    folder.close()


@pytest.mark.parametrize("limits", [{"older_than_s": -5}, {"older_than_s": float("nan")}, {"keep_bytes": -1}])
def test_absurd_limits_delete_nothing(folder: SessionFolder, limits: dict[str, float]) -> None:
    save(folder, "a", 1)
    with pytest.raises(RequestError, match="from 0"):
        folder.expire(**limits)  # type: ignore[arg-type]
    assert folder.names() == ["a"]


def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder: SessionFolder) -> None:
    save(folder, "a", 1)
    os.mkfifo(folder.path / "pipe.session")
    with pytest.raises(SessionError, match="delete it"):
        folder.info("pipe")
    assert {info.name for info in folder.infos()} == {"a", "pipe"}


def test_a_file_of_nonsense_is_listed_as_such_and_can_be_replaced(folder: SessionFolder) -> None:
    save(folder, "good", 1)
    (folder.path / "bad.session").write_bytes(b"nonsense")
    (folder.path / "empty.session").write_bytes(b"")
    (folder.path / "notes.txt").write_text("not ours")
    found = {info.name: info.problem for info in folder.infos()}
    assert found["good"] is None and found["bad"] and found["empty"] and len(found) == 3
    with pytest.raises(SessionError, match="delete it"):
        folder.info("bad")
    save(folder, "bad", 2)
    assert content(folder.path, "bad") == 2


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LegatoError, match="--session-dir"):
        save(SessionFolder(tmp_path / "file" / "x", CAP), "a", 1)
    assert SessionFolder(tmp_path / "nowhere", CAP).infos() == []


@pytest.mark.parametrize("messages", [[{"content": object()}], [{"content": "\ud800"}], [{1j: 2}]])
def test_messages_that_no_file_can_hold(folder: SessionFolder, messages: list[dict[str, object]]) -> None:
    with pytest.raises(RequestError, match="messages"):
        folder.save("a", model="m", fingerprint=PRINT, salt="", token_ids=[1], messages=messages, pages_NB=pages(0, 0))
    assert folder.infos() == []
