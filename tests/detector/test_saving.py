"""Model files: what comes back, what is refused, and how they are written."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import platform
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from images import blobs
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import spearmanr
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import KernelDensity
from sklearn.svm import OneClassSVM
from sklearn.utils.validation import check_is_fitted
from students import with_student

from skanomaly_vit import (
    GaussianDensity,
    GaussianMixtureDensity,
    KNNDensity,
    TransformalyDetector,
    WhitenedKNNDensity,
)
from skanomaly_vit._backbone import loading as _backbones
from skanomaly_vit.distillation import RidgeStudent
from skanomaly_vit.exceptions import ModelFileError
from skanomaly_vit.persistence import _container as _container
from skanomaly_vit.persistence import model_card
from skanomaly_vit.persistence._record import MACHINE_PARAMETERS

DATA = Path(__file__).parents[1] / "data"
IMAGES = blobs(np.random.default_rng(0), 16)
NEW = np.concatenate(
    [
        blobs(np.random.default_rng(1), 3),
        np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8),
    ]
)


def fit(X=IMAGES, groups=None, **parameters):
    """A detector on a network of two blocks that is known by its name."""
    quick = {"backbone": "skanomaly_tiny", "pretrained": False, "image_size": 32, "n_blocks": 2}
    detector = TransformalyDetector(
        **with_student(**quick | {"random_state": 0, "max_epochs": 2} | parameters)
    )
    return detector.fit(X, groups=groups)


def round_trip(detector, folder):
    detector.save(folder / "a.skanomaly")
    return TransformalyDetector.load(folder / "a.skanomaly")


def assert_same_scores(a, b, X=NEW):
    np.testing.assert_array_equal(a.predict(X), b.predict(X))
    np.testing.assert_array_equal(a.decision_function(X), b.decision_function(X))
    for scores, maps in (
        zip(a.score_samples(X, return_map=True), b.score_samples(X, return_map=True), strict=True),
    ):
        np.testing.assert_array_equal(*scores)
        np.testing.assert_array_equal(*maps)
    for space, values in a.score_spaces(X).items():
        np.testing.assert_array_equal(values, b.score_spaces(X)[space])


def layout(values):
    """Strides, but for axes of one element, whose strides mean nothing."""
    strides = values.stride() if torch.is_tensor(values) else values.strides
    return [stride for stride, size in zip(strides, values.shape, strict=True) if size > 1]


def assert_same(a, b, name="detector"):
    """That two objects are alike in all that was fitted, in the layout of arrays, too."""
    assert type(a) is type(b) or np.isscalar(a), name
    if isinstance(a, np.ndarray | torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert layout(a) == layout(b), name
        np.testing.assert_array_equal(a, b, err_msg=name)
    elif isinstance(a, torch.nn.Module):
        assert_same(dict(a.state_dict()), dict(b.state_dict()), name)
    elif isinstance(a, dict):
        assert list(a) == list(b), name
        for key in a:
            assert_same(a[key], b[key], f"{name}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), name
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{name}[{i}]")
    elif hasattr(a, "__dict__") and type(a).__module__.startswith(("skanomaly_vit", "sklearn")):
        left, right = ({k: v for k, v in vars(x).items() if k not in IGNORED} for x in (a, b))
        assert left.keys() == right.keys(), name
        for key in left:
            assert_same(left[key], right[key], f"{name}.{key}")
    else:
        np.testing.assert_equal(a, b, err_msg=name)


IGNORED = {*MACHINE_PARAMETERS, "_teacher"}

KINDS = {
    "default": {},
    "paper": {"recipe": "paper"},
    "block students": {"student": "block"},
    "block students that stop": {
        "student": "block",
        "max_epochs": 4,
        "patience": 1,
        "learning_rate": 0.5,
    },
    "groups": {"student": "block", "validation_fraction": 0.5, "groups": np.repeat(range(8), 2)},
    "float16": {"student_dtype": "float16"},
    "bfloat16 blocks": {"student_dtype": "bfloat16", "student": "block"},
    "double": {"backbone": "skanomaly_tiny_double", "student": "block"},
    "gaussian": {"density": "gaussian"},
    "gmm": {"density": "gmm"},
    "gmm, full": {"density": GaussianMixtureDensity(n_components=3), "pca_variance": 0.9},
    "gmm, tied": {"density": GaussianMixtureDensity(covariance_type="tied")},
    "gmm, diag": {"density": GaussianMixtureDensity(covariance_type="diag")},
    "gmm, spherical": {"density": GaussianMixtureDensity(covariance_type="spherical", n_init=2)},
    "knn": {"density": "knn"},
    "knn, own": {"density": KNNDensity(n_neighbors=3, n_jobs=2)},
    "knn, drawn": {"density": KNNDensity(n_neighbors=3, max_samples=8)},
    "knn, greedy": {
        "density": KNNDensity(n_neighbors=3, max_samples=5, subsampling="greedy"),
        "pca_variance": 0.9,
    },
    "whitened knn": {"density": "whitened_knn"},
    "whitened knn, greedy": {
        "density": WhitenedKNNDensity(max_samples=5, subsampling="greedy", whitening_exponent=0.25),
        "pca_variance": 0.9,
    },
    "excess": {"density": "excess"},
    "shrinkage": {"density": GaussianDensity(shrinkage=0.5), "pca_variance": 0.5},
    "product": {"fusion": "product", "pca_variance": 0.8},
    "pretrained": {"feature_spaces": "pretrained"},
    "discrepancy": {"feature_spaces": "discrepancy"},
    "nothing held out": {"validation_fraction": 0.0, "student": "block"},
    "one block": {"n_blocks": 1, "contamination": 0.2},
    "all blocks": {"n_blocks": None, "alpha": np.float64(0.5), "random_state": np.int64(3)},
    "oblong": {"image_size": (24, 32)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_is_what_was_saved(kind, tmp_path):
    detector = fit(**KINDS[kind])
    loaded = round_trip(detector, tmp_path)
    assert_same(detector, loaded)
    assert_same_scores(detector, loaded)
    again = round_trip(loaded, tmp_path)
    assert_same(detector, again)


@pytest.mark.parametrize("student", ["ridge", "block"])
def test_the_embedded_backbone_gives_the_same_scores(student, tmp_path):
    detector = fit(backbone="embedded", pretrained=True, image_size=56, student=student)
    loaded = round_trip(detector, tmp_path)
    assert_same(detector, loaded)
    assert_same_scores(detector, loaded)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "test_vit4"])
@pytest.mark.parametrize("store_backbone", [False, True])
def test_blocks_of_other_networks_come_back(name, store_backbone, tmp_path):
    detector = fit(
        IMAGES[:10],
        backbone=name,
        image_size=None,
        student="block",
        max_epochs=1,
        store_backbone=store_backbone,
    )
    loaded = round_trip(detector, tmp_path)
    assert_same(detector, loaded)
    assert_same_scores(detector, loaded)


def test_flattened_images_and_names_of_columns_come_back(tmp_path):
    columns = [f"pixel {i}" for i in range(IMAGES[0].size)]
    frame = pd.DataFrame(IMAGES.reshape(len(IMAGES), -1), columns=columns)
    detector = fit(frame, image_shape=(32, 32, 3))
    loaded = round_trip(detector, tmp_path)
    assert_same(detector, loaded)
    np.testing.assert_array_equal(detector.score_samples(frame), loaded.score_samples(frame))
    with pytest.raises(ValueError, match="feature names"):
        loaded.score_samples(frame.rename(columns={"pixel 0": "other"}))


def test_a_machine_is_not_stored(tmp_path):
    detector = fit(n_jobs=2, device="cpu", memory=str(tmp_path / "cache"), verbose=1)
    loaded = round_trip(detector, tmp_path)
    defaults = {"n_jobs": None, "device": None, "memory": None, "verbose": 0}
    for part in (loaded, loaded.features_, loaded.distillation_):
        assert (
            defaults.items()
            >= {k: v for k, v in part.get_params().items() if k in defaults}.items()
        )
    assert_same(detector, loaded)
    assert str(tmp_path).encode() not in (tmp_path / "a.skanomaly").read_bytes()


def test_a_subclass_loads_itself(tmp_path):
    class Mine(TransformalyDetector):
        pass

    fit().save(tmp_path / "m")
    assert type(Mine.load(tmp_path / "m")) is Mine


def test_parameters_set_after_the_fit_change_no_score(tmp_path):
    detector = fit(density="gmm")
    expected = detector.score_samples(NEW)
    detector.set_params(n_blocks=1, density="knn", recipe="paper", feature_spaces="pretrained")
    detector.distillation_.set_params(student_dtype="bfloat16", student="block")
    detector.density_["discrepancy"].set_params(n_components=7, covariance_type="diag")
    loaded = round_trip(detector, tmp_path)
    np.testing.assert_array_equal(loaded.score_samples(NEW), expected)
    assert_same(detector, loaded)


def test_the_same_detector_gives_the_same_bytes_but_for_the_time(tmp_path, monkeypatch):
    detector = fit()
    monkeypatch.setattr("skanomaly_vit.persistence._card.datetime", Midnight)
    for name in ("a", "b"):
        detector.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class Midnight:
    @staticmethod
    def now(zone):
        return Midnight()

    def isoformat(self, timespec):
        return "2000-01-01T00:00:00+00:00"


# The backbone


def test_a_backbone_in_the_file_needs_no_weights(tmp_path, monkeypatch):
    detector = fit(backbone="embedded", pretrained=True, image_size=56, store_backbone=True)
    detector.save(tmp_path / "m")
    expected = detector.score_samples(NEW)
    monkeypatch.setattr(_backbones, "_embedded_weights", lambda: pytest.fail("looked for weights"))
    loaded = TransformalyDetector.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.score_samples(NEW), expected)


def test_another_backbone_is_refused_on_first_use(tmp_path):
    detector = fit()
    detector.features_._teacher_seed += 1
    loaded = round_trip(detector, tmp_path)
    with pytest.raises(ValueError, match="was fitted with a backbone of fingerprint"):
        loaded.score_samples(NEW)


def test_another_backbone_in_the_file_is_refused_when_it_is_loaded(tmp_path):
    fit(store_backbone=True).save(tmp_path / "m")

    def other(values, tensors):
        tensors["detector.features.backbone.pos_embed"][0, 0, 0] += 1

    forge(tmp_path / "m", other)
    with pytest.raises(ModelFileError, match="the backbone in it has the fingerprint"):
        TransformalyDetector.load(tmp_path / "m")


# What cannot be saved


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"density": OneClassSVM()}, r"density=OneClassSVM cannot be saved safely.*SECURITY\.md"),
        ({"density": KernelDensity()}, "Use one of GaussianDensity, GaussianMixtureDensity, KNN"),
        ({"random_state": np.random.RandomState(0)}, r"random_state=\.\.\.\) is a RandomState"),
    ],
)
def test_what_numbers_cannot_hold_is_refused_by_name(parameters, message, tmp_path):
    detector = fit(**parameters)
    with pytest.raises(ValueError, match=message):
        detector.save(tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_a_density_that_only_has_the_name_is_refused(tmp_path):
    class GaussianDensity(KNNDensity):
        pass

    detector = fit()
    detector.density_["discrepancy"] = GaussianDensity().fit(np.eye(8))
    with pytest.raises(ValueError, match="density=GaussianDensity cannot be saved"):
        detector.save(tmp_path / "m")


def test_a_network_is_refused_by_name(fitted, tmp_path):
    with pytest.raises(ValueError, match=r"<VisionTransformer> is a network.*name of a timm model"):
        fitted.save(tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_what_is_not_fitted_is_refused(tmp_path):
    with pytest.raises(NotFittedError):
        TransformalyDetector().save(tmp_path / "m")


def test_an_attribute_that_no_file_holds_is_not_lost_silently(tmp_path):
    detector = fit()
    detector.news_ = 1
    with pytest.raises(ValueError, match="attribute news_"):
        detector.save(tmp_path / "m")


def test_too_long_a_header_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_container, "HEADER_LIMIT", 100)
    with pytest.raises(ValueError, match="at most 100 fit"):
        fit().save(tmp_path / "m")
    assert os.listdir(tmp_path) == []


# Writing


def test_a_target_that_cannot_be_written_is_refused(tmp_path):
    detector = fit()
    with pytest.raises(IsADirectoryError, match=r"model\.skanomaly"):
        detector.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="create it first"):
        detector.save(tmp_path / "no" / "m")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(error, step, tmp_path, monkeypatch):
    def fail(*args):
        raise error

    path = tmp_path / "m"
    path.write_bytes(b"old")
    detector = fit()
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        detector.save(path)
    assert (os.listdir(tmp_path), path.read_bytes()) == (["m"], b"old")


WRITE = """
import os, resource, signal, sys
from pathlib import Path
from skanomaly_vit._utils.files import write_atomically

if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
else:
    os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(bytes(2**22), Path(sys.argv[1]))
"""


@pytest.mark.parametrize("end", ["full", "killed"])
def test_a_full_disk_or_a_kill_leaves_the_old_file(end, tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", WRITE, path, end], capture_output=True)
    assert path.read_bytes() == b"old"
    if end == "full":
        assert b"File too large" in done.stderr
        assert os.listdir(tmp_path) == ["m"]
    else:
        assert done.returncode == -signal.SIGKILL


def test_links_and_permissions_stay(tmp_path):
    path, link = tmp_path / "m", tmp_path / "link"
    detector = fit()
    detector.save(path)
    assert path.stat().st_mode & 0o444 == 0o444  # for others to read, as umask says
    path.chmod(0o600)
    link.symlink_to(path)
    detector.save(link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600


# Loading what is no model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.skanomaly"
    fit().save(path)
    return path


def forge(path, change):
    """Change what is in a file, checksum and all."""
    values, tensors, _ = _container.read(str(path))
    change(values, tensors)
    _container.write(path, values, tensors)


def make_foreign(kind, path, model):
    data = model.read_bytes()
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", "b")
    elif kind == "safetensors":
        save_file({"a": torch.zeros(2)}, path)
    elif kind == "torch":
        torch.save({"a": torch.zeros(2)}, path)
    elif kind != "missing":
        path.write_bytes(
            {
                "pickle": pickle.dumps(Unpickled()),
                "text": b"a model, but in words",
                "json": b'{"format_version": 1}',
                "empty": b"",
                "one byte": b"\x01",
                "zeros": bytes(100),
                "long": data + b"\0",
                "header bomb": (2**62).to_bytes(8, "little") + b"{",
                "large header": (_container.HEADER_LIMIT + 1).to_bytes(8, "little") + b"{",
                "deep": (10**6).to_bytes(8, "little") + b'{"a":' * 200_000,
                "no json": (3).to_bytes(8, "little") + b"{]}",
                "no metadata": (2).to_bytes(8, "little") + b"{}",
                "odd metadata": (20).to_bytes(8, "little") + b'{"__metadata__": []}',
            }[kind]
        )


class Unpickled:
    def __reduce__(self):
        return pytest.fail, ("code ran",)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("directory", "a directory"),
        ("pipe", "no regular file"),
        ("missing", "No such file"),
        ("zip", "another kind of file"),
        ("torch", "another kind of file"),
        ("pickle", "another kind of file"),
        ("text", "another kind of file"),
        ("json", "another kind of file"),
        ("zeros", "another kind of file"),
        ("one byte", "another kind of file"),
        ("empty", "it is empty"),
        ("safetensors", "weights of a backbone are for the parameter `pretrained`"),
        ("no metadata", "no model"),
        ("odd metadata", "no model"),
        ("long", "too long"),
        ("header bomb", "claims"),
        ("large header", "claims"),
        ("deep", "no JSON"),
        ("no json", "no JSON"),
    ],
)
def test_another_file_is_refused(kind, message, model, tmp_path):
    path = tmp_path / "m"
    make_foreign(kind, path, model)
    for read in (TransformalyDetector.load, model_card):
        with pytest.raises(ModelFileError, match=message) as caught:
            read(path)
        assert repr(str(path)) in str(caught.value)


quietly = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quietly
@given(data=st.data())
def test_no_damage_goes_unseen(data, model, tmp_path):
    """A flipped bit may leave values and tensors as they are, as in padding; no other passes."""
    content = bytearray(model.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    position = data.draw(st.one_of(st.integers(0, header), st.integers(0, len(content) - 1)))
    if data.draw(st.booleans()):
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        del content[position:]
    (tmp_path / "m").write_bytes(content)
    for read in (_container.read, _container.read_values):
        with contextlib.suppress(ModelFileError):
            np.testing.assert_equal(read(str(tmp_path / "m")), read(str(model)))
            assert position < header


def cut_header(path):
    """JSON values of a file, the rest of its header, and the bytes behind it."""
    content = path.read_bytes()
    body = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:body])
    return json.loads(header["__metadata__"].pop("skanomaly_vit")), header, content[body:]


def with_header(path, values, header, body):
    header["__metadata__"]["skanomaly_vit"] = json.dumps(values)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize("version", [3, 2, 1])
def test_any_changed_value_is_refused(version, model, tmp_path):
    """Whichever format a damaged file claims to have."""
    changed = list(places(cut_header(model)[0]))
    for *parents, key in changed:
        values, header, body = cut_header(model)
        values["format_version"] = version
        part = values
        for parent in parents:
            part = part[parent]
        part[key] = f"{part[key]}x"
        with_header(tmp_path / "m", values, header, body)
        with pytest.raises(ModelFileError):
            model_card(tmp_path / "m")
    assert len(changed) > 100


@pytest.mark.parametrize("part", ["name", "dtype", "shape", "place", "byte"])
def test_any_changed_tensor_is_refused(part, model, tmp_path):
    _, tensors, _ = cut_header(model)
    for name in tensors.keys() - {"__metadata__"}:
        values, header, body = cut_header(model)
        entry = header[name]
        start, stop = entry["data_offsets"]
        if part == "name":
            header[name + "x"] = header.pop(name)
        elif part == "dtype":
            entry["dtype"] = {"F32": "I32", "F64": "I64", "I64": "F64"}[entry["dtype"]]
        elif part == "shape":
            entry["shape"] = [1, *entry["shape"]]
        elif part == "byte":
            body = body[:start] + bytes([body[start] ^ 1]) + body[start + 1 :]
        else:  # that of another tensor of its size
            twins = [
                other
                for key, other in header.items()
                if key not in (name, "__metadata__")
                and other["data_offsets"][1] - other["data_offsets"][0] == stop - start
                and body[slice(*other["data_offsets"])] != body[start:stop]
            ]
            if not twins:
                continue
            entry["data_offsets"], twins[0]["data_offsets"] = (
                twins[0]["data_offsets"],
                [start, stop],
            )
        with_header(tmp_path / "m", values, header, body)
        with pytest.raises(ModelFileError):
            model_card(tmp_path / "m")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16,
                                   torch.bfloat16, torch.float32, torch.float64])  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_tensors_of_any_type_come_back(dtype, shape, tmp_path):
    tensors = {"b": torch.ones(shape, dtype=dtype), "a": torch.zeros(3)}
    values = {"é": [1, 0.1, None, {"2": True, "10": "x", "1": -0.0}]}
    _container.write(tmp_path / "m", values, tensors)
    found, read, version = _container.read(str(tmp_path / "m"))
    assert (found, version) == (values, 4)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


@pytest.mark.parametrize("name", ["format-1", "format-2"])
def test_no_damage_to_an_old_format_goes_unseen(name, tmp_path):
    content = (DATA / f"{name}.skanomaly").read_bytes()
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    for position in [*rng.integers(0, header, 100), *rng.integers(header, len(content), 30)]:
        damaged = bytearray(content)
        damaged[position] ^= int(rng.integers(1, 256))
        (tmp_path / "m").write_bytes(damaged)
        with pytest.raises(ModelFileError):
            model_card(tmp_path / "m")


@quietly
@given(content=st.binary(max_size=300))
@example(content=(40).to_bytes(8, "little") + b'{"__metadata__":{"skanomaly_vit":"{}"}}  ')
@example(content=(40).to_bytes(8, "little") + b'{"__metadata__":{"skanomaly_vit":"[]"}}  ')
def test_no_bytes_give_another_error(content, tmp_path):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ModelFileError):
        TransformalyDetector.load(tmp_path / "m")


def test_a_newer_format_names_both_versions(model, tmp_path, monkeypatch):
    monkeypatch.setattr(_container, "FORMAT_VERSION", 5)
    shutil.copy(model, tmp_path / "m")
    forge(tmp_path / "m", lambda values, tensors: None)
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match=r"has format 5, written by skanomaly-vit 0.* up to 4"):
        TransformalyDetector.load(tmp_path / "m")


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.sampled_from(["class", "parameters", "a"]), st.text(max_size=3)),
)


def places(values, path=()):
    """Where in nested dicts and lists there is something."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@pytest.fixture(scope="module")
def rich_models(tmp_path_factory):
    """Models that hold everything that a model may hold, but for the backbone."""
    folder = tmp_path_factory.mktemp("rich")
    kinds = [
        {"density": GaussianMixtureDensity(n_components=2), "pca_variance": 0.9},
        {"density": KNNDensity(), "student": "block", "student_dtype": "float16"},
        {"density": "gaussian"},
        KINDS["groups"],
    ]
    for i, kind in enumerate(kinds):
        fit(**kind).save(folder / f"{i}")
    return sorted(folder.iterdir())


@settings(quietly, max_examples=600)
@given(data=st.data(), junk=JUNK, remove=st.booleans())
def test_forged_values_are_refused_or_load_whole(data, junk, remove, rich_models, tmp_path):
    def change(values, tensors):
        *parents, key = data.draw(st.sampled_from(list(places({"detector": values["detector"]}))))
        for parent in parents:
            values = values[parent]
        if remove:
            del values[key]
        else:
            values[key] = junk

    shutil.copy(data.draw(st.sampled_from(rich_models)), tmp_path / "m")
    forge(tmp_path / "m", change)
    with contextlib.suppress(ModelFileError):
        loaded = TransformalyDetector.load(tmp_path / "m")
        check_is_fitted(loaded)
        assert loaded.distillation_ is None or len(loaded.distillation_.students_) == 2
        assert loaded.density_.keys() == loaded.fusion_.keys()


def corrupt_tensor(how, tensors, name):
    tensor = tensors[name]
    if how == "missing":
        del tensors[name]
    elif how == "renamed":
        tensors[f"{name}x"] = tensors.pop(name)
    elif how == "shape":
        tensors[name] = tensor.unsqueeze(0)
    elif how == "dtype":
        tensors[name] = tensor.to(torch.int32)
    elif how == "nan":
        tensor.view(-1)[0] = torch.nan if tensor.is_floating_point() else -1
    elif how == "more":
        tensors["detector.more"] = tensor.clone()


@pytest.mark.parametrize("how", ["missing", "renamed", "shape", "dtype", "nan", "more"])
def test_forged_tensors_are_refused(how, rich_models, tmp_path):
    for model in rich_models:
        for name in _container.read(str(model))[1]:
            shutil.copy(model, tmp_path / "m")
            forge(tmp_path / "m", lambda _, tensors, name=name: corrupt_tensor(how, tensors, name))
            with pytest.raises(ModelFileError):
                TransformalyDetector.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contamination": 0.9}, "'contamination' parameter"),
        ({"news": 1}, "no parameter 'news'"),
        ({"backbone": "no_such_vit"}, "not a timm model"),
        ({"density": {"class": "OneClassSVM", "parameters": {}}}, "unknown class 'OneClassSVM'"),
        ({"device": "cpu"}, "no parameter 'device'"),
    ],
)
def test_forged_parameters_are_refused(change, message, rich_models, tmp_path):
    def forged(values, tensors):
        values["detector"]["parameters"].update(change)
        if "backbone" in change:
            values["detector"]["features"]["parameters"].update(change)

    shutil.copy(rich_models[1], tmp_path / "m")  # block students: the network is built
    forge(tmp_path / "m", forged)
    with pytest.raises(ModelFileError, match=message):
        TransformalyDetector.load(tmp_path / "m")


def test_parameters_that_a_file_does_not_know_have_their_defaults(model, tmp_path):
    shutil.copy(model, tmp_path / "m")
    forge(tmp_path / "m", lambda values, _: values["detector"]["parameters"].pop("contamination"))
    assert TransformalyDetector.load(tmp_path / "m").contamination == 0.05


# The card


def test_a_card_says_what_a_model_is(model):
    card = model_card(model)
    assert json.loads(json.dumps(card)) == card
    assert card["path"] == str(model)
    assert card["file_size"] == model.stat().st_size
    assert (card["n_images"], card["n_images_held_out"]) == (16, 4)
    assert card["parameters"]["image_size"] == 32
    assert card["changed_parameters"] == [
        "backbone",
        "image_size",
        "n_blocks",
        "pretrained",
        "random_state",
    ]
    assert (card["student"], card["blocks"]) == ("RidgeStudent", [0, 1])
    assert card["history"][0]["train_loss"] == fit().distillation_.history_[0]["train_loss"]
    assert card["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert card["densities"]["discrepancy"] == "ExcessDensity"
    assert card["versions"]["torch"]
    assert card["created"].endswith("+00:00")


def test_a_card_needs_no_torch(model):
    code = (
        "import sys\n"
        "from skanomaly_vit.persistence._card import model_card\n"
        "model_card(sys.argv[1])\n"
        "sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, model], check=True)


def test_a_file_without_a_card_is_refused(model, tmp_path):
    shutil.copy(model, tmp_path / "m")
    forge(tmp_path / "m", lambda values, _: values["card"].pop("threshold"))
    with pytest.raises(ModelFileError, match="no model card"):
        model_card(tmp_path / "m")


def test_a_file_is_safetensors_to_others(model):
    with safe_open(model, "pt") as file:
        assert file.get_tensor("detector.validation_indices").tolist()
        assert json.loads(file.metadata()["skanomaly_vit"])["format_version"] == 4


# For ever


@pytest.mark.parametrize("name", ["format-1", "format-2", "format-3", "format-4"])
def test_a_format_loads_for_ever(name):
    """The files were written by 0.1.0, as tests/data/README.md says; they are never replaced."""
    expected = json.loads((DATA / f"{name}.json").read_text())
    detector = TransformalyDetector.load(DATA / f"{name}.skanomaly")
    images = drawn(expected["n_images"])
    np.testing.assert_allclose(
        detector.score_samples(images), expected["scores"], rtol=1e-4, atol=1e-4
    )
    assert detector.predict(images).tolist() == expected["labels"]
    maps = detector.anomaly_map(images, "both")
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), expected["map_means"], rtol=1e-3, atol=1e-3)
    assert model_card(DATA / f"{name}.skanomaly")["versions"]["skanomaly-vit"] == "0.1.0"


@pytest.mark.parametrize(
    ("name", "alpha", "rate"), [("format-1", 0.01, 0.05), ("format-3", 0.1, 0.3)]
)
def test_students_and_rates_of_every_format_come_back(name, alpha, rate):
    detector = TransformalyDetector.load(DATA / f"{name}.skanomaly")
    assert isinstance(detector.recipe_.student, RidgeStudent)
    assert detector.recipe_.student.alpha == alpha
    assert detector.contamination_ == rate
    assert detector.recipe_.fusion == "standardized"


def test_format_4_has_views_pooling_and_sums_of_students():
    expected = json.loads((DATA / "format-4.json").read_text())
    detector = TransformalyDetector.load(DATA / "format-4.skanomaly")
    assert (detector.recipe_.views, detector.recipe_.pooling) == (("max_patch:-2",), 0.25)
    students = detector.distillation_.students_
    detector.set_params(validation_fraction=0.0).partial_fit(drawn(160)[40:80])
    assert detector.distillation_.students_ is not students
    scores = detector.score_samples(drawn(expected["n_images"]))
    np.testing.assert_allclose(scores, expected["scores_after_more"], rtol=1e-3, atol=1e-3)


def test_format_1_has_nothing_that_more_images_could_be_added_to():
    detector = TransformalyDetector.load(DATA / "format-1.skanomaly")
    with pytest.raises(ValueError, match=r"has kept no statistics.*Fit again"):
        detector.partial_fit(["no such file"])


@pytest.mark.parametrize("name", ["format-2", "format-3"])
def test_later_formats_go_on_with_more_images(name):
    expected = json.loads((DATA / f"{name}.json").read_text())
    detector = TransformalyDetector.load(DATA / f"{name}.skanomaly")
    # Which new images are held out depends on the bits of their features, which differ elsewhere.
    detector.set_params(validation_fraction=0.0)
    students = detector.distillation_.students_
    detector.partial_fit(drawn(160)[40:80])
    assert detector.distillation_.students_ is students  # the file has no sums of theirs
    scores = detector.score_samples(drawn(expected["n_images"]))
    # The version that wrote the file mixed errors of seen and of unseen images: ranks alone agree.
    assert spearmanr(scores, expected["scores_after_more"])[0] > 0.9


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only there another kind can be had")
def test_a_processor_of_another_kind_loads_it(tmp_path):
    expected = json.loads((DATA / "format-1.json").read_text())
    np.save(tmp_path / "images.npy", drawn(expected["n_images"]))
    code = (
        "import numpy, sys; from skanomaly_vit import TransformalyDetector\n"
        "detector = TransformalyDetector.load(sys.argv[1])\n"
        "print(detector.score_samples(numpy.load(sys.argv[2])).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, DATA / "format-1.skanomaly", tmp_path / "images.npy"],
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default"},  # without AVX2
        capture_output=True,
        check=True,
        text=True,
    )
    np.testing.assert_allclose(json.loads(done.stdout), expected["scores"], rtol=1e-4, atol=1e-4)


def drawn(n):
    """Discs in noise, made by integers alone, the second half of them paler: (n, 48, 48, 3)."""
    y, x = np.mgrid[:48, :48]
    images = []
    for i in range(n):
        disc = (x - 22 - 5 * i % 4) ** 2 + (y - 22 - 7 * i % 5) ** 2 < (12 + i % 3) ** 2
        hashed = (x * 374761393 + y * 668265263 + i * 1103515245) % 2**32
        noise = (hashed ^ (hashed >> 13)) * 1274126177 % 2**32 // 2**16 % 40
        grey = 50 + (130 if i < n // 2 else 80) * disc + noise
        images.append(np.stack([grey, grey - i % 8, grey + i % 5], axis=-1))
    return np.stack(images).astype(np.uint8)


# Updates


def test_a_card_logs_what_was_added_since_the_fit(tmp_path):
    detector = fit(density="gaussian")
    detector.save(tmp_path / "m")
    assert model_card(tmp_path / "m")["updates"] == []
    detector.partial_fit(NEW[:4]).calibrate(drawn(3)).save(tmp_path / "m")
    loaded = TransformalyDetector.load(tmp_path / "m")
    loaded.partial_fit(NEW[4:6]).save(tmp_path / "n")
    log = model_card(tmp_path / "n")["updates"]
    assert [each["what"] for each in log] == ["partial_fit", "calibrate", "partial_fit"]
    assert [each["n_images"] for each in log] == [4, 3, 2]
    assert log[1]["n_calibrating"] == 3
    assert log[:2] == model_card(tmp_path / "m")["updates"]
    detector.fit(IMAGES).save(tmp_path / "m")
    assert model_card(tmp_path / "m")["updates"] == []


@pytest.mark.parametrize(
    "entry", [{}, {"date": 1}, {"date": "a", "what": "b", "n_images": "c", "n_calibrating": 0,
                                "digest": "d"}],
)  # fmt: skip
def test_a_log_that_is_none_is_refused(entry, model, tmp_path):
    shutil.copy(model, tmp_path / "m")
    forge(tmp_path / "m", lambda values, _: values["detector"].update(updates=[entry]))
    with pytest.raises(ModelFileError, match="updates has the entry"):
        TransformalyDetector.load(tmp_path / "m")
