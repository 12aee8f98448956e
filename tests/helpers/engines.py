"""For tests of engines: the code of their page, and their worker processes, to be killed by pid."""

from __future__ import annotations

import os
import re
import signal
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from images import blobs
from PIL import Image

import skanomaly_vit

PAGE = Path(skanomaly_vit.__file__).parents[1] / "docs/how_to/distributed.md"
BACKBONE = {"backbone": "test_vit", "pretrained": False, "image_size": 32}

#: What engines and their libraries warn of, in this process: none of ours.
NOT_OURS = [
    pytest.mark.filterwarnings(f"ignore::{category}")
    for category in (
        "DeprecationWarning", "FutureWarning", "ResourceWarning",
        "pytest.PytestUnraisableExceptionWarning", "pytest.PytestUnhandledThreadExceptionWarning",
    )
]  # fmt: skip


def save_images(folder: Path, n_images: int) -> list[str]:
    paths = [str(folder / f"{i}.png") for i in range(n_images)]
    for path, image in zip(paths, blobs(np.random.default_rng(0), n_images), strict=True):
        Image.fromarray(image).save(path)
    return paths


def code_with(text: str) -> str:
    """The block of Python on the page of engines that holds the text."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    (code,) = (block for block in blocks if text in block)
    return code


def processes_below(command: str) -> dict[int, int]:
    """Parent by pid, of processes that this one has started and that have this in their command."""
    parents, commands = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            commands[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended in the meantime
            continue
        if stat[0] != "Z":
            parents[int(entry.name)] = int(stat[1])
    children = defaultdict(list)
    for pid, parent in parents.items():
        children[parent].append(pid)
    below, waiting = [], [os.getpid()]
    while waiting:
        found = children[waiting.pop()]
        below += found
        waiting += found
    return {pid: parents[pid] for pid in below if command in commands[pid]}


def kill(*pids: int) -> None:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def call_at(monkeypatch, owner, name, n, then):
    """Have something done when a method is called the n-th time."""
    method, calls = getattr(owner, name), []

    def counting(*args, **options):
        calls.append(name)
        if len(calls) == n:
            then()
        return method(*args, **options)

    monkeypatch.setattr(owner, name, counting)
