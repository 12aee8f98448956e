"""The commands `serve` and `watch`: options, refusals, and what they hand on."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import socket

import numpy as np
import pytest
from images import blobs
from PIL import Image

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.cli._service import server
from skanomaly_vit.cli._service.service import Limits


@pytest.fixture
def inbox(plant, tmp_path):
    """Three good parts, two bad ones, and a file that is no image."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    chosen = sorted(plant.new.iterdir())[:3] + sorted((plant.defect / "noise").iterdir())[:2]
    for index, path in enumerate(chosen):
        (folder / f"{index}.png").write_bytes(path.read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def table(tmp_path):
    return tmp_path / "scores.csv"


@pytest.fixture
def watch(command, plant, inbox, table):
    def run(*args, model=None, output=None):
        where = [model or plant.model, inbox, "-o", output or table]
        return command("watch", *where, "--once", "--settle", 0, *args)

    return run


@pytest.fixture
def flattened(tmp_path):
    """A model of rows of a table."""
    X = blobs(np.random.default_rng(0), 12)
    path = tmp_path / "rows.skanomaly"
    TransformalyDetector(
        backbone="skanomaly_tiny", pretrained=False, image_shape=(32, 32, 3), image_size=32,
        n_blocks=2, random_state=0,
    ).fit(X.reshape(12, -1)).save(path)  # fmt: skip
    return path


def rows(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# watch


def test_rows_are_those_of_score(watch, command, plant, inbox, table, tmp_path):
    done = watch("--flagged", tmp_path / "suspects")
    assert done.exit_code == 2
    assert "broken.png" in done.stderr
    found = {row["path"]: row for row in rows(table)}
    scored = tmp_path / "scored.csv"
    command("score", plant.model, inbox, "-o", scored)
    expected = rows(scored)
    assert len(found) == len(expected) + 1
    for row in expected:
        name = row["path"].rpartition("/")[2]
        for column in ("score", "decision", "p_value"):
            assert float(found[name][column]) == pytest.approx(float(row[column]), rel=1e-4)
        assert found[name]["flag"] == row["flag"]
    flagged = {name for name, row in found.items() if row["flag"] == "True"}
    assert {path.name for path in (tmp_path / "suspects").iterdir()} == flagged
    assert flagged >= {"3.png", "4.png"}


def test_a_second_run_adds_nothing(watch, table):
    watch()
    before = table.read_bytes()
    done = watch()
    assert (done.exit_code, table.read_bytes()) == (0, before)
    assert "0 images scored" in done.stderr


def test_the_table_of_a_watch_is_a_batch_of_drift(watch, command, plant, inbox, table):
    watch()
    done = command("drift", plant.model, table)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[-2] == "5"  # images; the unreadable one has no score


def test_links_can_replace_copies(watch, inbox, tmp_path):
    watch("--flagged", tmp_path / "suspects", "--link")
    assert (tmp_path / "suspects/3.png").readlink() == inbox / "3.png"


def test_wrong_uses_of_watch_are_refused(watch, inbox, table, tmp_path, plant, monkeypatch):
    def refused(said, *args, **options):
        done = watch(*args, **options)
        assert (done.exit_code, said in done.stderr) == (1, True), done.stderr

    refused("inside of", "--flagged", inbox / "suspects")
    refused("--flagged FOLDER", "--link")
    refused("ends like an image", output=tmp_path / "scores.png")
    refused("does not end in .csv", output=tmp_path / "scores.txt")
    table.write_text("path,score\n1.png,2\n")
    refused("is none of a table of `skanomaly watch`")
    assert table.read_text() == "path,score\n1.png,2\n"
    table.unlink()
    watch()
    strict = tmp_path / "strict.skanomaly"
    plant.detector.set_threshold(target_fpr=0.1)
    plant.detector.save(strict)
    plant.detector.set_threshold(target_fpr=0.2)
    refused("of another model", model=strict)
    with open(table, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        refused("another command is writing")
    monkeypatch.setattr("skanomaly_vit.cli._options.find_spec", lambda name: None)
    refused("pip install 'skanomaly-vit[serve]'")


def test_watch_rejects_a_model_of_rows(watch, flattened):
    done = watch(model=flattened)
    assert done.exit_code == 1
    assert "image_shape" in done.stderr


def test_images_of_many_pixels_get_a_row_with_the_cause(watch, table):
    watch("--max-pixels", 1000)
    causes = {row["path"]: row["cause"] for row in rows(table)}
    assert "1024 pixels, more than the 1000 that are taken here" in causes["0.png"]


# serve


@pytest.fixture
def served(monkeypatch):
    """Services that the command would run."""
    found = []

    def serve(service, listener):
        found.append(service)

    monkeypatch.setattr(server, "serve", serve)
    return found


def test_serve_hands_its_options_on(command, plant, served, inbox):
    done = command(
        "serve", plant.model, "--port", 0, "--queue", 9, "--batch-wait", 20, "--max-body", 0.5,
        "--max-pixels", 1000, "--batch-size", 3, "--jobs", 2,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "http://127.0.0.1:" in done.stderr
    (service,) = served
    assert service.limits == Limits(
        max_body=2**19, max_pixels=1000, places=9, batch_size=3, max_wait=0.02
    )
    assert service.model_digest == hashlib.sha256(plant.model.read_bytes()).hexdigest()
    assert service._decoders._max_workers == 2
    image = np.asarray(Image.open(inbox / "3.png"))
    (verdict,) = service.scorer.score([image])
    assert verdict.score == pytest.approx(plant.detector.score_samples([image])[0], rel=1e-4)


def test_serve_has_limits_without_options(command, plant, served):
    command("serve", plant.model, "--port", 0)
    assert served[0].limits == Limits()


def test_wrong_uses_of_serve_are_refused(command, plant, flattened, tmp_path, monkeypatch):
    def refused(said, *args):
        done = command("serve", *args)
        assert (done.exit_code, said in done.stderr) == (1, True), done.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(f"cannot listen on 127.0.0.1, port {port}", plant.model, "--port", port)
    broken = tmp_path / "parts.onnx"
    broken.write_bytes(b"no graph")
    refused("parts.onnx", broken, "--port", 0)
    refused("--device cuda is for .skanomaly files", broken, "--port", 0, "--device", "cuda")
    refused("image_shape", flattened, "--port", 0)
    monkeypatch.setattr("skanomaly_vit.cli._options.find_spec", lambda name: None)
    refused("pip install 'skanomaly-vit[serve]'", plant.model)
