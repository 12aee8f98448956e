"""scikit-learn's estimator checks, and our own for estimators whose samples are images."""

from __future__ import annotations

import inspect
import pickle
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import validate_data

from skanomaly_vit import (
    BlockDistillation,
    CompactFeatures,
    MeanShiftedFeatures,
    TransformalyDetector,
    ViTFeatures,
)
from skanomaly_vit.distillation import BlockStudent

# --- scikit-learn's own checks
#
# They skip nearly everything for an estimator that takes no 2-D array. The adapters below fold a
# row of any numbers into an image one row high; everything else is the estimator itself.


class RowAdapter:
    """Validates X as scikit-learn's own estimators do, and hands it on as images."""

    def _open(self, X, *, reset, **options):
        X = validate_data(self, X, reset=reset, dtype=np.float64)
        rows = 0.5 + np.arctan(X / 30) / np.pi  # any number -> [0, 1], still steep at 100
        return super()._open(rows[:, np.newaxis, :, np.newaxis], reset=reset, **options)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = False
        tags.input_tags.string = False
        return tags


class RowDetector(RowAdapter, TransformalyDetector):
    # The checks compare scores to 1e-7 (hence float64), and expect the share that is flagged among
    # the training samples to be `contamination` (hence no held-out images).
    def __init__(
        self, *, backbone="skanomaly_tiny_double", pretrained=False, n_blocks=2, student="ridge",
        validation_fraction=0.0, contamination=0.05, random_state=None,
    ):  # fmt: skip
        super().__init__(
            backbone=backbone, pretrained=pretrained, n_blocks=n_blocks, student=student,
            validation_fraction=validation_fraction, contamination=contamination,
            random_state=random_state, batch_size=64,
        )  # fmt: skip


class RowFeatures(RowAdapter, ViTFeatures):
    def __init__(
        self, *, backbone="skanomaly_tiny_double", pretrained=False,
        random_state=None,
    ):  # fmt: skip
        super().__init__(
            backbone=backbone, pretrained=pretrained, random_state=random_state,
        )  # fmt: skip


class RowDistillation(RowAdapter, BlockDistillation):
    def __init__(
        self, *, backbone="skanomaly_tiny_double", pretrained=False, n_blocks=2, student="ridge",
        validation_fraction=0.2, random_state=None,
    ):  # fmt: skip
        super().__init__(
            backbone=backbone, pretrained=pretrained, n_blocks=n_blocks, student=student,
            validation_fraction=validation_fraction, random_state=random_state,
        )  # fmt: skip


class RowCompact(RowAdapter, CompactFeatures):
    def __init__(
        self, *, backbone="skanomaly_tiny_double", pretrained=False, n_tuned_blocks=1,
        validation_fraction=0.2, random_state=None,
    ):  # fmt: skip
        super().__init__(
            backbone=backbone, pretrained=pretrained, n_tuned_blocks=n_tuned_blocks,
            max_epochs=1, validation_fraction=validation_fraction, random_state=random_state,
        )  # fmt: skip


class RowMeanShifted(RowAdapter, MeanShiftedFeatures):
    def __init__(
        self, *, backbone="skanomaly_tiny_double", pretrained=False, n_tuned_blocks=1,
        validation_fraction=0.2, random_state=None,
    ):  # fmt: skip
        super().__init__(
            backbone=backbone, pretrained=pretrained, n_tuned_blocks=n_tuned_blocks,
            max_epochs=1, validation_fraction=validation_fraction, random_state=random_state,
        )  # fmt: skip


# Some checks pass labels of several kinds, which the detector ignores and says so.
@pytest.mark.filterwarnings("ignore::skanomaly_vit.exceptions.LabelWarning")
@parametrize_with_checks(
    [
        RowDetector(),
        RowDetector(student=BlockStudent(max_epochs=1)),
        RowFeatures(),
        RowDistillation(),
        RowDistillation(student=BlockStudent(max_epochs=1)),
        RowCompact(),
        RowMeanShifted(),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# --- our own checks, for every estimator whose samples are images


def parameters_of(cls, tiny) -> dict:
    quick = {"backbone": tiny, "batch_size": 8, "random_state": 0, "n_blocks": 2, "max_epochs": 1}
    return {name: quick[name] for name in quick if name in inspect.signature(cls).parameters}


def outputs(estimator, X) -> np.ndarray:
    method = estimator.score_samples if hasattr(estimator, "score_samples") else estimator.transform
    return method(X)


@pytest.fixture(
    params=[
        (TransformalyDetector, {}),
        (TransformalyDetector, {"student": "block"}),
        (BlockDistillation, {}),
        (BlockDistillation, {"student": "block"}),
        (ViTFeatures, {}),
        (CompactFeatures, {}),
        (MeanShiftedFeatures, {}),
    ],
    ids=[
        "detector", "detector-block", "distillation", "distillation-block", "features",
        "compact", "mean-shifted",
    ],
)  # fmt: skip
def image_estimator(request, tiny):
    cls, parameters = request.param
    return cls(**parameters_of(cls, tiny) | parameters)


def test_path_pil_and_array_give_the_same_output(image_estimator, images, tmp_path):
    paths = []
    for i, image in enumerate(images):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    forms = {
        "array": images,
        "list of arrays": list(images),
        "list of PIL images": [Image.fromarray(image) for image in images],
        "list of paths": paths,
        "series": pd.Series([str(path) for path in paths]),
        "one-column frame": pd.DataFrame({"image": [str(path) for path in paths]}),
    }
    expected = outputs(clone(image_estimator).fit(images), images)
    for form, X in forms.items():
        fitted = clone(image_estimator).fit(X)
        np.testing.assert_array_equal(outputs(fitted, X), expected, err_msg=form)


def test_output_does_not_depend_on_order_or_neighbours(image_estimator, images):
    fitted = image_estimator.fit(images)
    expected = outputs(fitted, images)
    np.testing.assert_allclose(outputs(fitted, images[::-1])[::-1], expected, rtol=1e-4, atol=1e-5)
    alone = np.concatenate([outputs(fitted, images[i : i + 1]) for i in range(len(images))])
    np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-5)


def test_pickle_gives_the_same_output_to_the_bit(image_estimator, images):
    fitted = image_estimator.fit(images)
    loaded = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(outputs(loaded, images), outputs(fitted, images))


def test_refit_and_clone_give_the_same_output_to_the_bit(image_estimator, images, odd_images):
    expected = outputs(image_estimator.fit(images), images)
    refitted = image_estimator.fit(odd_images).fit(images)
    np.testing.assert_array_equal(outputs(refitted, images), expected)
    np.testing.assert_array_equal(outputs(clone(refitted).fit(images), images), expected)


@pytest.mark.parametrize("n_jobs", [1, 2, -1])
def test_n_jobs_changes_nothing(image_estimator, images, n_jobs):
    expected = outputs(clone(image_estimator).fit(images), images)
    threaded = clone(image_estimator).set_params(n_jobs=n_jobs).fit(images)
    np.testing.assert_array_equal(outputs(threaded, images), expected)


def test_flattened_images_with_their_shape(image_estimator, images):
    expected = outputs(clone(image_estimator).fit(images), images)
    rows = images.reshape(len(images), -1)
    fitted = clone(image_estimator).set_params(image_shape=(32, 32, 3)).fit(rows)
    np.testing.assert_array_equal(outputs(fitted, rows), expected)
    assert fitted.n_features_in_ == 32 * 32 * 3
    with pytest.raises(ValueError, match=r"3072"):
        outputs(fitted, rows[:, :-3])


def test_fit_leaves_its_parameters_and_input_alone(image_estimator, images):
    before, parameters = images.copy(), dict(image_estimator.get_params())
    image_estimator.fit(images)
    np.testing.assert_array_equal(images, before)
    assert image_estimator.get_params() == parameters


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("backbone", 3), ("pretrained", 1.5), ("image_size", 0), ("image_shape", "square"),
        ("batch_size", 0), ("device", 7), ("n_jobs", 1.5), ("random_state", "seed"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_named_in_fit(image_estimator, images, parameter, value):
    with pytest.raises(ValueError, match=f"The '{parameter}' parameter of"):
        image_estimator.set_params(**{parameter: value}).fit(images)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([], "0 sample"),
        ("folder", "pass a list|Pass a list"),
        (np.full((4, 8, 8, 3), 2.0), "2"),
        (np.zeros((4, 3, 8, 8), np.uint8), "moveaxis"),
    ],
)
def test_wrong_images_are_refused_by_fit_and_after_it(image_estimator, images, X, message):
    with pytest.raises(ValueError, match=message):
        clone(image_estimator).fit(X)
    fitted = image_estimator.fit(images)
    with pytest.raises(ValueError, match=message):
        outputs(fitted, X)


# --- what documentation says

PUBLIC = [
    TransformalyDetector,
    BlockDistillation,
    ViTFeatures,
    CompactFeatures,
    MeanShiftedFeatures,
]


@pytest.mark.parametrize("cls", PUBLIC)
def test_documented_defaults_are_the_real_ones(cls):
    parameters = inspect.cleandoc(cls.__doc__).split("Attributes")[0]
    documented = dict(re.findall(r"^(\w+) : .*default=(.+)$", parameters, re.M))
    real = {
        name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()
    }
    assert {name: eval(text) for name, text in documented.items()} == real


@pytest.mark.parametrize("cls", PUBLIC)
def test_every_parameter_has_a_constraint(cls):
    assert set(cls._parameter_constraints) >= set(inspect.signature(cls).parameters)


def test_the_state_of_vit_features_holds_no_tensor(images):
    """So that formats which know no tensors, such as that of skops, hold it."""
    fitted = ViTFeatures(backbone="skanomaly_tiny", pretrained=False, random_state=0).fit(images)
    state = fitted.__getstate__()
    assert not [name for name, value in state.items() if isinstance(value, torch.Tensor)]
    loaded = pickle.loads(pickle.dumps(fitted))
    assert torch.equal(loaded._positions, fitted._positions)
    np.testing.assert_array_equal(loaded.transform(images), fitted.transform(images))
