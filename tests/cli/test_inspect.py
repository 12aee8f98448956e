"""`skanomaly inspect`, `audit` and `drift`: what a model says of an image, of a folder, of days."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from images import blobs
from PIL import Image
from sklearn.base import clone

from skanomaly_vit import TransformalyDetector


def files(folder):
    return sorted(str(path) for path in folder.rglob("*.png"))


# inspect


def test_what_the_model_objects_to_adds_up(plant, command):
    image = files(plant.defect)[-1]
    found = json.loads(command("inspect", plant.model, image, "--json").stdout)
    assert found["score"] == pytest.approx(plant.detector.score_samples([image])[0], rel=1e-12)
    assert found["p_value"] == plant.detector.p_values([image])[0]
    assert found["flag"] is True
    views, spaces = plant.detector.score_views([image]), plant.detector.score_spaces([image])
    wanted = {name: values[0] for name, values in views.items()}
    wanted["discrepancy"] = spaces["discrepancy"][0]
    assert {part["name"]: part["score"] for part in found["parts"]} == wanted
    p_values = [part["p_value"] for part in found["parts"]]
    assert p_values == sorted(p_values)
    assert found["n_calibrating"] == len(plant.detector.calibration_scores_)
    errors = plant.detector.distillation_.transform([image])[0]
    blocks = plant.detector.distillation_.block_indices_
    by_block = {each["block"]: each for each in found["blocks"]}
    assert [by_block[block]["error"] for block in blocks] == pytest.approx(errors, rel=1e-5)
    calibrating = [files(plant.good)[i] for i in plant.detector.validation_indices_]
    usual = np.median(plant.detector.distillation_.transform(calibrating), axis=0)
    assert [by_block[block]["usual"] for block in blocks] == pytest.approx(usual, rel=1e-5)
    ratios = [each["ratio"] for each in found["blocks"]]
    assert ratios == sorted(ratios, reverse=True)
    text = command("inspect", plant.model, image).stdout
    assert f"{image}: flagged" in text
    assert "no pictures and no names" in text
    assert "add --normal FOLDER" in text


def test_a_part_that_scores_as_usual_does_not_object(plant, command):
    scores = plant.detector.score_samples(files(plant.new))
    image = files(plant.new)[np.argmax(scores)]
    found = json.loads(command("inspect", plant.model, image, "--json").stdout)
    assert found["flag"] is False
    assert "passed" in command("inspect", plant.model, image).stdout.splitlines()[0]


def test_a_model_without_calibration_or_students_says_less(plant, command, tmp_path):
    detector = clone(plant.detector).set_params(validation_fraction=0)
    detector.fit(files(plant.good)).save(tmp_path / "a")
    found = json.loads(command("inspect", tmp_path / "a", files(plant.new)[0], "--json").stdout)
    assert found["p_value"] is None
    assert {part["usual"] for part in found["parts"]} == {None}
    assert "p-value   " not in command("inspect", tmp_path / "a", files(plant.new)[0]).stdout
    detector.set_params(feature_spaces="pretrained").fit(files(plant.good)).save(tmp_path / "b")
    done = command("inspect", tmp_path / "b", files(plant.new)[0])
    assert done.exit_code == 0, done.output
    assert "Errors of the students" not in done.stdout


def test_parts_count_groups_once(plant, command, tmp_path):
    paths = files(plant.good)
    detector = clone(plant.detector).fit(paths, groups=np.arange(len(paths)) // 4)
    detector.save(tmp_path / "a")
    image = files(plant.defect / "noise")[0]
    found = json.loads(command("inspect", tmp_path / "a", image, "--json").stdout)
    n_groups = len(set(detector.calibration_units_))
    assert n_groups < len(detector.calibration_scores_)
    assert found["p_value"] == 1 / (n_groups + 1)
    assert min(part["p_value"] for part in found["parts"]) == 1 / (n_groups + 1)


def test_parts_of_a_tile_are_compared_with_the_worst_tiles_of_images(plant, command, tmp_path):
    detector = clone(plant.detector).set_params(tiles=(1, 2)).fit(files(plant.good))
    detector.save(tmp_path / "a")
    image = files(plant.new)[0]
    found = json.loads(command("inspect", tmp_path / "a", image, "--json").stdout)
    calibrating = [files(plant.good)[i] for i in detector.validation_indices_]
    known = detector.score_views(calibrating) | {
        "discrepancy": detector.score_spaces(calibrating)["discrepancy"]
    }
    assert found["n_calibrating"] == len(calibrating)
    for part in found["parts"]:
        scores = known[part["name"]]
        assert part["usual"] == pytest.approx(np.median(scores), abs=1e-5)
        n_as_low = (scores <= part["score"]).sum()
        assert part["p_value"] == pytest.approx((1 + n_as_low) / (len(scores) + 1))
    assert "Parts of the worst tile's score" in command("inspect", tmp_path / "a", image).stdout


def test_a_picture_shows_the_map(plant, command, tmp_path):
    done = command("inspect", plant.model, files(plant.new)[0], "--picture", tmp_path / "a.png")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > 300


@pytest.fixture(scope="module")
def look_alikes(plant, tmp_path_factory):
    """Normal images, a copy of a new one among them."""
    folder = tmp_path_factory.mktemp("neighbors")
    for path in files(plant.good)[:8]:
        shutil.copy(path, folder)
    shutil.copy(files(plant.new)[0], folder / "copy.png")
    return folder


def test_the_nearest_normal_images_are_named(plant, command, look_alikes):
    image = files(plant.new)[0]
    done = command(
        "inspect", plant.model, image, "--normal", look_alikes, "--neighbors", 3, "--json"
    )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["neighbors"]
    assert (found["n_images"], len(found["nearest"])) == (9, 3)
    paths = files(look_alikes)
    rows, target = (plant.detector.features_.transform(X) for X in (paths, [image]))
    rows, target = rows.astype(float), target.astype(float)
    scaled = (rows - target) / rows.std(axis=0)
    distances = np.sqrt((scaled**2).mean(axis=1))
    order = np.argsort(distances)[:3]
    assert [each["path"] for each in found["nearest"]] == [paths[i] for i in order]
    assert found["nearest"][0]["path"].endswith("copy.png")
    assert [each["distance"] for each in found["nearest"]] == pytest.approx(
        distances[order], rel=1e-4, abs=1e-4
    )
    between = np.sqrt((((rows - rows[order[1]]) / rows.std(axis=0)) ** 2).mean(axis=1))
    assert found["nearest"][1]["own"] == pytest.approx(np.sort(between)[1], rel=1e-4)
    text = command("inspect", plant.model, image, "--normal", look_alikes).stdout
    assert f"Nearest of 9 images in {look_alikes}" in text
    assert len(text[text.index("Nearest of") :].splitlines()) == 2 + 5


def test_an_image_is_no_neighbor_of_itself(plant, command, look_alikes):
    image = look_alikes / "copy.png"
    done = command("inspect", plant.model, image, "--normal", look_alikes, "--json")
    found = json.loads(done.stdout)["neighbors"]
    assert found["n_images"] == 8
    assert str(image) not in [each["path"] for each in found["nearest"]]


def test_neighbors_of_a_model_of_errors_alone_are_near_in_these(
    plant, command, look_alikes, tmp_path
):
    detector = clone(plant.detector).set_params(feature_spaces="discrepancy")
    detector.fit(files(plant.good)).save(tmp_path / "a")
    done = command(
        "inspect", tmp_path / "a", files(plant.new)[0], "--normal", look_alikes, "--json"
    )
    assert done.exit_code == 0, done.stderr
    first = json.loads(done.stdout)["neighbors"]["nearest"][0]
    assert first["path"].endswith("copy.png")
    assert first["distance"] < 1e-4


def test_a_picture_shows_the_neighbors(plant, command, look_alikes, tmp_path):
    heights = []
    for options in ((), ("--normal", look_alikes)):
        picture = tmp_path / "a.png"
        done = command("inspect", plant.model, files(plant.new)[0], "--picture", picture, *options)
        assert done.exit_code == 0, done.stderr
        with Image.open(picture) as drawn:
            heights.append(drawn.size[1])
    assert heights[1] > 1.5 * heights[0]


def test_neighbors_that_cannot_be_read_are_told(plant, command, look_alikes, tmp_path):
    shutil.copytree(look_alikes, tmp_path / "normal")
    (tmp_path / "normal/broken.png").write_bytes(b"no image")
    done = command("inspect", plant.model, files(plant.new)[0], "--normal", tmp_path / "normal")
    assert done.exit_code == 2
    assert "broken.png" in done.stderr
    assert "Nearest of 9 images" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("IMAGE", "--neighbors", "3"), "--neighbors is for --normal FOLDER"),
        (("IMAGE", "--normal", "ONE"), "holds 1 other image(s) that can be read"),
        ((), "Missing argument 'IMAGE'"),
        (("missing.png",), "'missing.png' does not exist"),
        (("FOLDER",), "is a directory"),
        (("BROKEN",), "cannot be decoded"),
        (("IMAGE", "--picture", "a.jpg"), "does not end in .png"),
        (("IMAGE", "--picture", "no/a.png"), "there is no folder"),
    ],
)
def test_wrong_usage_of_inspect_is_refused(args, message, plant, command, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "one").mkdir()
    shutil.copy(files(plant.new)[1], tmp_path / "one")
    named = {"IMAGE": files(plant.new)[0], "FOLDER": plant.new, "BROKEN": tmp_path / "broken.png"}
    named["ONE"] = tmp_path / "one"
    done = command("inspect", plant.model, *(named.get(arg, arg) for arg in args))
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""


# audit

SMALL = ("--image-size", 28, "--n-blocks", 1)


@pytest.fixture(scope="module")
def mixed(plant, tmp_path_factory):
    """Sixteen good images and an odd one."""
    folder = tmp_path_factory.mktemp("mixed")
    for path in files(plant.good)[:16]:
        shutil.copy(path, folder)
    shutil.copy(files(plant.defect / "noise")[0], folder / "wrong.png")
    return folder


def test_an_audit_is_that_of_the_detector(mixed, command):
    done = command("audit", mixed, *SMALL, "--folds", 3, "--seed", 1, "--json")
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    detector = TransformalyDetector(image_size=28, n_blocks=1, random_state=1)
    wanted = detector.audit(files(mixed), cv=3)
    assert [each["path"] for each in found] == [files(mixed)[i] for i in wanted.order]
    assert [each["score"] for each in found] == wanted.scores[wanted.order].tolist()
    assert found[0]["path"].endswith("wrong.png")
    done = command("audit", mixed, *SMALL, "--folds", 3, "--seed", 1, "--top", 2)
    assert [line.split()[-1] for line in done.stdout.splitlines()[1:]] == [
        each["path"] for each in found[:2]
    ]


def test_an_audit_lists_all_unreadable_images(mixed, command, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    done = command("audit", mixed, tmp_path, *SMALL)
    assert done.exit_code == 2
    assert "broken.png'" in done.stderr
    assert "nothing was audited" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "Missing argument 'IMAGES...'"),
        (("missing",), "'missing' does not exist"),
        (("MIXED", "--folds", 1), "x>=2"),
        (("MIXED", "--folds", 9), "9 fits need at least 18 images"),
        (("MIXED", "--image-size", 57), "multiple of the backbone's patch size"),
        (("MIXED", "--backbone", "vit_smal"), "not a timm model"),
    ],
)
def test_wrong_usage_of_audit_is_refused(args, message, mixed, command):
    done = command("audit", *({"MIXED": mixed}.get(arg, arg) for arg in args))
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""


# drift


@pytest.fixture(scope="module")
def brighter(tmp_path_factory):
    """Good images under a brighter lamp."""
    folder = tmp_path_factory.mktemp("days") / "tuesday"
    folder.mkdir()
    for i, image in enumerate(blobs(np.random.default_rng(5), 20)):
        Image.fromarray(np.clip(image * 1.05, 0, 255).astype(np.uint8)).save(folder / f"{i:02}.png")
    return folder


def test_each_batch_is_tested_as_the_detector_does(plant, command, brighter):
    done = command("drift", plant.model, plant.new, brighter, "--json")
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for row, folder in zip(found, (plant.new, brighter), strict=True):
        wanted = plant.detector.drift(files(folder))
        assert row["batch"] == str(folder)
        assert {key: row[key] for key in wanted} == wanted
        assert row["flagged"] == (plant.detector.predict(files(folder)) == -1).mean()
    assert found[1]["p_value"] < found[0]["p_value"]
    text = command("drift", plant.model, plant.new, brighter).stdout
    assert "tuesday" in text
    assert "Compare batches of about 20 images" in text


def test_a_batch_that_lies_below_all_is_drift(plant, command, tmp_path):
    for day in "ab":
        shutil.copytree(plant.defect / "noise", tmp_path / "dark" / day)
    found = json.loads(command("drift", plant.model, tmp_path / "dark", "--json").stdout)
    assert (found["direction"], found["flagged"], found["n_compared"]) == ("lower", 1, 0)
    assert found["p_value"] < 0.01
    text = command("drift", plant.model, tmp_path / "dark").stdout
    assert text.splitlines()[1].split()[1:4] == ["lower", "100", "%"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_of_scores_stands_for_its_images(kind, plant, command, brighter, tmp_path):
    table = tmp_path / f"tuesday.{kind}"
    assert command("score", plant.model, brighter, "-o", table).exit_code == 0
    of_table, of_folder = (
        json.loads(command("drift", plant.model, batch, "--json").stdout)
        for batch in (table, brighter)
    )
    assert of_table["p_value"] == pytest.approx(of_folder["p_value"], rel=1e-3)
    assert of_table["flagged"] == of_folder["flagged"]


def test_scores_of_another_model_are_refused(plant, command, brighter, tmp_path):
    clone(plant.detector).set_params(random_state=9).fit(files(plant.good)).save(tmp_path / "b")
    table = tmp_path / "s.csv"
    command("score", tmp_path / "b", brighter, "-o", table)
    done = command("drift", plant.model, table)
    assert done.exit_code == 1
    assert "are of another model, or of one with another threshold" in " ".join(done.stderr.split())


def test_a_chart_of_days_is_written(plant, command, brighter, tmp_path):
    picture = tmp_path / "drift.png"
    done = command("drift", plant.model, plant.new, brighter, "--picture", picture)
    assert done.exit_code == 0, done.output
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 500


def test_unreadable_images_of_a_batch_are_told(plant, command, tmp_path):
    shutil.copytree(plant.new, tmp_path / "day")
    (tmp_path / "day/broken.png").write_bytes(b"no image")
    done = command("drift", plant.model, tmp_path / "day", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["n_images"] == 20
    os.mkdir(tmp_path / "bad")
    shutil.move(tmp_path / "day/broken.png", tmp_path / "bad")
    done = command("drift", plant.model, tmp_path / "bad")
    assert done.exit_code == 1
    assert "no image that can be read" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "Missing argument 'BATCHES...'"),
        (("missing",), "'missing' does not exist"),
        (("NEW", "NEW"), "a batch is there twice"),
        (("WRONG",), "is no table of `skanomaly score`"),
        (("EMPTY",), "holds no scores"),
        (("NEW", "--picture", "a.pdf"), "does not end in .png"),
    ],
)
def test_wrong_usage_of_drift_is_refused(args, message, plant, command, tmp_path):
    (tmp_path / "wrong.csv").write_text("path,mark\na,b\n")
    (tmp_path / "empty.csv").write_text("path,score,decision\n")
    named = {"NEW": plant.new, "WRONG": tmp_path / "wrong.csv", "EMPTY": tmp_path / "empty.csv"}
    done = command("drift", plant.model, *(named.get(arg, arg) for arg in args))
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_a_model_without_calibration_images_cannot_tell_drift(plant, command, tmp_path):
    detector = clone(plant.detector).set_params(validation_fraction=0)
    detector.fit(files(plant.good)).save(tmp_path / "a")
    done = command("drift", tmp_path / "a", plant.new)
    assert done.exit_code == 1
    assert "no scores of held-out images" in " ".join(done.stderr.split())
