"""`skanomaly update` and `threshold`: marks, what the new model is, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.persistence import model_card


def files(folder):
    return sorted(str(path) for path in folder.rglob("*.png"))


@pytest.fixture
def marks(plant, tmp_path):
    """Eight images marked fine, four as defects; paths from the folder of the table."""
    table = tmp_path / "marks.csv"
    rows = [f"{os.path.relpath(path, tmp_path)},fine,why" for path in files(plant.new)[:8]]
    rows += [f"{path},Defect," for path in files(plant.defect)[:4]]
    table.write_text("\n".join(["path,mark,note", *rows]))
    return table


def load(plant):
    return TransformalyDetector.load(plant.model)


def learned(plant, images, calibrate):
    """The model, updated in Python: with no image held out, all teach."""
    detector = load(plant)
    share = detector.validation_fraction if calibrate else 0
    detector.set_params(validation_fraction=share).partial_fit(images)
    return detector.set_params(validation_fraction=0.5)


@pytest.mark.parametrize("calibrate", [False, True])
def test_the_new_model_is_that_of_partial_fit(calibrate, plant, command, marks, tmp_path):
    new, fine, defects = tmp_path / "new", files(plant.new)[:8], files(plant.defect)[:4]
    options = ["--calibrate"] if calibrate else []
    done = command("update", plant.model, "-o", new, "--marks", marks, "--json", *options)
    assert done.exit_code == 0, done.output
    wanted, updated = learned(plant, fine, calibrate), TransformalyDetector.load(new)
    images = fine + defects
    np.testing.assert_array_equal(updated.score_samples(images), wanted.score_samples(images))
    assert updated.offset_ == wanted.offset_
    assert updated.contamination_ == 0.2
    assert updated.validation_fraction == 0.5
    found = json.loads(done.stdout)
    assert found["threshold"] == {"before": plant.detector.offset_, "after": wanted.offset_}
    for key, of, paths in (("fine", "flagged", fine), ("defects", "found", defects)):
        assert found[key]["n_images"] == len(paths)
        assert found[key][f"{of}_before"] == (plant.detector.predict(paths) == -1).sum()
        assert found[key][f"{of}_after"] == (wanted.predict(paths) == -1).sum()
    n_calibrating = len(wanted.calibration_scores_) - len(plant.detector.calibration_scores_)
    assert (0 < n_calibrating < 8) if calibrate else (n_calibrating == 0)
    assert found["fine"]["n_calibrating"] == n_calibrating
    flags = []
    for fold in np.array_split(np.arange(8), 5):
        others = [fine[i] for i in range(8) if i not in fold]
        flags += (learned(plant, others, calibrate).predict([fine[i] for i in fold]) == -1).tolist()
    assert found["fine"]["flagged_left_out"] == sum(flags)


def test_the_card_logs_what_was_added_by_content(plant, command, marks, tmp_path):
    assert model_card(plant.model)["updates"] == []
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    assert command("update", plant.model, "-o", one, "--marks", marks).exit_code == 0
    log = model_card(one)["updates"]
    assert [(each["what"], each["n_images"]) for each in log] == [
        ("partial_fit", 8),
        ("defects", 4),
    ]
    assert log[0]["n_calibrating"] == 0
    assert log[0]["date"].endswith("+00:00")
    # In another order, and under other names, it is the same lot.
    for i, path in enumerate(reversed(files(plant.new)[:8])):
        os.makedirs(tmp_path / "copies", exist_ok=True)
        shutil.copy(path, tmp_path / f"copies/{i}.png")
    command("update", plant.model, "-o", two, "--fine", tmp_path / "copies")
    assert model_card(two)["updates"][0]["digest"] == log[0]["digest"]
    os.remove(tmp_path / "copies/0.png")
    command("update", plant.model, "-o", three, "--fine", tmp_path / "copies")
    assert model_card(three)["updates"][0]["digest"] != log[0]["digest"]
    # A second update goes on with the log of the first.
    done = command("update", one, "-o", two, "--fine", plant.new)
    assert done.exit_code == 0, done.output
    assert "8 images marked fine are known to the model already" in done.stderr
    assert [each["n_images"] for each in model_card(two)["updates"]] == [8, 4, 12]
    assert "8 images by partial_fit" in command("info", two).stdout


def test_defects_are_kept_beside_the_model(plant, command, marks, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert command("update", plant.model, "-o", one, "--marks", marks).exit_code == 0
    kept = sorted(os.listdir(f"{one}.defects"))
    contents = [Path(path).read_bytes() for path in files(plant.defect)[:4]]
    assert kept == sorted(f"{hashlib.sha256(each).hexdigest()[:16]}.png" for each in contents)
    args = ("update", one, "-o", two, "--defect", plant.defect, "--json")
    done = command(*args)
    assert done.exit_code == 0, done.output
    # Those of the first model count, too, once, and go with the second.
    assert json.loads(done.stdout)["defects"]["n_images"] == 13
    assert set(kept) < set(os.listdir(f"{two}.defects"))
    assert len(os.listdir(f"{two}.defects")) == 13
    evaluated = command(
        "evaluate", two, "--normal", plant.new, "--anomaly", f"{two}.defects", "--leave-out-known"
    )
    assert evaluated.exit_code == 0, evaluated.output
    assert "13 anomalies" in evaluated.stdout


def test_before_and_after_are_told_in_words(plant, command, marks, tmp_path):
    done = command("update", plant.model, "-o", tmp_path / "new", "--marks", marks)
    text = " ".join(done.stdout.split())
    assert "left out in turn" in text
    assert "defects kept, found" in text
    assert "what the new model says of them is no test" in text
    done = command("update", plant.model, "-o", tmp_path / "b", "--defect", plant.defect)
    assert "marked fine" not in done.stdout
    assert TransformalyDetector.load(tmp_path / "b").offset_ == plant.detector.offset_


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "has no column mark; its header is 'path,label'"),
        ("path,mark\nnew/00.png,good\n", "row 2 ('new/00.png'): mark is 'good'"),
        ("path,mark\nnew/00.png,fine\nnew/01.png,\n", "row 3 ('new/01.png'): mark is ''"),
        ("path,mark\nnew/00.png,fine\nnew/00.png,defect\n", "mark is defect, and fine in row 2"),
        ("path,mark\ngone.png,fine\n", "there is no file"),
        ("path,mark\nnew/00.png,fine\ncopy.png,defect\n", "or a copy of it as fine"),
        ("path,mark\ngood/00.png,defect\n", "was fitted on it as a normal image"),
    ],
)
def test_wrong_marks_are_refused_and_nothing_is_written(text, message, plant, command, tmp_path):
    shutil.copytree(plant.new, tmp_path / "p/new")
    shutil.copytree(plant.good, tmp_path / "p/good")
    shutil.copy(plant.new / "00.png", tmp_path / "p/copy.png")
    (tmp_path / "marks.csv").write_text(text)
    args = ("--marks", tmp_path / "marks.csv", "--root", tmp_path / "p")
    done = command("update", plant.model, "-o", tmp_path / "new", *args)
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert sorted(os.listdir(tmp_path)) == ["marks.csv", "p"]


def test_unreadable_marked_images_are_all_listed_and_nothing_is_written(plant, command, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no image")
    done = command("update", plant.model, "-o", tmp_path / "new", "--fine", tmp_path)
    assert done.exit_code == 2
    assert "a.png'" in done.stderr
    assert "b.png'" in done.stderr
    assert "nothing was written; unreadable: 2" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


def test_models_that_cannot_be_updated_say_why(plant, command, tmp_path):
    for name, parameters in (("gmm", {"density": "gmm"}), ("cross", {"calibration": "cross"})):
        clone(plant.detector).set_params(**parameters).fit(files(plant.good)).save(tmp_path / name)
        done = command("update", tmp_path / name, "-o", tmp_path / "b", "--fine", plant.new)
        assert done.exit_code == 1
        assert "fit again" in done.stderr.lower()
    assert sorted(os.listdir(tmp_path)) == ["cross", "gmm"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("-o", "OUT"), "nothing is marked"),
        (("--fine", "NEW"), "Missing option '-o'"),
        (("-o", "MODEL", "--fine", "NEW"), "is the model itself"),
        (("-o", "OUT", "--fine", "missing"), "'missing' does not exist"),
        (("-o", "OUT", "--fine", "NEW", "--root", "NEW"), "--root is for --marks"),
        (("-o", "no/new", "--fine", "NEW"), "there is no folder"),
    ],
)
def test_wrong_usage_of_update_is_refused(args, message, plant, command, tmp_path):
    named = {"NEW": plant.new, "MODEL": plant.model, "OUT": tmp_path / "new"}
    done = command("update", plant.model, *(named.get(arg, arg) for arg in args))
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert os.listdir(tmp_path) == []


# threshold


def test_a_threshold_is_that_of_set_threshold(plant, command, tmp_path):
    new = tmp_path / "new"
    done = command("threshold", plant.model, "--false-alarms", 0.3, "-o", new)
    assert done.exit_code == 0, done.output
    wanted, moved = load(plant).set_threshold(target_fpr=0.3), TransformalyDetector.load(new)
    assert moved.offset_ == wanted.offset_ != plant.detector.offset_
    assert moved.contamination_ == 0.3
    assert "30 % of normal images, on average over deployments" in done.stdout
    done = command("threshold", plant.model, "--false-alarms", 0.4, "--confidence", 0.9, "-o", new)
    wanted.set_threshold(target_fpr=0.4, confidence=0.9)
    assert TransformalyDetector.load(new).offset_ == wanted.offset_
    assert "at most 40 % of normal images, in 90 % of deployments" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "Missing option '--false-alarms'"),
        (("--false-alarms", "5"), "0<x<1"),
        (("--false-alarms", "0.01", "--confidence", "0.95"), "takes at least 299 calibration"),
        (("--false-alarms", "0.001"), "too few for a false-alarm rate of 0.001"),
        (("--false-alarms", "0.2", "--confidence", "95"), "0<x<1"),
    ],
)
def test_thresholds_that_cannot_be_are_refused(args, message, plant, command, tmp_path):
    done = command("threshold", plant.model, "-o", tmp_path / "new", *args)
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert os.listdir(tmp_path) == []
