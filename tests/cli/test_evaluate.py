"""`skanomaly evaluate` and `compare`: figures, images that the model knows, limits, tables."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone

from skanomaly_vit.evaluation import compare_fitted, evaluate_fitted


def files(folder):
    return sorted(str(path) for path in folder.rglob("*.png"))


@pytest.fixture(scope="module")
def evaluation(plant):
    paths = files(plant.new) + files(plant.defect)
    kinds = ["-"] * 20 + ["moved"] * 5 + ["noise"] * 8
    y = np.repeat([1, -1], [20, 13])
    return paths, evaluate_fitted(plant.detector, paths, y, kinds=kinds)


def test_figures_are_those_of_evaluate_fitted(plant, command, evaluation):
    paths, wanted = evaluation
    args = ("evaluate", plant.model, "--normal", plant.new, "--anomaly", plant.defect)
    done = command(*args, "--format", "json", "--worst", 3)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["n_normal"], found["n_anomalies"]) == (20, 13)
    assert found["auroc"] == wanted.auroc
    assert found["auroc_interval"] == list(wanted.auroc_interval)
    assert found["n_false_alarms"] == wanted.n_false_alarms
    assert found["false_alarms_interval"] == list(wanted.false_alarms.interval)
    assert found["recall"] == wanted.recall.share
    assert [each["kind"] for each in found["by_kind"]] == ["moved", "noise"]
    assert [each["recall"] for each in found["at_rates"]] == wanted.at_rates.recall.tolist()
    assert found["remarks"] == wanted.remarks
    assert found["threshold_rate"] == 0.2
    p_values = plant.detector.p_values(paths)
    for key, chosen in (("misses", wanted.misses), ("alarms", wanted.alarms)):
        assert [each["path"] for each in found[key]] == [paths[i] for i in chosen[:3]]
        assert [each["p_value"] for each in found[key]] == p_values[chosen[:3]].tolist()
    assert min(len(found["alarms"]), len(found["misses"])) > 0
    text = command(*args).stdout
    assert f"AUROC                  {wanted.auroc:.3f}" in text
    assert f"{wanted.n_false_alarms} of 20" in text
    assert found["alarms"][0]["path"] in text
    assert "20 normal images are too few to measure at 1 % false alarms" in text


def test_a_table_gives_labels_and_kinds(plant, command, tmp_path, evaluation):
    _, wanted = evaluation
    table = tmp_path / "labels.csv"
    rows = ["Label,path,operator,kind"]
    rows += [f"{'Normal' if i % 2 else 'fine'},new/{i:02}.png,me," for i in range(20)]
    rows += [f"defect,defect/noise/{i:02}.png,me,noise" for i in range(8)]
    rows += [f"anomaly,{plant.defect}/moved/{i:02}.png,me,moved" for i in range(5)]
    table.write_text("\ufeff" + "\r\n".join(rows) + "\r\n\r\n", encoding="utf-8")
    args = ("evaluate", plant.model, "--labels", table, "--format", "json")
    done = command(*args, "--root", plant.root)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["auroc"] == wanted.auroc
    assert [each["n_images"] for each in found["by_kind"]] == [5, 8]
    beside = plant.root / "labels.csv"  # paths begin from the folder of the table
    shutil.copy(table, beside)
    assert json.loads(command(*args[:3], beside, *args[4:]).stdout)["auroc"] == wanted.auroc
    beside.unlink()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column path and no column label; its header is ''"),
        ("path;label\n", "has no column path and no column label; its header is 'path;label'"),
        ("path,label\n", "has no rows below its header"),
        ("path,label\nnew/00.png,1\n", "row 2 ('new/00.png'): label is '1', which is none of"),
        ("path,label\n,fine\n", "row 2 has no path"),
        ("path,label\nnew/00.png,fine\n\nnew/no.png,fine\n", "row 3: there is no file"),
        (
            "path,label\nnew/00.png,fine\n./new/00.png,defect\n",
            "label is anomaly, and normal in row 2",
        ),
        ("path,label\nnew/00.png,fine\n", "no images that are anomaly"),
    ],
)
def test_a_wrong_table_is_refused_with_the_row(text, message, plant, command, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(text)
    done = command("evaluate", plant.model, "--labels", table, "--root", plant.root)
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())


def test_images_that_the_model_knows_are_refused_or_left_out(plant, command, tmp_path):
    # Under another name, which does not matter.
    shutil.copytree(plant.new, tmp_path / "mixed")
    shutil.copy(plant.good / "00.png", tmp_path / "mixed/a.png")
    args = ("evaluate", plant.model, "--normal", tmp_path / "mixed", "--anomaly", plant.defect)
    done = command(*args)
    assert done.exit_code == 1
    assert "mixed/a.png" in done.stderr
    assert "or add --leave-out-known" in " ".join(done.stderr.split())
    done = command(*args, "--leave-out-known", "--format", "json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["n_left_out"], found["n_normal"]) == (1, 20)


@pytest.mark.parametrize(
    ("limits", "code", "message"),
    [
        (("--min-auroc", 0.5, "--max-false-alarms", 1), 0, ""),
        (("--min-auroc", 1), 4, "below --min-auroc 1"),
        (("--max-false-alarms", 0), 4, "above --max-false-alarms 0"),
    ],
)
def test_limits_have_an_exit_code(limits, code, message, plant, command, evaluation):
    assert 0.5 < evaluation[1].auroc < 1
    args = ("evaluate", plant.model, "--normal", plant.new, "--anomaly", plant.defect)
    done = command(*args, *limits)
    assert done.exit_code == code
    assert "AUROC" in done.stdout  # the figures are there all the same
    assert message in done.stderr


def test_unreadable_images_are_told_and_left_out(plant, command, tmp_path):
    shutil.copytree(plant.new, tmp_path / "new")
    (tmp_path / "new/broken.png").write_bytes(b"no image")
    args = ("--anomaly", plant.defect, "--format", "json")
    done = command("evaluate", plant.model, "--normal", tmp_path / "new", *args)
    assert done.exit_code == 2
    assert "broken.png': cannot identify" in done.stderr
    assert json.loads(done.stdout)["n_normal"] == 20


def test_pictures_are_written(plant, command, tmp_path):
    args = ("evaluate", plant.model, "--normal", plant.new, "--anomaly", plant.defect)
    done = command(*args, "--pictures", tmp_path / "a/b", "--worst", 1)
    assert done.exit_code == 0, done.output
    names = ["false_alarms.png", "misses.png", "scores.png"]
    assert sorted(os.listdir(tmp_path / "a/b")) == names
    for name in os.listdir(tmp_path / "a/b"):
        with Image.open(tmp_path / "a/b" / name) as picture:
            assert picture.size[0] > 500


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "no images that are normal or anomaly"),
        (("--normal", "NEW"), "no images that are anomaly"),
        (("--anomaly", "NEW"), "no images that are normal"),
        (("--normal", "missing", "--anomaly", "DEFECT"), "'missing' does not exist"),
        (("--normal", "NEW", "--anomaly", "DEFECT", "--root", "NEW"), "--root is for --labels"),
        (("--normal", "NEW", "--anomaly", "DEFECT", "--confidence", "1"), "0<x<1"),
        (("--normal", "NEW", "--anomaly", "DEFECT", "--min-auroc", "90"), "0<=x<=1"),
        (("--normal", "NEW", "--anomaly", "NEW"), "copies of one image"),
    ],
)
def test_wrong_usage_is_refused(args, message, plant, command):
    named = {"NEW": plant.new, "DEFECT": plant.defect}
    done = command("evaluate", plant.model, *(named.get(arg, arg) for arg in args))
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""


# compare


@pytest.fixture(scope="module")
def other(plant, tmp_path_factory):
    detector = clone(plant.detector).set_params(random_state=1, pooling="mean")
    detector.fit(files(plant.good)).set_threshold(target_fpr=0.4)
    path = tmp_path_factory.mktemp("other") / "b.skanomaly"
    detector.save(path)
    return detector, path


def test_a_comparison_is_that_of_compare_fitted(plant, command, other, evaluation):
    paths, before = evaluation
    detector, path = other
    y = np.repeat([1, -1], [20, 13])
    wanted = compare_fitted(plant.detector, detector, paths, y)
    args = ("compare", plant.model, path, "--normal", plant.new, "--anomaly", plant.defect)
    found = json.loads(command(*args, "--format", "json").stdout)
    assert found["auroc"]["difference"] == wanted.auroc.difference
    assert found["auroc"]["p_value"] == wanted.auroc.p_value
    assert found["old"]["auroc"] == before.auroc
    assert found["new"]["auroc"] == wanted.new.auroc
    only_new = [paths[i] for i in wanted.false_alarms.only_new]
    assert found["false_alarms"]["only_new"] == only_new
    assert len(only_new) > 1
    done = command(*args, "--list", 1)
    assert done.exit_code == 0, done.output
    assert "False alarms by the new model only:" in done.stdout
    at_10 = [f"{100 * each.at_rates.recall[3]:.3g} %" for each in (before, wanted.new)]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("found at 10 %")]
    assert " ".join(line.split()) == " ".join(["found at 10 %", *at_10])
    assert only_new[0] in done.stdout
    assert f"and {len(only_new) - 1} more" in done.stdout
    assert only_new[0] not in command(*args, "--list", 0).stdout


def test_a_comparison_refuses_what_one_of_them_knows(plant, command, tmp_path):
    detector = clone(plant.detector).fit(files(plant.new))
    detector.save(tmp_path / "b")
    args = ("compare", plant.model, tmp_path / "b", "--anomaly", plant.defect, "--normal")
    done = command(*args, plant.new)
    assert done.exit_code == 1
    assert "has learned from" in done.stderr
    done = command(*args, plant.new, "--leave-out-known")
    assert done.exit_code == 1
    assert "20 that the detector knows were left out" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("MODEL",), "Missing argument 'NEW'"),
        (("MODEL", "NEW", "--normal", "NEW"), "is a directory"),
        (("MODEL", "IMAGE", "--normal", "NEW", "--anomaly", "DEFECT"), "an image"),
        (("MODEL", "MODEL"), "no images that are normal or anomaly"),
        (("MODEL", "MODEL", "--normal", "NEW", "--anomaly", "DEFECT", "--list", "-1"), "x>=0"),
    ],
)
def test_wrong_usage_of_compare_is_refused(args, message, plant, command):
    image = plant.new / "00.png"
    named = {"NEW": plant.new, "DEFECT": plant.defect, "MODEL": plant.model, "IMAGE": image}
    done = command("compare", *(named.get(arg, arg) for arg in args))
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
