"""The command line: what it writes, what it refuses, how it ends."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import pickle
import pty
import signal
import subprocess
import sys
import termios
import threading
import types
from pathlib import Path

import numpy as np
import openpyxl
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from images import blobs
from PIL import Image
from sklearn.base import clone

from skanomaly_vit import TransformalyDetector
from skanomaly_vit._backbone import loading as _backbones
from skanomaly_vit._backbone import passes as _passes
from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit._images.listing import SUFFIXES
from skanomaly_vit._images.prefetching import Reader
from skanomaly_vit.calibration import _units, threshold_bound
from skanomaly_vit.cli import main
from skanomaly_vit.cli._map_files import TargetNames
from skanomaly_vit.cli._options import ORDER
from skanomaly_vit.cli._tables import ExcelTable, Row, open_table
from skanomaly_vit.cli._terminal import uninterrupted
from skanomaly_vit.onnx import OnnxDetector

SMALL = ("--image-size", "56", "--n-blocks", "2")
COMMAND = [sys.executable, "-W", "error", "-m", "skanomaly_vit"]


def run(*args, stdin=None):
    return CliRunner().invoke(main, list(map(str, args)), input=stdin)


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


@pytest.fixture(scope="module")
def normal(tmp_path_factory):
    """A folder of normal images, two levels deep."""
    folder = tmp_path_factory.mktemp("normal")
    for index, image in enumerate(blobs(np.random.default_rng(0), 14)):
        save(image, folder / f"{index % 2}" / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def paths(normal):
    return sorted(str(path) for path in normal.rglob("*.png"))


@pytest.fixture(scope="module")
def detector(paths):
    return TransformalyDetector(image_size=56, n_blocks=2, random_state=0).fit(paths)


@pytest.fixture(scope="module")
def model(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "parts.skanomaly"
    detector.save(path)
    return path


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no image")
    return path


def read_csv(text):
    return list(csv.DictReader(text.splitlines(keepends=True)))


# fit


def test_fit_gives_what_the_detector_fits(normal, paths, detector, tmp_path):
    output = tmp_path / "a.model"
    done = run("fit", normal, "-o", output, *SMALL, "--jobs", 2, "--device", "cpu")
    assert done.exit_code == 0, done.output
    loaded = TransformalyDetector.load(output)
    np.testing.assert_array_equal(loaded.score_samples(paths), detector.score_samples(paths))
    # What was about the machine stays behind.
    assert (loaded.n_jobs, loaded.device, loaded.features_.device) == (None, None, None)
    assert "threshold" in done.stderr
    assert done.stdout == ""
    assert os.listdir(tmp_path) == ["a.model"]


def test_large_images_can_be_let_in(normal, model, tmp_path):
    few = tmp_path / "few.model"
    done = run("fit", normal, "-o", few, *SMALL, "--max-pixels", 10)
    assert done.exit_code == 2
    assert "max_pixels=10" in done.stderr
    assert run("score", model, normal, "--max-pixels", 10).exit_code == 2
    output = tmp_path / "all.model"
    assert run("fit", normal, "-o", output, *SMALL, "--max-pixels", 10**6).exit_code == 0
    assert TransformalyDetector.load(output).max_pixels == 10**6
    assert run("score", output, normal).exit_code == 0


def test_options_of_fit_are_parameters(normal, tmp_path):
    output = tmp_path / "a.model"
    options = ("--contamination", 0.2, "--batch-size", 5, "--seed", 7, "--memory", tmp_path / "c")
    assert run("fit", normal, "-o", output, *SMALL, *options).exit_code == 0
    loaded = TransformalyDetector.load(output)
    wanted = {"contamination": 0.2, "batch_size": 5, "random_state": 7, "memory": None}
    assert {name: getattr(loaded, name) for name in wanted} == wanted
    assert (tmp_path / "c").is_dir()


def test_fit_lists_all_unreadable_images_and_writes_nothing(normal, broken, tmp_path):
    other = tmp_path / "other.jpg"
    other.write_bytes(b"")
    done = run("fit", normal, tmp_path, "-o", tmp_path / "a.model", *SMALL)
    assert done.exit_code == 2
    assert f"unreadable: {str(broken)!r}: cannot identify" in done.stderr
    assert f"unreadable: {str(other)!r}: cannot identify" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["broken.png", "other.jpg"]


def test_a_fit_that_cannot_be_written_leaves_the_old_model(normal, tmp_path, monkeypatch):
    output = tmp_path / "a.model"
    output.write_bytes(b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    done = run("fit", normal, "-o", output, *SMALL)
    assert done.exit_code == 1
    assert "No space left" in done.stderr
    assert output.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image-size", "57"), "multiple of the backbone's patch size"),
        (("--n-blocks", "99"), "the backbone has 11 blocks"),
        (("--backbone", "vit_smal"), "not a timm model"),
        (("--contamination", "0.9"), "0<x<=0.5"),
        (("--jobs", "0"), "0 threads"),
        (("--device", "gpu"), "'gpu' is none of auto, cpu"),
        (("--recipe", "mine"), "'default', 'paper'"),
    ],
)
def test_wrong_options_of_fit_are_refused_before_images_are_read(
    options, message, broken, tmp_path
):
    done = run("fit", broken, broken, broken, "-o", tmp_path / "a.model", *options)
    assert done.exit_code == 1
    assert message in done.stderr
    assert "unreadable" not in done.stderr


# score


def test_scores_are_those_of_the_detector(model, detector, normal, paths, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    paths = [*paths, str(save(noise, tmp_path / "noise.png"))]
    done = run("score", model, normal, paths[-1])
    assert done.exit_code == 0, done.output
    rows = read_csv(done.stdout)
    assert [row["path"] for row in rows] == paths
    for name, wanted in (
        ("score", detector.score_samples(paths)),
        ("decision", detector.decision_function(paths)),
        ("p_value", detector.p_values(paths)),
    ):
        np.testing.assert_allclose([float(row[name]) for row in rows], wanted, rtol=5e-6)
        assert all(len(row[name].lstrip("-0.").replace(".", "")) <= 6 for row in rows)
    flags = [row["flag"] == "True" for row in rows]
    np.testing.assert_array_equal(flags, detector.predict(paths) == -1)
    assert 0 < sum(flags) < len(flags)
    assert done.stderr == ""


@pytest.mark.parametrize("size", [1, 3, 100])
def test_batches_change_no_row(size, model, normal, paths):
    rows = read_csv(run("score", model, normal, "--batch-size", size).stdout)
    whole = read_csv(run("score", model, normal).stdout)
    assert [row["path"] for row in rows] == paths
    np.testing.assert_allclose(
        [float(row["score"]) for row in rows], [float(row["score"]) for row in whole], rtol=1e-3
    )


def test_jsonl_has_all_digits(model, detector, normal, paths):
    rows = map(json.loads, run("score", model, normal, "--format", "jsonl").stdout.splitlines())
    found = [(row["score"], row["decision"], row["p_value"]) for row in rows]
    wanted = (detector.score_samples, detector.decision_function, detector.p_values)
    np.testing.assert_array_equal(np.transpose(found), [of(paths) for of in wanted])


def test_a_model_without_calibration_images_gives_no_p_values(detector, paths, tmp_path):
    clone(detector).set_params(validation_fraction=0).fit(paths).save(tmp_path / "m")
    done = run("score", tmp_path / "m", paths[0])
    assert [row["p_value"] for row in read_csv(done.stdout)] == [""]
    done = run("score", tmp_path / "m", paths[0], "--format", "jsonl")
    assert json.loads(done.stdout)["p_value"] is None
    output = tmp_path / "s.parquet"
    assert run("score", tmp_path / "m", paths[0], "-o", output).exit_code == 0
    assert pyarrow.parquet.read_table(output)["p_value"].to_pylist() == [None]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_can_hold_the_most_abnormal_or_the_flagged_alone(
    kind, model, detector, normal, paths, tmp_path
):
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    odd = [str(save(image, tmp_path / f"{i}.png")) for i, image in enumerate(noise)]
    scores = detector.score_samples([*paths, *odd])
    in_order = np.array([*paths, *odd])[np.argsort(scores, kind="stable")].tolist()
    flagged = [p for p, score in zip([*paths, *odd], scores, strict=True) if
               score < detector.offset_]  # fmt: skip
    assert 2 <= len(flagged) < 10

    def score(*options):
        output = tmp_path / f"s.{kind}"
        done = run("score", model, normal, *odd, "-o", output, "--batch-size", 2, *options)
        assert done.exit_code == 0, done.output
        if kind == "csv":
            return [row["path"] for row in read_csv(output.read_text())]
        return pyarrow.parquet.read_table(output)["path"].to_pylist()

    assert score("--top", 3) == in_order[:3]
    assert score("--top", 100) == in_order
    assert score("--only-flagged") == flagged
    assert score("--only-flagged", "--top", 10) == in_order[: len(flagged)]


def test_unreadable_images_have_no_row_and_the_others_have(model, paths, broken, tmp_path):
    stdin = "\n".join([paths[0], str(broken), str(tmp_path), paths[1], "missing.png", paths[2]])
    done = run("score", model, "-", "--batch-size", "2", stdin=stdin)
    assert done.exit_code == 2
    assert [row["path"] for row in read_csv(done.stdout)] == paths[:3]
    assert f"unreadable: {str(broken)!r}: cannot identify" in done.stderr
    assert f"unreadable: {str(tmp_path)!r}" in done.stderr
    assert "unreadable: 'missing.png': No such file" in done.stderr
    assert "unreadable: 3" in done.stderr


def test_an_error_that_is_no_images_fault_is_not_hidden(model, paths, monkeypatch):
    def fail(self, X):
        raise ValueError("another matter")

    monkeypatch.setattr(TransformalyDetector, "_score_batches", fail)
    done = run("score", model, paths[0])
    assert isinstance(done.exception, ValueError)


NAMES = [
    b"plain.png",
    b"with space.png",
    b'comma, "quote" and \'.png',
    b"new\nline.png",
    b"return\r.png",
    "größe-日本.png".encode(),
    b"not-utf8-\xe9\xff.png",
    b"<script>.png",
    b"-dash.png",
]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "xlsx"])
def test_names_come_out_right(kind, model, paths, tmp_path):
    named = [os.path.join(os.fsencode(tmp_path), name) for name in NAMES]
    for name in named:
        os.symlink(paths[0], name)
    given = [*named, named[0]]  # one of them twice
    output = tmp_path / f"scores.{kind}"
    done = run("score", model, "-", "--null", "-o", output, stdin=b"\0".join(given))
    assert done.exit_code == 0, done.output
    if kind == "csv":
        text = output.read_text("utf-8", "surrogateescape")
        with open(output, encoding="utf-8", errors="surrogateescape", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert text.startswith('"path","score","decision","flag","p_value"\n')
        found = [os.fsencode(row["path"]) for row in rows]
    elif kind == "jsonl":
        rows = [json.loads(line) for line in output.read_bytes().split(b"\n")[:-1]]
        found = [os.fsencode(row["path"]) for row in rows]
    elif kind == "xlsx":
        header, *cells = openpyxl.load_workbook(output)["scores"].iter_rows()
        assert {row[0].data_type for row in cells} == {"s"}  # "=..." is no formula
        rows = [{h.value: c.value for h, c in zip(header, row, strict=True)} for row in cells]
        found = [row["path"] for row in rows]
        given = [os.fsdecode(p).encode("utf-8", "backslashreplace").decode() for p in given]
        given = [p.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") for p in given]
    else:
        rows = pyarrow.parquet.read_table(output).to_pylist()
        found = [row["path"] for row in rows]
        given = [os.fsdecode(p).encode("utf-8", "backslashreplace").decode() for p in given]
    assert found == given
    assert len({str(row["score"]) for row in rows}) == 1
    assert set(rows[0]) == {"path", "score", "decision", "flag", "p_value"}


def test_a_sheet_holds_a_million_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(ExcelTable, "MAX_ROWS", 2)
    rows = [Row("=1+1", -np.inf, -1.0, True, None)] * 2
    with open(tmp_path / "a.xlsx", "wb") as stream, open_table(stream, "xlsx") as table:
        table.add(rows)
        with pytest.raises(OSError, match="a sheet of Excel holds 2 rows"):
            table.add(rows[:1])
    found = list(openpyxl.load_workbook(tmp_path / "a.xlsx").active.values)
    assert found[1:] == [("=1+1", None, -1, True, None)] * 2


def test_infinite_scores_are_valid_json(tmp_path):
    path = tmp_path / "a.jsonl"
    with open(path, "wb") as stream, open_table(stream, "jsonl") as table:
        table.add([Row("a", -np.inf, -np.inf, True, None)])
    wanted = {"path": "a", "score": None, "decision": None, "flag": True, "p_value": None}
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == wanted


def test_a_parquet_file_has_its_rows_in_few_groups(tmp_path):
    path = tmp_path / "a.parquet"
    with open(path, "wb") as stream, open_table(stream, "parquet") as table:
        for start in range(0, 25_000, 100):
            table.add([Row(str(i), i, i, False, 0.5) for i in range(start, start + 100)])
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 3
    column = pyarrow.parquet.read_table(path)["score"].to_pylist()
    assert column == list(range(25_000))


def test_no_paths_on_standard_input_give_a_header(model):
    done = run("score", model, "-", stdin="")
    assert (done.exit_code, done.stdout) == (0, '"path","score","decision","flag","p_value"\n')


def test_paths_with_null_bytes_need_the_option(model, paths):
    done = run("score", model, "-", stdin="\0".join(paths))
    assert done.exit_code == 1
    assert "add --null" in done.stderr
    done = run("score", model, "-", stdin=b"x" * 300_000)
    assert done.exit_code == 1
    assert "without a" in done.stderr


# Which images


def test_folders_are_walked_in_order_without_what_is_hidden(model, paths, tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)
    wanted = [save(image, tmp_path / name) for name in ("a/2.PNG", "b.png", "c/d/1.jpg", "e.tif")]
    for name in (".hidden.png", ".git/1.png", "a/.2.png", "__MACOSX/1.png"):
        save(image, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "c" / "self").symlink_to(tmp_path / "c" / "self")
    done = run("score", model, tmp_path, paths[0], paths[0])
    assert done.exit_code == 0, done.output
    found = [row["path"] for row in read_csv(done.stdout)]
    assert found == [*map(str, wanted), paths[0], paths[0]]


def test_a_broken_link_is_unreadable_not_overlooked(model, tmp_path):
    (tmp_path / "1.png").symlink_to(tmp_path / "gone.png")
    done = run("score", model, tmp_path)
    assert done.exit_code == 2
    assert "1.png': No such file" in done.stderr


def test_a_folder_deeper_than_pythons_calls_is_walked(model, paths, tmp_path):
    folders = [os.path.join(tmp_path, *["d"] * depth) for depth in range(1, 1500)]
    for folder in folders:
        os.mkdir(folder)
    image = os.path.join(folders[-1], "1.png")
    os.symlink(paths[0], image)
    done = run("score", model, tmp_path)
    os.unlink(image)
    for folder in reversed(folders):  # pytest could not remove it
        os.rmdir(folder)
    assert [row["path"] for row in read_csv(done.stdout)] == [image]


def test_a_folder_that_cannot_be_listed_is_told(model, paths, tmp_path, monkeypatch):
    os.symlink(paths[0], tmp_path / "1.png")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    done = run("score", model, tmp_path)
    assert done.exit_code == 2
    assert "closed': Permission denied" in done.stderr
    assert len(read_csv(done.stdout)) == 1
    done = run("score", model, tmp_path / "closed")
    assert done.exit_code == 1
    assert "cannot be listed: Permission denied" in done.stderr


def test_files_of_a_folder_that_are_left_out_are_told(model, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.jfif", format="JPEG")
    for name in ("notes.txt", "raw.heic", "more.txt"):
        (tmp_path / name).touch()
    done = run("score", model, tmp_path)
    assert [row["path"] for row in read_csv(done.stdout)] == [str(tmp_path / "a.jfif")]
    assert "left out 3 files, which are no image by the suffix: 2 .txt, 1 .heic." in done.stderr
    # Files that are named are not asked for their suffix.
    assert "left out" not in run("score", model, tmp_path / "a.jfif").stderr


def test_a_folder_of_texts_is_told_what_it_holds(model, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    done = run("score", model, tmp_path)
    assert done.exit_code == 1
    assert "Left out: 2 files, which are no image by the suffix: 2 .txt." in done.stderr


OUTPUT = {"fit": "a.model", "score": "a.csv", "map": "maps", "report": "a.html"}


@pytest.mark.parametrize("command", OUTPUT)
def test_a_folder_without_images_is_refused(command, model, tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "skanomaly_vit.report", types.SimpleNamespace(write_report=None)
    )
    empty = tmp_path / "empty"
    (empty / "sub").mkdir(parents=True)
    models = [] if command == "fit" else [model]
    done = run(command, *models, empty, "-o", tmp_path / OUTPUT[command])
    assert done.exit_code == 1
    assert all(suffix in done.stderr for suffix in SUFFIXES)
    assert os.listdir(tmp_path) == ["empty"]


# Wrong usage


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "Usage"),
        (("scor",), "No such command"),
        (("score",), "Missing argument 'MODEL'"),
        (("score", "MODEL"), "Missing argument 'IMAGES...'"),
        (("score", "MODEL", "missing.png"), "'missing.png' does not exist"),
        (("score", "missing", "IMAGE"), "'missing' does not exist"),
        (("score", "IMAGE", "IMAGE"), "cannot be loaded"),
        (("score", "MODEL", "IMAGE", "-0"), "add -"),
        (("score", "MODEL", "IMAGE", "-o", "scores.xls"), "does not end in .csv, .jsonl, .parquet"),
        (("score", "MODEL", "IMAGE", "-o", "no/scores.csv"), "there is no folder"),
        (("score", "MODEL", "IMAGE", "-o", "/"), "'/' is a folder"),
        (("score", "MODEL", "IMAGE", "--format", "parquet"), "parquet is for files"),
        (("score", "MODEL", "IMAGE", "--batch-size", "0"), "x>=1"),
        (("score", "MODEL", "IMAGE", "--top", "0"), "x>=1"),
        (("map", "MODEL", "IMAGE", "-o", "IMAGE"), "is a file"),
        (("fit", "IMAGE"), "Missing option '-o'"),
        (("fit", "IMAGE", "IMAGE", "-o", "m"), "needs 3 images at the very least"),
        (("fit", "IMAGE", "-o", "IMAGE"), "ends like an image"),
        (("report", "MODEL", "IMAGE", "-o", "MODEL"), "does not end in .html"),
        (("info", "."), "is a directory"),
        (("score", ".", "MODEL"), "the model file comes first"),
        (("fit", "IMAGE", "-o", "/proc/m"), "'/proc' cannot be written to: No such file"),
    ],
)
def test_wrong_usage_is_code_1(args, message, model, paths):
    named = {"MODEL": model, "IMAGE": paths[0]}
    done = run(*(named.get(arg, arg) for arg in args))
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""


def test_a_model_that_is_damaged_is_refused(model, paths, tmp_path):
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    (tmp_path / "m").write_bytes(content)
    for args in (("info",), ("score", paths[0])):
        done = run(args[0], tmp_path / "m", *args[1:])
        assert done.exit_code == 1
        assert "checksum" in done.stderr
        assert done.stdout == ""


def test_a_pickle_is_refused_unread(tmp_path):
    class Unpickled:
        def __reduce__(self):
            return pytest.fail, ("code ran",)

    (tmp_path / "m").write_bytes(pickle.dumps(Unpickled()))
    done = run("info", tmp_path / "m")
    assert done.exit_code == 1
    assert "another kind of file" in done.stderr


def test_a_missing_extra_is_named(model, paths, tmp_path, monkeypatch):
    monkeypatch.setattr("skanomaly_vit.cli._options.find_spec", lambda name: None)
    done = run("score", model, paths[0], "-o", tmp_path / "a.parquet")
    assert done.exit_code == 1
    assert "pip install 'skanomaly-vit[parquet]'; csv and jsonl do without it" in done.stderr
    done = run("map", model, paths[0], "-o", tmp_path / "maps")
    assert done.exit_code == 1
    assert "pip install 'skanomaly-vit[plot]'; --format npy does without it" in done.stderr
    done = run("report", model, paths[0], "-o", tmp_path / "a.html")
    assert done.exit_code == 1
    assert "needs jinja2, markupsafe, matplotlib" in done.stderr
    assert "pip install 'skanomaly-vit[report]'." in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_package_that_is_damaged_is_told_in_a_line(model, paths, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise ImportError("no _core in matplotlib")

    monkeypatch.setattr("skanomaly_vit.report.write_report", fail)
    done = run("report", model, paths[0], "-o", tmp_path / "a.html")
    assert done.exit_code == 1
    assert "no _core in matplotlib" in done.stderr
    assert "pip install" in done.stderr


OTHER_FILES = {
    "image": (b"\x89PNG\r\n\x1a\n....", "another kind of file, an image;"),
    "zip": (b"PK\x03\x04......", "another kind of file, a zip archive, as torch.save writes;"),
    "pickle": (pickle.dumps([1.0] * 9), "another kind of file, a pickle, which was not run;"),
    "graph.onnx": (
        b"\x08\x08......",
        "is an ONNX file, which score, evaluate, info,",
    ),
    "text": (b"a,b,c,d,e\n", "another kind of file; expected"),
    "empty": (b"", "it is empty"),
}
COMMANDS = {
    "score": ["IMAGE"],
    "map": ["IMAGE", "-o", "OUT"],
    "report": ["IMAGE", "-o", "OUT.html"],
    "export": ["-o", "OUT.onnx"],
    "info": [],
    "evaluate": ["--normal", "FOLDER", "--anomaly", "FOLDER"],
    "inspect": ["IMAGE"],
    "update": ["--fine", "FOLDER", "-o", "OUT"],
    "threshold": ["--false-alarms", "0.2", "-o", "OUT"],
    "drift": ["FOLDER"],
}


def run_on(command, model, image, folder, *options):
    named = {"IMAGE": image, "FOLDER": os.path.dirname(image), "OUT": folder / "o"}
    named |= {f"OUT{suffix}": folder / f"o{suffix}" for suffix in (".html", ".onnx")}
    return run(command, model, *(named.get(arg, arg) for arg in COMMANDS[command]), *options)


@pytest.mark.parametrize("kind", [*OTHER_FILES, "folder"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_no_model_is_named_in_a_line(command, kind, paths, tmp_path):
    other = tmp_path / kind
    if kind == "folder":
        other.mkdir()
    else:
        other.write_bytes(OTHER_FILES[kind][0])
    done = run_on(command, other, paths[0], tmp_path)
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert done.stdout == ""
    message = "is a directory" if kind == "folder" else OTHER_FILES[kind][1]
    if kind == "graph.onnx" and command in ("score", "evaluate", "info"):
        message = "it is cut off, damaged or another kind of file"
    assert message in " ".join(done.stderr.split())
    assert os.listdir(tmp_path) == [kind]


@pytest.mark.parametrize("command", ["score", "map", "report"])
def test_a_model_of_rows_is_refused_where_files_are_read(command, detector, paths, tmp_path):
    detector = clone(detector).set_params(image_shape=(8, 8, 3))
    rows = np.random.default_rng(0).integers(100, 156, (9, 192), dtype=np.uint8)
    detector.fit(rows).save(tmp_path / "m")
    done = run_on(command, tmp_path / "m", paths[0], tmp_path)
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert "fitted on rows of a table (image_shape=(8, 8, 3))" in done.stderr
    assert os.listdir(tmp_path) == ["m"]


def test_maps_that_a_model_does_not_have(paths, tmp_path):
    detector = TransformalyDetector(feature_spaces="pretrained", image_size=56).fit(paths)
    detector.save(tmp_path / "one")
    done = run_on("map", tmp_path / "one", paths[0], tmp_path, "--method", "discrepancy")
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert "needs students" in done.stderr
    detector._normal_patches = None
    detector.save(tmp_path / "none")
    done = run_on("map", tmp_path / "none", paths[0], tmp_path)
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert "no anomaly maps" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["none", "one"]
    done = run_on("report", tmp_path / "none", paths[0], tmp_path)
    assert done.exit_code == 0, done.output
    assert "gives no anomaly maps" in (tmp_path / "o.html").read_text()


# Outputs


FORMULAS = ["=1+1.png", "+1.png", "-1.png", "@SUM(1).png", "\t=1.png", "\r=1.png", "\uff1d1.png"]


@pytest.mark.parametrize("safe", [True, False])
def test_a_path_is_no_formula_in_safe_csv(safe, model, paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [*FORMULAS, "a=1.png"]:
        os.symlink(paths[0], name)
    options = ["--safe-csv"] if safe else []
    names = "\0".join([*FORMULAS, "a=1.png"])
    done = run("score", model, "-", "-0", "-o", "s.csv", *options, stdin=names)
    assert done.exit_code == 0, done.output
    with open("s.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    mark = "'" if safe else ""
    assert [row["path"] for row in rows] == [*(mark + name for name in FORMULAS), "a=1.png"]
    assert float(rows[0]["score"]) == float(rows[-1]["score"])


def test_safe_csv_is_for_csv(model, paths):
    done = run("score", model, paths[0], "--safe-csv", "--format", "jsonl")
    assert done.exit_code == 1
    assert "--safe-csv is for csv" in done.stderr


def test_a_model_is_not_overwritten_by_its_own_scores(model, paths):
    before = model.read_bytes()
    done = run("score", model, paths[0], "-o", model, "--format", "csv")
    assert done.exit_code == 1
    assert "is the model itself" in done.stderr
    assert model.read_bytes() == before


def test_two_commands_do_not_write_one_table(model, paths, tmp_path):
    output = tmp_path / "s.csv"
    with start("score", model, "-", "--batch-size", "1", "-o", output) as process:
        process.stdin.write(paths[0].encode() + b"\n" + paths[1].encode() + b"\n")
        process.stdin.flush()
        while not output.exists() or output.read_bytes().count(b"\n") < 2:
            assert process.poll() is None
        held = output.read_bytes()
        done = run("score", model, *paths, "-o", output)
        assert done.exit_code == 1
        assert "another command is writing" in done.stderr
        assert output.read_bytes().startswith(held)
        process.communicate()
    assert process.returncode == 0
    assert [row["path"] for row in read_csv(output.read_text())] == paths[:2]
    assert run("score", model, paths[2], "-o", output).exit_code == 0
    assert [row["path"] for row in read_csv(output.read_text())] == paths[2:3]


@pytest.mark.parametrize("target", ["parquet", "map"])
def test_an_output_that_fails_half_way_leaves_the_old_one(
    target, model, paths, tmp_path, monkeypatch
):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    if target == "parquet":
        old = tmp_path / "s.parquet"
        monkeypatch.setattr("skanomaly_vit.cli._tables.ParquetTable._write_group", fail)
        command = ("score", model, paths[0], "-o", old)
    else:
        monkeypatch.chdir(tmp_path)
        os.symlink(paths[0], "1.png")
        old = tmp_path / "maps" / "1.png.npy"
        old.parent.mkdir()
        monkeypatch.setattr("numpy.lib.format.write_array", fail)
        command = ("map", model, "1.png", "-o", "maps", "--format", "npy")
    old.write_bytes(b"old")
    done = run(*command)
    assert done.exit_code == 1
    assert "No space left" in done.stderr
    assert old.read_bytes() == b"old"
    assert os.listdir(old.parent) == [old.name] or target == "parquet"
    assert not list(tmp_path.rglob("*.part"))


# Model and machine


def test_a_device_that_is_not_there_is_code_3(model, paths, tmp_path):
    output = tmp_path / "scores.csv"
    output.write_text("old")
    done = run("score", model, paths[0], "--device", "cuda:99", "-o", output)
    assert done.exit_code == 3
    assert "cuda" in done.stderr
    assert output.read_text() == "old"
    done = run("fit", *paths, "--device", "cuda:99", "-o", tmp_path / "m", *SMALL)
    assert done.exit_code == 3


def test_another_backbone_is_code_3(detector, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(detector.features_, "backbone_fingerprint_", "0" * 64)
    detector.save(tmp_path / "m")
    done = run("score", tmp_path / "m", paths[0])
    assert done.exit_code == 3
    assert "fingerprint 000000000000" in done.stderr
    assert run("info", tmp_path / "m").exit_code == 0


def test_weights_that_cannot_be_had_are_code_3(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(_backbones, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    backbone = "vit_base_patch16_384.augreg_in21k_ft_in1k"
    done = run("fit", *paths, "-o", tmp_path / "m", "--backbone", backbone)
    assert done.exit_code == 3
    assert "Three ways out" in done.stderr


# map, report, info


@pytest.fixture
def mapping(monkeypatch):
    """Maps of a kind: the images' own sizes, high in the middle; a file that is none is refused."""

    def score_and_map(self, X, method=None):
        from skanomaly_vit._images.opening import open_images
        from skanomaly_vit._images.unreadable import warn_unreadable

        asked.append(method)
        source = open_images(X, on_error=self.on_error)
        images = source.each(source.__getitem__, range(len(source)))
        warn_unreadable(list(source.unreadable.values()), len(source))
        maps = [np.zeros((0, 0), np.float32)] * len(source)
        for i, image in images.items():
            maps[i] = np.zeros(image.shape[:2], np.float32)
            maps[i][len(image) // 2] = 20
        return np.full(len(source), self.offset_ - 1), maps

    asked = []
    monkeypatch.setattr(TransformalyDetector, "_score_and_map", score_and_map)
    return asked


def test_maps_of_equal_names_do_not_meet(mapping, model, broken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(np.full((40, 30, 3), 100, np.uint8), tmp_path / "a" / "1.png")
    save(np.full((20, 60, 3), 200, np.uint8), tmp_path / "b" / "1.png")
    save(np.full((20, 50), 50, np.uint16), tmp_path / "b" / "1.tif")
    done = run("map", model, "a", "b", broken, "-o", "maps", "--format", "both")
    assert done.exit_code == 2
    assert "unreadable: 1" in done.stderr
    found = sorted(os.path.join(d, f) for d, _, files in os.walk("maps") for f in files)
    stems = ("maps/a/1.png", "maps/b/1.png", "maps/b/1.tif")
    assert found == sorted(f"{stem}.{kind}" for stem in stems for kind in ("npy", "png"))
    raw = np.load("maps/a/1.png.npy")
    assert (raw.shape, raw.dtype, raw.max()) == ((40, 30), np.float32, 20)
    picture = np.asarray(Image.open("maps/a/1.png.png"))
    assert picture.shape == (40, 30, 3)
    assert (picture[0] == 100).all()  # what is normal stays as it is
    assert (picture[20] != 100).any()
    assert set(mapping) == {None}
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["path"] for row in rows] == ["a/1.png", "b/1.png", "b/1.tif"]
    assert [row["map"] for row in rows] == [f"{stem}.png" for stem in stems]
    assert {(row["highest"], row["decision"], row["flag"]) for row in rows} == {
        ("20.0", "-1.0", "True")
    }


def test_the_method_of_a_map_can_be_chosen(mapping, model, paths, tmp_path):
    done = run("map", model, paths[0], "-o", tmp_path, "--format", "npy", "--method", "features")
    assert done.exit_code == 0, done.output
    assert mapping == ["features"]


def test_target_names_are_unique_and_inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = TargetNames("out")
    given = ["x/1.png", "../x/1.png", "../../x/1.png", "/x/1.png", "X/1.png", "x/./1.png"]
    found = [names.name(path) for path in given]
    assert found[0] == found[5] == os.path.join("out", "x", "1.png")
    assert len({name.lower() for name in found}) == 5
    assert all(os.path.normpath(name).startswith("out" + os.sep) for name in found)


@pytest.fixture
def reported(monkeypatch):
    """What a report is asked to show; its file holds the word done."""

    def write_report(det, X, *, path, callback, **options):
        callback(1, 2)
        asked.append({"X": X} | options)
        Path(path).write_text("done")

    asked = []
    monkeypatch.setitem(
        sys.modules, "skanomaly_vit.report", types.SimpleNamespace(write_report=write_report)
    )
    return asked


def test_a_report_is_handed_the_readable_images(model, paths, broken, tmp_path, reported):
    output = tmp_path / "report.html"
    done = run("report", model, *paths[:2], broken, paths[2], "-o", output)
    assert done.exit_code == 2
    assert reported == [
        {"X": paths[:3], "title": None, "n_maps": 12, "folder": False, "in_order": False}
    ]
    output.unlink()
    assert run("report", model, broken, "-o", output).exit_code == 2
    assert not output.exists()


@pytest.fixture
def table(tmp_path, normal, paths):
    """A function that writes a table of the first three images, and of one that is not asked."""

    def table(*columns):
        rows = [
            [os.path.relpath(path, normal), *cells]
            for path, *cells in zip(paths, *columns[1:], strict=False)
        ]
        with open(tmp_path / "table.csv", "w", newline="") as file:
            csv.writer(file).writerows([["path", *columns[0]], *rows])
        return tmp_path / "table.csv"

    return table


def test_a_report_takes_labels_names_and_all_that_python_takes(
    model, normal, paths, table, tmp_path, reported
):
    output = tmp_path / "report.html"
    labels = table(
        ["label", "kind"], ["fine", "defect", "anomaly", "normal"], ["", "crack", "", ""]
    )
    options = ["--root", normal, "--title", "Parts", "--n-maps", "3", "--folder"]
    done = run("report", model, *paths[:3], "-o", output, "--labels", labels, *options)
    assert done.exit_code == 0, done.stderr
    expected = {"title": "Parts", "n_maps": 3, "folder": True, "in_order": False}
    known = {"y": ["normal", "crack", "anomaly"], "anomaly_label": ["anomaly", "crack"]}
    assert reported.pop() == {"X": paths[:3]} | expected | known
    names = table(["name"], ["A", "b, c", "=3", "d"])
    done = run("report", model, *paths[:3], "-o", output, "--names", names, *options)
    assert done.exit_code == 0, done.stderr
    assert reported.pop() == {"X": paths[:3]} | expected | {"names": ["A", "b, c", "=3"]}


@pytest.mark.parametrize(
    ("option", "columns", "message"),
    [
        ("--labels", (["label"], ["fine", "bad"]), "label is 'bad', which is none of normal, fine"),
        ("--labels", (["label"], ["fine", "fine"]), "has no label for 1 of 3 images, first"),
        ("--labels", (["kind"], ["fine"]), "has no column label; its header is 'path,kind'"),
        (
            "--labels",
            (["label", "kind"], ["anomaly"], ["normal"]),
            "row 2 ('{first}'): an anomaly is of the kind 'normal'",
        ),
        ("--names", (["name"], ["a", "", "c"]), "has no name for 1 of 3 images, first"),
        ("--names", (["title"], ["a"]), "has no column name"),
    ],
)
def test_a_report_needs_a_label_or_name_of_each_image(
    option, columns, message, model, normal, paths, table, tmp_path, reported
):
    arguments = ["-o", tmp_path / "report.html", option, table(*columns), "--root", normal]
    done = run("report", model, *paths[:3], *arguments)
    assert done.exit_code == 1
    assert message.format(first=paths[0]) in " ".join(done.stderr.split())
    assert reported == []


def test_the_tables_of_a_report_begin_from_their_own_folder(
    model, normal, paths, table, tmp_path, reported
):
    arguments = ["report", model, paths[0], "-o", tmp_path / "report.html"]
    done = run(*arguments, "--root", normal)
    assert (done.exit_code, reported) == (1, [])
    assert "--root is for --labels and --names" in done.stderr
    beside = normal / "table.csv"
    beside.write_bytes(table(["name"], ["first"]).read_bytes())
    assert run(*arguments, "--names", beside).exit_code == 0
    beside.unlink()
    assert reported[0]["names"] == ["first"]


def test_info_says_what_a_model_is(model, detector):
    done = run("info", model, "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["n_images"] == 14
    assert found["n_images_held_out"] == 3
    assert found["threshold"] == detector.offset_
    assert found["file_size"] == os.path.getsize(model)
    assert found["backbone_fingerprint"] == detector.features_.backbone_fingerprint_
    assert found["parameters"]["image_size"] == 56
    assert found["blocks"] == [9, 10]
    text = run("info", model).stdout
    assert "image_size=56, n_blocks=2, random_state=0" in text
    assert detector.features_.backbone_fingerprint_ in text


def test_info_says_what_is_known_of_false_alarms(detector, paths, tmp_path):
    certified = clone(detector).set_params(validation_fraction=0.5).fit(paths)
    assert len(certified.calibration_scores_) == 7
    certified.set_threshold(target_fpr=0.5, confidence=0.9).save(tmp_path / "m")
    found = json.loads(run("info", tmp_path / "m", "--json").stdout)
    # The second of seven scores: Beta(2, 6) is at most 0.5 with 0.9375, at most 0.4526 with 0.9.
    bound = threshold_bound(certified.calibration_scores_, certified.offset_, confidence=0.9)
    assert found["false_alarm_bound"] == bound == pytest.approx(0.4526, abs=1e-4)
    assert (found["false_alarm_rate"], found["threshold_confidence"]) == (0.5, 0.9)
    assert (found["n_calibrating"], found["n_calibration_units"]) == (7, 7)
    text = run("info", tmp_path / "m").stdout
    assert "at most 50 % of normal images, in 90 % of deployments" in text
    assert "7 held-out images; at most 45.3 % in 90 % of deployments" in text
    certified.set_threshold(target_fpr=0.25).save(tmp_path / "m")
    text = run("info", tmp_path / "m").stdout
    assert "25 % of normal images, on average over deployments" in text
    assert "7 held-out images; at most 52.1 % in 95 % of deployments" in text
    groups = np.arange(14) // 2
    certified.fit(paths, groups=groups).save(tmp_path / "m")
    text = run("info", tmp_path / "m").stdout
    assert "8 held-out images in 4 groups; no bound without a confidence" in text
    certified.set_params(validation_fraction=0).fit(paths).save(tmp_path / "m")
    assert "5 % of the training images; of new ones, more" in run("info", tmp_path / "m").stdout


def test_a_fit_sets_a_threshold_with_a_confidence(normal, paths, tmp_path):
    output = tmp_path / "a.model"
    rate = ("--contamination", 0.5, "--confidence", 0.8)
    assert run("fit", normal, "-o", output, *SMALL, *rate).exit_code == 0
    loaded = TransformalyDetector.load(output)
    assert loaded.threshold_confidence_ == 0.8
    assert loaded.contamination_ == 0.5
    assert loaded.offset_ == loaded.calibration_scores_.min()


@pytest.mark.parametrize(("recipe", "in_all"), [("default", 1491), ("paper", 2981)])
def test_a_confidence_that_takes_more_images_is_refused_before_the_fit(
    recipe, in_all, normal, tmp_path
):
    rate = ("--contamination", 0.01, "--confidence", 0.95, "--recipe", recipe)
    done = run("fit", normal, "-o", tmp_path / "m", *SMALL, *rate)
    assert done.exit_code == 1
    message = " ".join(done.stderr.split())
    assert f"takes 299 held-out images, which a fit of {in_all} images has; found 14" in message
    assert os.listdir(tmp_path) == []


def test_copies_do_not_count_for_a_confidence(paths, tmp_path):
    copies = paths[:5] * 3
    rate = ("--contamination", 0.5, "--confidence", 0.8)
    done = run("fit", *copies, "-o", tmp_path / "m", *SMALL, *rate)
    assert done.exit_code == 1
    assert "Copies of an image count once" in done.stderr
    assert os.listdir(tmp_path) == []


def test_info_needs_neither_students_nor_torch(paths, tmp_path):
    detector = TransformalyDetector(
        feature_spaces="pretrained",
        views=("pooled", "max_patch"),
        density="knn",
        image_size=(56, 42),
        store_backbone=True,
    ).fit(paths)
    detector.save(tmp_path / "m")
    found = json.loads(run("info", tmp_path / "m", "--json").stdout)
    assert found["parameters"]["image_size"] == [56, 42]
    assert found["densities"] == {"pooled": "KNNDensity", "max_patch": "KNNDensity"}
    assert found["blocks"] == []
    assert found["versions_here"]["skanomaly-vit"]
    code = (
        "import sys\n"
        "from skanomaly_vit.cli import main\n"
        "try:\n"
        "    main(['info', sys.argv[1]])\n"
        "finally:\n"
        "    sys.stderr.write(str('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "m"], capture_output=True)
    assert b"embedded in float32 (in the file)" in done.stdout
    assert done.stderr == b"False"


def test_what_a_model_says_does_not_steer_the_terminal(detector, tmp_path, monkeypatch):
    monkeypatch.setattr("skanomaly_vit.persistence._card.versions", lambda: {"a": "\x1b[31m"})
    detector.save(tmp_path / "m")
    assert "\x1b" not in run("info", tmp_path / "m").stdout


# Export


def test_an_exported_model_scores_the_same(paths, tmp_path):
    detector = TransformalyDetector(
        backbone="skanomaly_tiny", pretrained=False, image_size=32, n_blocks=2, random_state=0
    ).fit(paths)
    detector.save(tmp_path / "parts.skanomaly")
    model, target = tmp_path / "parts.skanomaly", tmp_path / "parts.onnx"
    done = run("export", model, "-o", target, "--map-method", "features")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "parts.onnx" in done.stderr
    found = OnnxDetector.load(target)
    scores = detector.score_samples(paths)
    np.testing.assert_allclose(found.score_samples(paths), scores, atol=1e-3 * scores.std())
    assert found.card["map_method"] == "features"


def test_an_export_that_cannot_be_is_code_1_or_3(model, detector, broken, tmp_path, monkeypatch):
    target = tmp_path / "parts.onnx"
    done = run("export", model, "-o", tmp_path / "parts.skanomaly")
    assert (done.exit_code, "does not end in .onnx" in done.stderr) == (1, True)
    done = run("export", broken, "-o", target)
    assert (done.exit_code, "cannot be loaded as a model" in done.stderr) == (1, True)
    with monkeypatch.context() as patch:
        patch.setattr("skanomaly_vit.cli._options.find_spec", lambda name: None)
        done = run("export", model, "-o", target)
        assert (done.exit_code, "'skanomaly-vit[onnx]'" in done.stderr) == (1, True)
    with monkeypatch.context() as patch:
        patch.setattr(detector, "_normal_patches", None)
        detector.save(tmp_path / "without maps")
        done = run("export", tmp_path / "without maps", "-o", target, "--map-method", "both")
        assert (done.exit_code, "patch_embed.patch_size" in done.stderr) == (1, True)
    monkeypatch.setattr(detector.features_, "backbone_fingerprint_", "0" * 64)
    detector.save(tmp_path / "m")
    assert run("export", tmp_path / "m", "-o", target).exit_code == 3
    assert not target.exists()


@pytest.mark.parametrize("command", main.commands)
def test_help_has_an_example(command):
    done = run(command, "--help")
    assert done.exit_code == 0
    assert f"    skanomaly {command}" in done.stdout
    # A command that reads a model says so, unless it has more to say of its exit codes.
    without = ("fit", "audit", "update", "tune", "backbones")
    assert (command in without) != ("runs no code" in " ".join(done.stdout.split()))


def test_the_help_lists_commands_in_the_order_of_work():
    listed = [line.split()[0] for line in run("--help").stdout.splitlines() if
              line.startswith("  ") and line.split()[0] in main.commands]  # fmt: skip
    assert listed == list(ORDER)
    assert set(ORDER) == set(main.commands)


# Real processes


def start(*args, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *map(os.fspath, args)], **pipes | options)


def test_help_and_wrong_usage_import_nothing_heavy(model):
    code = (
        "import sys\n"
        "from skanomaly_vit.cli import main\n"
        "codes = []\n"
        "for args in (['--help'], ['score', '--help'], ['--version'], ['score', 'no', 'no']):\n"
        "    try:\n"
        "        main(args)\n"
        "    except SystemExit as end:\n"
        "        codes.append(end.code)\n"
        "heavy = {'torch', 'sklearn', 'numpy', 'timm', 'PIL', 'pyarrow', 'joblib'}\n"
        "sys.exit(str([codes, sorted(heavy & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True)
    assert done.stderr.decode().splitlines()[-1] == "[[0, 0, 0, 1], []]"


@pytest.mark.parametrize("is_listed", [True, False])
def test_batches_of_a_list_are_read_ahead_of_a_device(is_listed, model, paths, broken, monkeypatch):
    given = [*paths[:5], str(broken), *paths[5:]]
    whole = run("score", model, *given, "--batch-size", 2)
    monkeypatch.setattr(_passes, "batches_ahead", lambda device: 2)
    expected, expect = [], Reader.expect

    def noting(self, positions):
        expected.append(len(positions))
        expect(self, positions)

    monkeypatch.setattr(Reader, "expect", noting)
    arguments = given if is_listed else ["-"]
    done = run("score", model, *arguments, "--batch-size", 2, stdin="\n".join(given))
    assert done.stdout == whole.stdout
    assert done.stderr == whole.stderr
    assert any(expected) == is_listed


def test_an_end_within_a_list_loses_no_batch(model, paths, embedded, monkeypatch, tmp_path):
    run_teacher = Teacher.__call__

    def stopping(self, images, **options):
        if len(embedded) == 3:
            raise KeyboardInterrupt
        return run_teacher(self, images, **options)

    monkeypatch.setattr(Teacher, "__call__", stopping)
    done = run("score", model, *paths, "--batch-size", 2, "-o", tmp_path / "s.csv")
    assert "Stopped after 6 images" in done.stderr
    rows = read_csv((tmp_path / "s.csv").read_text())
    assert [row["path"] for row in rows] == paths[:6]


def test_rows_come_while_paths_still_do(model, paths):
    with start("score", model, "-", "--batch-size", "2") as process:
        process.stdin.write("\n".join(paths[:5]).encode())
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(5)]  # the header, two batches
        assert lines[4].startswith(f'"{paths[3]}",'.encode())
        rest, messages = process.communicate()
    assert rest.startswith(f'"{paths[4]}",'.encode())
    assert (process.returncode, messages) == (0, b"")


@pytest.fixture
def signals_heard():
    """Commands hear signals that the tests themselves may have been started to ignore."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.default_int_handler)  # a command starts without a handler
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals_heard")
@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [
        ("csv", signal.SIGINT, 130),
        ("parquet", signal.SIGINT, 130),
        ("parquet", signal.SIGTERM, 143),
    ],
)
def test_a_signal_leaves_whole_rows(kind, number, code, model, paths, broken, tmp_path):
    output = tmp_path / f"scores.{kind}"
    with start("score", model, "-", "--batch-size", "2", "-o", output) as process:
        given = [*paths[:4], str(broken), *paths[4:]]
        process.stdin.write("\n".join(given).encode() + b"\n")
        process.stdin.flush()
        assert b"unreadable" in process.stderr.readline()  # two batches are done by then
        process.send_signal(number)
        messages = process.stderr.read()  # its standard input stays open
        process.wait()
    assert process.returncode == code
    assert b"Stopped after" in messages
    assert b"Traceback" not in messages
    if kind == "csv":
        text = output.read_text()
        found = [row["path"] for row in read_csv(text)]
        assert text.endswith("\n")
    else:
        found = pyarrow.parquet.read_table(output)["path"].to_pylist()
    assert 4 <= len(found) <= len(paths)
    assert found == paths[: len(found)]


def test_a_broken_pipe_ends_quietly(model, paths):
    with start("score", model, *paths, "--batch-size", "1") as process:
        process.stdout.readline()
        process.stdout.close()
        messages = process.stderr.read()
        process.wait()
    assert (process.returncode, messages) == (0, b"")


@pytest.fixture
def terminal():
    """A terminal to write to, and what has been written once it is closed."""
    reading_end, writing_end = pty.openpty()
    termios.tcsetwinsize(writing_end, (24, 100))
    shown = []

    def read():
        # A terminal holds little: a process that writes more waits until it is read.
        with contextlib.suppress(OSError):  # Linux's end of a terminal
            while block := os.read(reading_end, 2**16):
                shown.append(block)
        os.close(reading_end)

    reader = threading.Thread(target=read)
    reader.start()

    def close():
        os.close(writing_end)
        reader.join()
        return b"".join(shown)

    return writing_end, close


def test_bars_are_drawn_on_a_terminal_only(terminal, model, normal, tmp_path):
    writing_end, close = terminal
    commands = [
        ("fit", normal, "-o", tmp_path / "m", *SMALL),
        ("score", model, normal, "-o", tmp_path / "s.csv"),
    ]
    for args in commands:
        with start(*args, stderr=writing_end) as process:
            stdout, _ = process.communicate()
        assert (process.returncode, stdout) == (0, b"")
    shown = close()
    assert b"checking: 100%" in shown
    assert b"TransformalyDetector" in shown
    assert b"scoring: 100%" in shown


def interrupt_write(number, *, times):
    written = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():  # noqa: PT012, it is what is tested
        for _ in range(times):
            signal.raise_signal(number)
        written.append("written")
    return written


@pytest.mark.usefixtures("signals_heard")
def test_a_fit_that_was_stopped_goes_on(normal, tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    arguments = ("fit", normal, "-o", tmp_path / "a.model", *SMALL, "--recipe", "paper",
                 "--checkpoint", folder, "--verbose")  # fmt: skip
    with start(*arguments) as process:
        while b"epoch 3/30" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        messages = process.stderr.read().decode()
        process.wait()
    assert process.returncode == 143
    assert f"The same command resumes from the last checkpoint in {str(folder)!r}" in messages
    assert os.listdir(tmp_path) == ["checkpoints"]
    with caplog.at_level(logging.INFO, "skanomaly_vit"):
        assert run(*arguments).exit_code == 0
    assert "resuming after step" in caplog.text
    assert "epoch 30/30" in caplog.text
    assert "epoch 1/30" not in caplog.text
    assert os.listdir(folder) == []


def test_a_fit_that_is_stopped_without_checkpoints_says_how_to_have_them(
    normal, tmp_path, monkeypatch
):
    def interrupt(self, X):
        raise KeyboardInterrupt

    monkeypatch.setattr(TransformalyDetector, "fit", interrupt)
    done = run("fit", normal, "-o", tmp_path / "a.model", *SMALL)
    assert done.exit_code == 130
    assert "nothing is kept. With --checkpoint FOLDER" in done.stderr


def test_a_model_that_cannot_be_written_does_not_cost_the_fit(normal, tmp_path, monkeypatch):
    arguments = ("fit", normal, "-o", tmp_path / "a.model", *SMALL, "--checkpoint", tmp_path / "c")

    def fail(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TransformalyDetector, "save", fail)
    assert run(*arguments).exit_code == 1
    assert list((tmp_path / "c").glob("*/*/complete.json"))
    monkeypatch.undo()
    assert run(*arguments).exit_code == 0
    assert os.listdir(tmp_path / "c") == []


def test_too_little_memory_is_told_in_a_line(model, paths, monkeypatch):
    def fail(self, paths):
        raise MemoryError("Out of memory on cuda:0 with a single image")

    monkeypatch.setattr(TransformalyDetector, "_score_batches", fail)
    done = run("score", model, *paths)
    assert done.exit_code == 1
    assert done.stderr == "Error: Out of memory on cuda:0 with a single image\n"


@pytest.mark.usefixtures("signals_heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_what_is_being_written(number):
    assert interrupt_write(number, times=1) == ["written"]
    assert interrupt_write(number, times=2) == []  # a second one gets through
    with uninterrupted():
        pass


def test_score_sorts_the_calibration_scores_once(plant, command, monkeypatch):
    sorted_ones = []
    sort = _units.sorted_calibration

    def counting(scores):
        sorted_ones.append(len(scores))
        return sort(scores)

    monkeypatch.setattr(_units, "sorted_calibration", counting)
    done = command("score", plant.model, plant.new)
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 21
    assert len(sorted_ones) == 1
