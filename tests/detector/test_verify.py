"""`verify`: the same scores on another machine, or the stage that is the first to differ."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from images import blobs

from skanomaly_vit import TransformalyDetector
from skanomaly_vit._backbone.precision import has_fast_bfloat16
from skanomaly_vit._images import source as _source
from skanomaly_vit._images.fixture_files import draw_files
from skanomaly_vit.detector._saved_fixtures import write_fixtures
from skanomaly_vit.persistence._record import StateRecord

DATA = Path(__file__).parents[1] / "data"
IMAGES = blobs(np.random.default_rng(0), 40)


def fit(X=IMAGES, **parameters):
    quick = {"backbone": "skanomaly_tiny", "pretrained": False, "image_size": 32, "n_blocks": 2}
    return TransformalyDetector(**quick | {"random_state": 0} | parameters).fit(X)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "m.skanomaly"
    fit(validation_fraction=0.5, contamination=0.2).save(path)
    return path


@pytest.fixture
def loaded(model):
    return TransformalyDetector.load(model)


def stages(verified):
    return {stage["name"]: stage for stage in verified["stages"]}


def test_the_same_machine_gives_the_same_bits(loaded):
    verified = loaded.verify()
    assert verified["same"] is True
    assert verified["difference"] == 0
    assert verified["first"] is None
    assert verified["unit"] == loaded.calibration_scores_.std()
    names = ["decoding", "resizing", "backbone", "students", "densities"]
    assert list(stages(verified)) == names
    assert all(each["same"] and each["n_compared"] for each in verified["stages"])
    json.dumps(verified, allow_nan=False)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_of_any_size_give_the_same(loaded, batch_size):
    assert loaded.set_params(batch_size=batch_size).verify()["difference"] < 1e-3


def one_level_up(monkeypatch, detector):
    decode = _source.decode_image
    monkeypatch.setattr(
        _source, "decode_image", lambda item, limit: np.minimum(decode(item, limit), 254) + 1
    )


def nearest_pixels(monkeypatch, detector):
    prepare = _source.prepare
    monkeypatch.setattr(
        _source,
        "prepare",
        lambda pixels, preprocessing: prepare(
            pixels, dataclasses.replace(preprocessing, interpolation="nearest")
        ),
    )


@torch.no_grad()
def other_weights(monkeypatch, detector):
    next(detector._held_teacher().model.blocks[0].parameters()).add_(0.01)


@torch.no_grad()
def other_student(monkeypatch, detector):
    for weights in detector.distillation_.students_[1].state_dict().values():
        weights.mul_(1.05)


def other_density(monkeypatch, detector):
    detector.density_["discrepancy"].scale_ *= 1.01


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("decoding", one_level_up),
        ("resizing", nearest_pixels),
        ("backbone", other_weights),
        ("students", other_student),
        ("densities", other_density),
    ],
)
def test_the_stage_that_is_the_first_to_differ_is_named(loaded, monkeypatch, stage, change):
    loaded._held_teacher()
    change(monkeypatch, loaded)
    verified = loaded.verify()
    assert verified["first"] == stage
    assert stages(verified)[stage]["difference"] > 0
    before = list(stages(verified)).index(stage)
    assert all(each["difference"] == 0 for each in verified["stages"][:before])
    assert loaded.verify(tolerance=0)["same"] is False
    assert loaded.verify(tolerance=1e9)["same"] is True


def test_one_level_is_one_level(loaded, monkeypatch):
    one_level_up(monkeypatch, loaded)
    decoding = stages(loaded.verify())["decoding"]
    assert (decoding["difference"], decoding["unit"]) == (1, "levels of 255")


def test_rounding_within_all_stages_is_named_where_it_begins(loaded):
    with torch.no_grad():
        next(loaded._held_teacher().model.blocks[0].parameters()).mul_(1 + 1e-6)
    verified = loaded.verify(tolerance=0)
    assert verified["same"] is False
    assert verified["first"] == "backbone"
    assert stages(verified)["backbone"]["same"] is True
    assert loaded.verify()["first"] is None


def test_a_value_that_is_no_number_differs(loaded):
    with torch.no_grad():
        next(loaded._held_teacher().model.blocks[1].parameters()).fill_(torch.nan)
    verified = loaded.verify()
    assert verified["first"] == "backbone"
    assert stages(verified)["backbone"]["difference"] is None
    assert verified["same"] is False


@pytest.mark.parametrize(
    "parameters",
    [
        {"roi": np.ones((32, 32)) * (np.arange(32) < 16)},
        {"keep_aspect": True},
        {"tiles": (2, 2)},
        {"feature_spaces": "pretrained"},
        {"feature_spaces": "discrepancy"},
        {"recipe": "paper", "n_blocks": 2, "student": "block"},
        {"validation_fraction": 0.0},
        {"max_pixels": 2000},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
@pytest.mark.filterwarnings("ignore::skanomaly_vit.exceptions.CalibrationWarning")
def test_each_kind_of_model_can_be_verified(parameters, tmp_path):
    fit(**parameters).save(tmp_path / "m")
    verified = TransformalyDetector.load(tmp_path / "m").verify()
    assert verified["difference"] == 0
    assert stages(verified)["densities"]["n_compared"]
    assert ("students" in stages(verified)) == (parameters.get("feature_spaces") != "pretrained")


@pytest.mark.filterwarnings("ignore::skanomaly_vit.exceptions.CalibrationWarning")
def test_a_region_of_one_pixel_counts_in_fixtures_of_any_size(tmp_path):
    pixel = np.zeros((32, 32), bool)
    pixel[31, 31] = True
    fit(roi=pixel).save(tmp_path / "m")
    loaded = TransformalyDetector.load(tmp_path / "m")
    assert loaded.verify()["difference"] == 0
    loaded._fitted_framing = dataclasses.replace(loaded._fitted_framing, roi=pixel[::-1])
    assert loaded.verify()["first"] == "resizing"


def test_a_model_of_flattened_rows_is_verified_by_files(tmp_path):
    fit(IMAGES.reshape(len(IMAGES), -1), image_shape=(32, 32, 3), validation_fraction=0.5).save(
        tmp_path / "m"
    )
    assert TransformalyDetector.load(tmp_path / "m").verify()["difference"] == 0


def test_nothing_is_recalled_from_a_cache(loaded, tmp_path, monkeypatch):
    loaded.set_params(memory=str(tmp_path / "cache"))
    assert loaded.verify()["same"]
    nearest_pixels(monkeypatch, loaded)
    assert stages(loaded.verify())["backbone"]["difference"] > 0


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_older_files_carry_no_fixtures_and_get_them(number, tmp_path):
    loaded = TransformalyDetector.load(DATA / f"format-{number}.skanomaly")
    with pytest.raises(ValueError, match=r"carries no fixtures.*load and save it again"):
        loaded.verify()
    loaded.save(tmp_path / "new")
    verified = TransformalyDetector.load(tmp_path / "new").verify()
    assert verified["difference"] == 0
    assert bool(stages(verified)["densities"]["n_compared"]) == (number > 1)


def test_a_model_of_the_lowest_versions_scores_the_same_here():
    verified = TransformalyDetector.load(DATA / "lowest-versions.skanomaly").verify()
    assert verified["same"], verified
    assert verified["first"] is None
    assert all(stage["n_compared"] for stage in verified["stages"])


def test_a_saved_file_keeps_the_numbers_of_the_first_one(loaded, tmp_path):
    other_density(None, loaded)
    loaded.save(tmp_path / "again")
    assert TransformalyDetector.load(tmp_path / "again").verify()["first"] == "densities"


@pytest.mark.parametrize(
    "change",
    [
        lambda detector: detector.fit(IMAGES),
        lambda detector: detector.partial_fit(IMAGES[:4]),
        lambda detector: detector.calibrate(blobs(np.random.default_rng(5), 30), replace=True),
        lambda detector: detector.tune_fusion(255 - IMAGES[:3]),
    ],
    ids=["fit", "partial_fit", "calibrate", "tune_fusion"],
)
@pytest.mark.filterwarnings("ignore::skanomaly_vit.exceptions.CalibrationWarning")
def test_what_changes_scores_needs_new_numbers(loaded, change, tmp_path):
    change(loaded)
    with pytest.raises(ValueError, match="carries no fixtures"):
        loaded.verify()
    loaded.save(tmp_path / "new")
    assert TransformalyDetector.load(tmp_path / "new").verify()["difference"] == 0


def test_another_threshold_keeps_them(loaded):
    assert loaded.set_threshold(target_fpr=0.3).verify()["difference"] == 0


def test_a_tolerance_below_0_is_refused(loaded):
    with pytest.raises(ValueError, match="tolerance=-1 is not 0 or above"):
        loaded.verify(tolerance=-1)


def test_fixtures_are_small_and_drawn_alike():
    assert sum(map(len, draw_files())) < 4000
    assert draw_files() == draw_files()


def test_a_model_file_grows_by_some_kilobytes(loaded):
    record = StateRecord({}, {}, "detector")
    write_fixtures(record, loaded._fixtures)
    n_bytes = sum(tensor.nbytes for tensor in record.tensors.values())
    assert n_bytes + len(json.dumps(record.values)) < 12_000


# Across processes, as continuous integration runs it


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def real_model(request, tmp_path_factory):
    if request.param == "bfloat16" and not has_fast_bfloat16(torch.device("cpu")):
        pytest.skip("the processor has no instructions for bfloat16")
    path = tmp_path_factory.mktemp(request.param) / "m.skanomaly"
    fit(
        backbone="embedded", pretrained=True, image_size=56, dtype=request.param,
        validation_fraction=0.5, contamination=0.2,
    ).save(path)  # fmt: skip
    return path


@pytest.mark.parametrize("n_threads", [1, 2])
def test_threads_of_another_process_change_nothing(real_model, n_threads):
    assert verify_elsewhere(real_model, OMP_NUM_THREADS=str(n_threads))["same"]


def test_another_processor_only_rounds_otherwise(real_model):
    older = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    # A model of forty discs 32 pixels wide tells more apart than one of photos does.
    allowed = {"float32": "0.001", "bfloat16": "0.5"}[real_model.parent.name[:-1]]
    found = verify_elsewhere(real_model, "--tolerance", allowed, **older)
    assert found["same"]
    assert all(stage["same"] for stage in found["stages"])


def verify_elsewhere(model, *options, **environment):
    command = [sys.executable, "-m", "skanomaly_vit", "verify", str(model), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)
