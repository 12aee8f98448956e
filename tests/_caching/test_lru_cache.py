"""`LRUCache`: the objects that it keeps, and those that it drops."""

from __future__ import annotations

from skanomaly_vit._caching.memory import LRUCache


def test_what_was_used_least_recently_goes_first():
    recent: LRUCache[str] = LRUCache(10)
    recent.put(b"a", "a", 4)
    recent.put(b"b", "b", 4)
    assert recent.get(b"a") == "a"
    recent.put(b"c", "c", 4)
    assert [recent.get(key) for key in (b"a", b"b", b"c")] == ["a", None, "c"]


def test_what_is_larger_than_all_of_it_drives_nothing_out():
    recent: LRUCache[str] = LRUCache(10)
    recent.put(b"a", "a", 4)
    recent.put(b"b", "b", 11)
    assert recent.get(b"a") == "a"
    assert recent.get(b"b") is None


def test_an_entry_is_counted_once():
    recent: LRUCache[str] = LRUCache(10)
    for _ in range(3):
        recent.put(b"a", "a", 4)
    recent.put(b"b", "b", 6)
    assert recent.get(b"a") == "a"
