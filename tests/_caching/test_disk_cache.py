"""DiskCache: `get` returns what `put` stored, despite killed processes and damaged files."""

from __future__ import annotations

import copy
import gc
import hashlib
import os
import pickle
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator, clone

import skanomaly_vit._caching.disk_cache as cache_module
from skanomaly_vit import DiskCache
from skanomaly_vit.exceptions import CacheWarning

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(folder) -> Iterator[DiskCache]:
    with DiskCache(folder) as cache:
        yield cache


@pytest.fixture
def clock(monkeypatch):
    """The time that the cache sees; set ``now`` to move it."""
    clock = SimpleNamespace(now=1e9)
    fake = SimpleNamespace(time=lambda: clock.now, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(cache_module, "time", fake)
    return clock


@contextmanager
def database(folder: Path) -> Iterator[sqlite3.Connection]:
    """The cache's file, past the cache; every statement stands alone."""
    with closing(sqlite3.connect(folder / "cache.sqlite", isolation_level=None)) as connection:
        yield connection


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts processes of their own; the prelude gives them `value` and `DiskCache`."""
    started = []

    def start(code: str, *args: object, options: tuple[str, ...] = ("-W", "error")):
        process = subprocess.Popen(
            [sys.executable, *options, "-c", PRELUDE + code, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def finish(process: subprocess.Popen) -> str:
    """Its output; nothing may have gone wrong."""
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    return output


def value(key: bytes, size: int = 1000) -> bytes:
    """What belongs to a key, so that any process can say whether an entry is whole."""
    return (hashlib.sha256(key).digest() * (size // 32 + 1))[:size]


PRELUDE = """
import hashlib, os, random, signal, sys, threading, time
from skanomaly_vit import DiskCache
def value(key, size=1000):
    return (hashlib.sha256(key).digest() * (size // 32 + 1))[:size]
"""


def numbered(n: int, size: int = 1000) -> dict[bytes, bytes]:
    return {b"%d" % k: value(b"%d" % k, size) for k in range(n)}


def check_sound(folder: Path) -> dict[bytes, bytes]:
    """All entries, of a cache of `value`s that has to be in order."""
    with DiskCache(folder) as cache:
        size = cache.size  # before all else: if there is no file yet, this makes it
        with database(folder) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            keys = [key for (key,) in connection.execute("SELECT key FROM entries")]
        found = cache.get(keys)
        assert size == sum(map(len, found.values()))
    assert sorted(found) == sorted(keys)
    assert all(content == value(key, len(content)) for key, content in found.items())
    return found


# Values


def test_what_is_put_is_got(cache):
    cache.put({b"a": b"1", b"b": b"", b"\0": bytes(range(256))})
    assert cache.get([b"a", b"b", b"\0"]) == {b"a": b"1", b"b": b"", b"\0": bytes(range(256))}


def test_missing_keys_are_left_out(cache):
    cache.put({b"a": b"1"})
    assert cache.get([b"b", b"a", b"c"]) == {b"a": b"1"}
    assert cache.get([b"b"]) == {}


@pytest.mark.parametrize("n", [500, 501, 2500])
def test_many_keys_at_once(cache, n):
    entries = numbered(n, size=10)
    cache.put(entries)
    assert cache.get([b"x", *entries, b"y"]) == entries


def test_the_same_key_twice_in_one_get(cache):
    cache.put({b"a": b"1"})
    assert cache.get([b"a"] * 1200) == {b"a": b"1"}


def test_nothing_put_and_nothing_got(cache):
    cache.put({})
    assert cache.get([]) == {}
    assert cache.size == 0


def test_the_first_value_stays(cache, folder):
    cache.put({b"a": b"first"})
    with DiskCache(folder) as other:
        other.put({b"a": b"the second", b"b": b"2"})
    assert cache.get([b"a", b"b"]) == {b"a": b"first", b"b": b"2"}
    assert cache.size == 6


def test_a_later_process_finds_what_was_put(folder, start):
    finish(start("DiskCache(sys.argv[1]).put({b'a': b'1'})", folder))
    with DiskCache(folder) as cache:
        assert cache.get([b"a"]) == {b"a": b"1"}


@given(entries=st.dictionaries(st.binary(), st.binary(), max_size=20), other=st.binary())
@settings(max_examples=25, deadline=None)
def test_any_bytes(entries, other):
    with tempfile.TemporaryDirectory() as folder, DiskCache(folder) as cache:
        cache.put(entries)
        assert cache.get(list(entries)) == entries
        assert cache.size == sum(map(len, entries.values()))
        assert cache.get([other]).keys() == {other} & entries.keys()


# Many at once


def test_processes_write_and_read_at_once(folder, start):
    code = """
cache, me = DiskCache(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for k in range(60):
    own, shared = b"%d %d" % (me, k), b"all %d" % k
    cache.put({own: value(own), shared: value(shared)})
    assert cache.get([own, shared]) == {own: value(own), shared: value(shared)}
"""
    processes = [start(code, folder, k) for k in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        finish(process)
    own = {b"%d %d" % (me, k) for me in range(4) for k in range(60)}
    assert check_sound(folder).keys() == own | {b"all %d" % k for k in range(60)}


def test_joblib_workers_share_a_cache(cache, folder):
    Parallel(n_jobs=2)(delayed(cache.put)({b"%d" % k: value(b"%d" % k)}) for k in range(20))
    assert cache.get(list(numbered(20))) == numbered(20)
    found = Parallel(n_jobs=2)(delayed(cache.get)([b"%d" % k]) for k in range(20))
    assert found == [{key: content} for key, content in numbered(20).items()]


@pytest.mark.parametrize("instances", [1, 4])
def test_threads_share_a_cache(folder, instances):
    caches = [DiskCache(folder) for _ in range(instances)]

    def use(k: int) -> None:
        cache, key = caches[k % instances], b"%d" % (k % 100)
        cache.put({key: value(key)})
        assert cache.get([key]) == {key: value(key)}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(200)))
    for cache in caches:
        cache.close()
    assert check_sound(folder) == numbered(100)


def release_later(connection: sqlite3.Connection, seconds: float) -> threading.Thread:
    timer = threading.Timer(seconds, lambda: connection.execute("ROLLBACK"))
    timer.start()
    return timer


def test_another_writer_is_waited_for(cache, folder):
    cache.put({b"a": b"1"})
    path = folder / "cache.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with closing(other):
        other.execute("BEGIN IMMEDIATE")
        timer = release_later(other, 0.3)
        cache.put({b"b": b"2"})
        timer.join()
    assert cache.get([b"a", b"b"]) == {b"a": b"1", b"b": b"2"}


def test_another_process_that_makes_the_file_is_waited_for(cache, folder):
    # It has not come to the write-ahead log yet; for that, SQLite itself does not wait.
    folder.mkdir()
    path = folder / "cache.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with closing(other):
        other.execute("CREATE TABLE something (a)")
        other.execute("BEGIN IMMEDIATE")
        timer = release_later(other, 0.3)
        cache.put({b"a": b"1"})
        timer.join()
    assert cache.get([b"a"]) == {b"a": b"1"}


@pytest.mark.parametrize("is_made", [True, False])
def test_patience_with_another_writer_ends(folder, monkeypatch, is_made):
    monkeypatch.setattr(cache_module, "_PATIENCE", 0.2)
    if is_made:
        DiskCache(folder).put({b"a": b"1"})
    folder.mkdir(exist_ok=True)
    with database(folder) as other, DiskCache(folder) as cache:
        other.execute("CREATE TABLE something (a)")
        other.execute("BEGIN IMMEDIATE")
        with pytest.warns(CacheWarning, match="not used any more .*database is locked"):
            cache.put({b"b": b"2"})
        assert not cache.works


# Forks. Run apart: this process has threads, which Python 3.12 warns of when it forks.


@needs_fork
def test_a_child_and_its_parent_go_on_with_the_cache(folder, start):
    code = """
cache = DiskCache(sys.argv[1])
cache.put({b"before": value(b"before")})
to_parent, to_child = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    cache.put({b"child": value(b"child")})
    os.write(to_parent[1], b".")
    os.read(to_child[0], 1)
    cache.put({b"child, later": value(b"child, later")})
    os._exit(not cache.works)
os.read(to_parent[0], 1)
cache.close()  # were the child's locks not its own, this would delete the log that it writes to
other = DiskCache(sys.argv[1])
other.put({b"parent": value(b"parent")})
os.write(to_child[1], b".")
assert os.waitpid(child, 0)[1] == 0
"""
    finish(start(code, folder))
    assert check_sound(folder).keys() == {b"before", b"child", b"child, later", b"parent"}


@needs_fork
def test_a_fork_while_another_thread_uses_the_cache(folder, start):
    code = """
cache = DiskCache(sys.argv[1])
done = threading.Event()
def work():
    k = 0
    while not done.is_set():
        cache.put({b"thread %d" % k: value(b"thread %d" % k)})
        k += 1
thread = threading.Thread(target=work)
thread.start()
for k in range(10):
    time.sleep(0.003)
    child = os.fork()
    if child == 0:
        signal.alarm(250)  # a lock held by a thread that is not there is waited for forever
        key = b"child %d" % k
        cache.put({key: value(key)})
        os._exit(cache.get([key]) != {key: value(key)})
    assert os.waitpid(child, 0)[1] == 0
done.set()
thread.join()
"""
    finish(start(code, folder, options=("-W", "ignore", "-W", "error::UserWarning")))
    assert check_sound(folder).keys() >= {b"child %d" % k for k in range(10)}


@needs_fork
def test_caches_that_are_gone_do_not_matter_to_a_fork(folder, start):
    code = """
for _ in range(3):
    cache = DiskCache(sys.argv[1])
    cache.put({b"a": value(b"a")})
del cache
for _ in range(2):
    child = os.fork()
    if child == 0:
        os._exit(DiskCache(sys.argv[1]).get([b"a"]) != {b"a": value(b"a")})
    assert os.waitpid(child, 0)[1] == 0
assert DiskCache(sys.argv[1]).get([b"a"]) == {b"a": value(b"a")}
"""
    finish(start(code, folder))


# Kills


def kill_after(seconds: float, process: subprocess.Popen) -> None:
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    process.kill()
    process.wait()


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_writer_leaves_whole_puts(folder, seed, start):
    code = """
cache, seed = DiskCache(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
for k in range(10**6):
    keys = [b"%d %d" % (k, part) for part in range(100)]
    cache.put({key: value(key, 20_000) for key in keys})
"""
    kill_after(random.Random(seed).uniform(0, 0.15), start(code, folder, seed))
    found = check_sound(folder)
    puts = {key.split()[0] for key in found}
    assert found.keys() == {b"%s %d" % (put, part) for put in puts for part in range(100)}
    with DiskCache(folder) as cache:
        cache.put({b"new": value(b"new")})
    assert check_sound(folder).keys() == found.keys() | {b"new"}


@pytest.mark.parametrize("seed", range(6))
def test_a_writer_killed_while_it_makes_room_leaves_a_valid_cache(folder, seed, start):
    code = """
cache, rng = DiskCache(sys.argv[1], max_bytes=10**6), random.Random(int(sys.argv[2]))
print("ready", flush=True)
while True:
    keys = [b"%d" % rng.randrange(1000) for _ in range(20)]
    cache.put({key: value(key, rng.randrange(50_000)) for key in keys})
"""
    kill_after(random.Random(seed).uniform(0, 0.15), start(code, folder, seed))
    assert sum(map(len, check_sound(folder).values())) <= 10**6


@pytest.mark.parametrize("seed", range(4))
def test_a_process_killed_while_it_makes_the_file_leaves_a_valid_cache(folder, seed, start):
    code = "print('ready', flush=True)\nDiskCache(sys.argv[1]).put({b'a': value(b'a')})"
    kill_after(random.Random(seed).uniform(0, 0.008), start(code, folder))
    with DiskCache(folder) as cache:
        cache.put({b"a": value(b"a")})
    assert check_sound(folder) == {b"a": value(b"a")}


# Damaged entries


def check_dropped(folder: Path, damaged: set[bytes], entries: dict[bytes, bytes]) -> None:
    """The damaged entries are not returned, once with a warning, and can be put again."""
    whole = {key: content for key, content in entries.items() if key not in damaged}
    with DiskCache(folder) as cache:
        with pytest.warns(CacheWarning, match=f"{len(damaged)} damaged .* computed again") as seen:
            assert cache.get(list(entries)) == whole
        assert len(seen) == 1
        assert str(folder) in str(seen[0].message)
        assert cache.get(list(entries)) == whole
        assert cache.size == sum(map(len, whole.values()))
        cache.put(entries)
        assert cache.get(list(entries)) == entries
        assert cache.works


def test_a_flipped_byte_is_found(cache, folder):
    cache.put(numbered(5))
    with database(folder) as connection:
        query = "SELECT value FROM entries WHERE key = ?"
        content = bytearray(connection.execute(query, [b"3"]).fetchone()[0])
        content[7] ^= 1
        connection.execute("UPDATE entries SET value = ? WHERE key = ?", [content, b"3"])
    check_dropped(folder, {b"3"}, numbered(5))


def test_a_wrong_checksum_is_found(cache, folder):
    cache.put(numbered(5))
    with database(folder) as connection:
        connection.execute("UPDATE entries SET checksum = checksum + 1 WHERE key = ?", [b"3"])
    check_dropped(folder, {b"3"}, numbered(5))


def test_values_under_each_others_key_are_found(cache, folder):
    cache.put(numbered(5))
    with database(folder) as connection:
        connection.execute("UPDATE entries SET key = x'00' WHERE key = ?", [b"1"])
        connection.execute("UPDATE entries SET key = ? WHERE key = ?", [b"1", b"2"])
        connection.execute("UPDATE entries SET key = ? WHERE key = x'00'", [b"2"])
    check_dropped(folder, {b"1", b"2"}, numbered(5))


@pytest.mark.parametrize("wrong", ["text", 7, 0.5, b""])
def test_a_value_that_has_become_something_else_is_found(cache, folder, wrong):
    cache.put(numbered(2))
    with database(folder) as connection:
        connection.execute("UPDATE entries SET value = ? WHERE key = ?", [wrong, b"1"])
    check_dropped(folder, {b"1"}, numbered(2))


def test_a_page_damaged_on_disk_is_found(folder):
    entries = numbered(4, size=200_000)
    with DiskCache(folder) as cache:
        cache.put(entries)
    file = folder / "cache.sqlite"
    content = bytearray(file.read_bytes())
    first = content.index(entries[b"2"][:5000])
    content[first + 100 : first + 4000] = bytes(3900)
    file.write_bytes(content)
    check_dropped(folder, {b"2"}, entries)


# Damaged files


def overwrite_with_garbage(file: Path) -> None:
    file.write_bytes(random.Random(0).randbytes(file.stat().st_size))


def overwrite_behind_the_header(file: Path) -> None:
    garbage = random.Random(0).randbytes(file.stat().st_size)
    file.write_bytes(file.read_bytes()[:100] + garbage[100:])


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def put_another_programs_database(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE entries (name TEXT, price REAL)")


DAMAGES = [
    overwrite_with_garbage,
    overwrite_behind_the_header,
    truncate,
    make_folder,
    put_another_programs_database,
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("first", ["get", "put", "size"])
def test_a_damaged_file_turns_the_cache_off(folder, damage, first):
    entries = numbered(30, size=50_000)
    with DiskCache(folder) as cache:
        cache.put(entries)
    damage(folder / "cache.sqlite")
    calls = {
        "get": lambda: cache.get(list(entries)),
        "put": lambda: cache.put({b"new %d" % k: value(b"new", 50_000) for k in range(30)}),
        "size": lambda: cache.size,
    }
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", CacheWarning)
        for call in (calls[first], calls["get"], calls["put"]):
            call()
    assert len(seen) == 1
    assert re.search(r"not used any more \(.*Error: ", str(seen[0].message))
    assert not cache.works
    assert cache.get(list(entries)) == {}
    assert cache.size == 0
    cache.put(entries)
    cache.close()


@pytest.mark.parametrize("damage", [overwrite_with_garbage, overwrite_behind_the_header, truncate])
def test_a_file_damaged_while_it_is_open_gives_only_whole_entries(folder, damage):
    entries = numbered(30, size=50_000)
    with DiskCache(folder) as cache:
        cache.put(entries)
    with DiskCache(folder) as cache, warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        assert cache.get([b"0"]) == {b"0": entries[b"0"]}
        damage(folder / "cache.sqlite")
        assert cache.get(list(entries)).items() <= entries.items()
        cache.put({b"new": value(b"new")})
        assert cache.get([b"new"]).items() <= {(b"new", value(b"new"))}


def test_an_empty_file_is_a_new_cache(folder):
    folder.mkdir()
    (folder / "cache.sqlite").touch()
    with DiskCache(folder) as cache:
        cache.put({b"a": b"1"})
        assert cache.get([b"a"]) == {b"a": b"1"}


def test_a_deleted_file_is_made_anew_though_its_log_is_left(folder):
    with DiskCache(folder) as cache:
        cache.put({b"a": value(b"a")})
        log = (folder / "cache.sqlite-wal").read_bytes()
    (folder / "cache.sqlite").unlink()
    (folder / "cache.sqlite-wal").write_bytes(log)
    with DiskCache(folder) as cache:
        cache.put({b"b": value(b"b")})
        assert cache.get([b"a", b"b"]) == {b"b": value(b"b")}


def test_no_damage_raises_or_gives_wrong_values(folder):
    sizes = [0, 10, 300, 3000, 40_000]
    entries = {b"%032d" % k: value(b"%d" % k, sizes[k % 5]) for k in range(60)}
    with DiskCache(folder) as cache:
        cache.put(entries)
    file = folder / "cache.sqlite"
    sound, rng = file.read_bytes(), random.Random(0)
    starts = range(0, len(sound), 16384)
    for _ in range(100):
        content = bytearray(sound)
        for _ in range(rng.choice([1, 5, 50])):
            near_head = rng.choice(starts) + int(rng.expovariate(1 / 100))
            anywhere = rng.randrange(len(content))
            content[min(rng.choice([near_head, anywhere]), len(content) - 1)] = rng.randrange(256)
        file.write_bytes(content)
        with DiskCache(folder, max_bytes=10**6) as cache, warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheWarning)
            assert cache.get(list(entries)).items() <= entries.items()
            assert isinstance(cache.size, int)
            cache.put({b"new": value(b"new", 990_000)})
            assert cache.get([b"new"]).items() <= {(b"new", value(b"new", 990_000))}


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM total", "UPDATE total SET bytes = 'many'", "UPDATE total SET bytes=x''"],
)
def test_a_damaged_total_does_not_raise(cache, folder, statement):
    cache.put(numbered(3))
    with database(folder) as connection:
        connection.execute(statement)
    with DiskCache(folder) as cache, warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        assert cache.size == 0
        cache.put({b"new": b"1"})
        assert cache.get(list(numbered(3))).items() <= numbered(3).items()


@pytest.mark.parametrize("wrong", ["text", b"bytes"])
def test_a_time_that_has_become_something_else_turns_the_cache_off(cache, folder, wrong):
    cache.put({b"a": b"1"})
    with database(folder) as connection:
        connection.execute("UPDATE entries SET used = ?", [wrong])
    with pytest.warns(CacheWarning, match="not used any more"):
        cache.get([b"a"])
    assert not cache.works


@pytest.mark.parametrize(
    ("column", "message"), [("value", "1 damaged"), ("used", "not used any more")]
)
def test_a_warning_names_the_line_that_used_the_cache(cache, folder, column, message):
    cache.put({b"a": b"1"})
    with database(folder) as connection:
        connection.execute(f"UPDATE entries SET {column} = 'text'")
    with pytest.warns(CacheWarning, match=message) as seen:
        exec(compile("cache.get([b'a'])", "a user's file", "exec"), {"cache": cache})
    assert seen[0].filename == "a user's file"


def test_damage_that_no_message_can_tell_turns_the_cache_off(folder):
    with DiskCache(folder) as cache:
        cache.put({b"a": b"1"})
    file = folder / "cache.sqlite"
    # No UTF-8, so that Python cannot read SQLite's message.
    file.write_bytes(file.read_bytes().replace(b"BEGIN UPDATE", b"BEGIN UPD\xb0TE"))
    with DiskCache(folder) as cache:
        with pytest.warns(CacheWarning, match="not used any more"):
            assert cache.get([b"a"]) == {}
        assert not cache.works


# Folders and disks that cannot be written


def check_off(cache: DiskCache, reason: str) -> None:
    with pytest.warns(CacheWarning, match=f"not used any more .*{reason}") as seen:
        cache.put({b"a": b"1"})
    assert len(seen) == 1
    assert not cache.works
    assert cache.get([b"a"]) == {}
    assert cache.size == 0


def test_a_folder_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    check_off(DiskCache(tmp_path / "file" / "folder"), "NotADirectoryError")


NOT_ROOT = """
if os.geteuid() == 0:
    os.setuid(65534)
import warnings
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as seen:
    cache = DiskCache(sys.argv[1])
    cache.put({b"a": b"1"})
    assert cache.get([b"a"]) == {}
    assert not cache.works
[warning] = seen
print(warning.category.__name__, warning.message)
"""


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="no POSIX permissions on this system")
@pytest.mark.parametrize("mode", [0o000, 0o555])
def test_a_folder_without_permission(mode, start):
    # Not tmp_path: other users, such as root becomes here, may not look into that.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        locked = Path(folder) / "locked"
        locked.mkdir(mode)
        output = finish(start(NOT_ROOT, locked / "cache"))
        locked.chmod(0o700)
    assert output.startswith("CacheWarning The cache at")
    assert "not used any more (PermissionError" in output


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="no POSIX permissions on this system")
def test_a_file_that_may_only_be_read(start):
    with tempfile.TemporaryDirectory() as folder:
        with DiskCache(folder) as cache:
            cache.put({b"b": b"2"})
        (Path(folder) / "cache.sqlite").chmod(0o444)
        os.chmod(folder, 0o555)
        output = finish(start(NOT_ROOT, folder))
        os.chmod(folder, 0o700)
        assert "not used any more (OperationalError" in output
        with DiskCache(folder) as cache:
            assert cache.get([b"b"]) == {b"b": b"2"}


def test_a_full_database(folder, monkeypatch):
    schema = cache_module._SCHEMA + "PRAGMA max_page_count = 20;"
    monkeypatch.setattr(cache_module, "_SCHEMA", schema)
    cache = DiskCache(folder)
    cache.put({b"small": value(b"small")})
    with pytest.warns(CacheWarning, match="not used any more .*database or disk is full") as seen:
        cache.put(numbered(20, size=50_000))
    assert len(seen) == 1
    assert not cache.works
    assert check_sound(folder) == {b"small": value(b"small")}


def test_files_that_may_not_grow(folder, start):
    pytest.importorskip("resource")
    code = """
import resource, warnings
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cache, limit = DiskCache(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as seen:
    for k in range(20):
        cache.put({b"%d" % k: value(b"%d" % k, 50_000)})
        cache.get([b"%d" % k])
    cache.close()
assert not cache.works
[warning] = seen
print(warning.category.__name__, warning.message)
"""
    for limit in (0, 10_000, 100_000, 10**6):
        output = finish(start(code, folder / str(limit), limit))
        assert output.startswith("CacheWarning")
        assert "not used any more (" in output
        with DiskCache(folder / str(limit)) as cache:
            cache.put({b"new": value(b"new")})
        found = check_sound(folder / str(limit))
        assert found.items() <= {**numbered(20, 50_000), b"new": value(b"new")}.items()
    assert len(found) > 2


# Bounds


def test_the_least_recently_used_goes_first(folder, clock):
    with DiskCache(folder, max_bytes=1000) as cache:
        for key in (b"c", b"a", b"b"):
            cache.put({key: bytes(300)})
            clock.now += 100
        cache.get([b"c"])
        clock.now += 100
        cache.put({b"d": bytes(300)})
        assert cache.get([b"a", b"b", b"c", b"d"]).keys() == {b"b", b"c", b"d"}
        clock.now += 100
        cache.put({b"e": bytes(600)})
        assert b"e" in cache.get([b"e"])
        assert cache.size <= 1000


def test_a_use_is_noted_at_most_once_a_minute(cache, folder, clock):
    cache.put({b"a": b"1"})
    with database(folder) as connection:

        def changes() -> int:
            return connection.execute("PRAGMA data_version").fetchone()[0]

        before = changes()
        clock.now += 50
        cache.get([b"a"])
        assert changes() == before
        clock.now += 50
        cache.get([b"a"])
        noted = changes()
        assert noted != before
        cache.get([b"a"])
        assert changes() == noted


def test_uses_by_other_processes_count(folder, clock):
    with DiskCache(folder, max_bytes=1000) as cache, DiskCache(folder, max_bytes=1000) as other:
        cache.put({b"a": bytes(400)})
        clock.now += 100
        cache.put({b"b": bytes(400)})
        clock.now += 100
        other.get([b"a"])
        clock.now += 100
        cache.put({b"c": bytes(400)})
        assert cache.get([b"a", b"b", b"c"]).keys() == {b"a", b"c"}


@pytest.mark.parametrize("seed", range(3))
def test_size_is_never_above_the_bound(folder, clock, seed):
    rng = random.Random(seed)
    keys = [b"%d" % k for k in range(100)]
    with DiskCache(folder, max_bytes=5000) as cache:
        for _ in range(100):
            clock.now += rng.choice([0, 1, 100])
            chosen = rng.sample(keys, rng.randrange(1, 8))
            cache.put({key: value(key, rng.randrange(1500)) for key in chosen})
            assert cache.size <= 5000
            cache.get(rng.sample(keys, 10))
        assert cache.size == sum(map(len, cache.get(keys).values())) > 2500


def test_some_room_is_made_at_once(folder, clock):
    with DiskCache(folder, max_bytes=1000) as cache:
        for k in range(101):
            clock.now += 1
            cache.put({b"%d" % k: bytes(10)})
        assert cache.size == 900


@pytest.mark.parametrize("size", [1001, 10_000])
def test_an_entry_larger_than_the_cache_is_left_out(folder, size):
    with DiskCache(folder, max_bytes=1000) as cache:
        cache.put({b"a": bytes(400)})
        cache.put({b"b": bytes(size), b"c": bytes(500)})
        cache.put({b"b": bytes(size)})
        assert cache.get([b"a", b"b", b"c"]).keys() == {b"a", b"c"}
        assert cache.works


@pytest.mark.parametrize("size", [900, 950, 1000])
def test_an_entry_nearly_as_large_as_the_cache_is_kept(folder, clock, size):
    with DiskCache(folder, max_bytes=1000) as cache:
        cache.put({b"a": bytes(200)})
        clock.now += 1
        cache.put({b"b": bytes(size)})
        assert cache.get([b"a", b"b"]).keys() == {b"b"}


def test_of_more_than_fits_a_part_is_kept(folder):
    with DiskCache(folder, max_bytes=1000) as cache:
        cache.put({b"%d" % k: bytes(90) for k in range(50)})
        assert cache.size == 990


def test_an_entry_too_large_for_sqlite_is_left_out(cache, monkeypatch):
    monkeypatch.setattr(cache_module, "_LARGEST", 100)
    cache.put({b"a": bytes(101), b"b": bytes(100)})
    assert cache.get([b"a", b"b"]) == {b"b": bytes(100)}
    assert cache_module._LARGEST < 10**9


def bytes_on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_files_do_not_grow_as_entries_are_replaced(folder):
    with DiskCache(folder, max_bytes=2 * 10**6) as cache:
        for k in range(600):  # 60 MB
            cache.put({b"%d" % k: bytes(100_000)})
            if k % 50 == 0:
                assert bytes_on_disk(folder) < 25 * 10**6  # the log is written back at 16 MB
        assert cache.size > 10**6
    assert bytes_on_disk(folder) < 3 * 10**6


def test_a_log_that_grew_is_cut(folder, monkeypatch):
    monkeypatch.setattr(cache_module, "_LARGEST_LOG", 10**6)
    log = folder / "cache.sqlite-wal"
    with DiskCache(folder) as cache:
        cache.put(numbered(40, size=10**6))
        assert log.stat().st_size > 40 * 10**6
        cache.put({b"a": b"1"})
        cache.put({b"b": b"1"})
        assert log.stat().st_size <= 10**6


# An object among a user's others


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file' is a file; a cache needs a folder"):
        DiskCache(tmp_path / "file")


@pytest.mark.parametrize("max_bytes", [0, -1])
def test_max_bytes_has_to_be_positive(tmp_path, max_bytes):
    with pytest.raises(ValueError, match=f"max_bytes={max_bytes} must be at least 1"):
        DiskCache(tmp_path, max_bytes=max_bytes)


def test_nothing_is_made_before_it_is_used(folder):
    DiskCache(folder)
    assert not folder.exists()


def test_a_folder_is_made_with_those_above_it(tmp_path):
    with DiskCache(str(tmp_path / "a" / "b")) as cache:
        cache.put({b"a": b"1"})
    assert (tmp_path / "a" / "b").is_dir()


class Estimator(BaseEstimator):
    def __init__(self, memory=None):
        self.memory = memory


def test_clones_share_it(cache):
    assert clone(Estimator(cache)).memory is cache
    assert copy.deepcopy([cache])[0] is cache


def test_a_pickle_is_a_cache_in_the_same_place(folder):
    with DiskCache(folder, max_bytes=5000) as cache:
        cache.put({b"a": b"1"})
        with pickle.loads(pickle.dumps(cache)) as again:
            assert (again.location, again.max_bytes) == (folder, 5000)
            assert again.get([b"a"]) == {b"a": b"1"}


def test_its_text_says_where_it_is(folder):
    assert repr(DiskCache(folder, max_bytes=5)) == f"DiskCache({str(folder)!r}, max_bytes=5)"


def test_a_closed_cache_opens_again(cache, folder):
    cache.close()
    for k in range(3):
        cache.put({b"%d" % k: b"1"})
        cache.close()
        cache.close()
        assert not (folder / "cache.sqlite-wal").exists()
    assert len(cache.get([b"0", b"1", b"2"])) == 3
    assert cache.works


# The last connection that is closed in order deletes the log.


def test_a_cache_that_is_gone_has_let_go_of_its_file(folder):
    cache = DiskCache(folder)
    cache.put({b"a": b"1"})
    assert (folder / "cache.sqlite-wal").exists()
    del cache
    gc.collect()
    assert not (folder / "cache.sqlite-wal").exists()


@pytest.mark.parametrize(
    "code",
    [
        "cache = DiskCache(sys.argv[1]); cache.put({b'a': b'1'})",
        "DiskCache(sys.argv[1]).put({b'a': b'1'})",
        "cache = DiskCache(sys.argv[1]); cache.put({b'a': b'1'}); cache.me = cache; del cache",
        "cache = DiskCache(sys.argv[1]); cache.put({b'a': b'1'}); cache.close(); cache.get([b'a'])",
    ],
)
def test_an_exit_closes_the_file_in_silence(folder, code, start):
    finish(start(code, folder, options=("-W", "error", "-X", "dev")))
    assert not (folder / "cache.sqlite-wal").exists()
    assert check_sound_keys(folder) == [b"a"]


def check_sound_keys(folder: Path) -> list[bytes]:
    with database(folder) as connection:
        return [key for (key,) in connection.execute("SELECT key FROM entries")]


def test_a_cache_that_is_off_has_let_go_of_its_file(folder, monkeypatch):
    cache = DiskCache(folder)
    cache.put({b"a": b"1"})
    with database(folder) as connection:
        connection.execute("ALTER TABLE entries RENAME TO others")
    with pytest.warns(CacheWarning, match="no such table: entries"):
        cache.get([b"a"])
    assert not (folder / "cache.sqlite-wal").exists()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with DiskCache("~/cache") as cache:
        assert cache.location == tmp_path / "cache"
