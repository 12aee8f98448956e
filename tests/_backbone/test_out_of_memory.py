"""Out of memory: batches are halved, with one warning, and results stay the same."""

from __future__ import annotations

import copy
import re
import warnings

import numpy as np
import pytest
import torch
from students import with_student

from skanomaly_vit import (
    BlockDistillation,
    CompactFeatures,
    DiskCache,
    TransformalyDetector,
    ViTFeatures,
)
from skanomaly_vit.exceptions import OutOfMemoryWarning

#: Of so many patches that the teacher need not fill up batches; see `Teacher`.
SIZE = 128


def check(n_images: int, limit: int) -> None:
    if n_images > limit:
        raise torch.OutOfMemoryError(f"{n_images} images do not fit, {limit} do")


class CheckedGradient(torch.autograd.Function):
    """Changes nothing, but runs out of memory on the way back."""

    @staticmethod
    def forward(context, tokens, limit):
        context.limit = limit
        return tokens.clone()

    @staticmethod
    def backward(context, gradient):
        check(len(gradient), context.limit)
        return gradient, None


class Limit:
    """A hook of a module that has memory for so many images; copies of the module have it too."""

    def __init__(self, limit: int, where: str) -> None:
        self.limit = limit
        self.where = where

    def __call__(self, module, args, output):
        if self.where == "backward":
            return CheckedGradient.apply(output, self.limit)
        if self.where == "forward" or torch.is_grad_enabled():
            check(len(output), self.limit)
        return output


def limited(network: torch.nn.Module, limit: int, block: int = 1, where: str = "forward"):
    """A copy of a network, in float64, of which one block has memory for so many images.

    It runs out of memory in any pass ("forward"), or only where a student of the block learns:
    on the way forth ("learning") or back ("backward").
    """
    network = copy.deepcopy(network).double()
    network.blocks[block].norm2.register_forward_hook(Limit(limit, where))
    return network


@pytest.fixture
def make(tiny):
    def make(limit: int = 10**6, where: str = "forward", **changes):
        options = {"n_blocks": 3, "max_epochs": 2, "batch_size": 8, "random_state": 0,
                   "image_size": SIZE}  # fmt: skip
        return TransformalyDetector(
            **with_student(backbone=limited(tiny, limit, where=where), **options | changes)
        )

    return make


def fit_and_score(detector, images):
    """Scores and maps of a fit, and the messages that there is too little memory."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        detector.fit(images)
        scores, maps = detector.score_samples(images, return_map=True)
    return scores, maps, [str(w.message) for w in seen if w.category is OutOfMemoryWarning]


@pytest.mark.parametrize("options", [{}, {"activation_cache": 0}], ids=["kept", "not kept"])
@pytest.mark.parametrize("student", ["ridge", "block"])
@pytest.mark.parametrize("limit", [5, 1])
def test_a_fit_goes_on_with_smaller_parts(limit, student, options, make, images):
    options = options | {"student": student}
    scores, maps, messages = fit_and_score(make(**options), images)
    assert messages == []
    in_parts, maps_in_parts, messages = fit_and_score(make(limit, **options), images)
    np.testing.assert_allclose(in_parts, scores, rtol=1e-6)
    np.testing.assert_allclose(maps_in_parts, maps, rtol=1e-4, atol=1e-5)
    tried = [int(re.search(r"cpu with (\d) images of 128 x 128 pix", m)[1]) for m in messages]
    left = [int(re.search(r"into parts of at most (\d)", m)[1]) for m in messages]
    assert left == [n // 2 for n in tried]
    assert tried[1:] == left[:-1]  # each size once, and not every time
    assert left[-1] <= limit


@pytest.mark.parametrize("where", ["forward", "learning", "backward"])
def test_a_step_of_training_in_parts_is_the_same_step(where, make, images):
    options = {"student": "block", "batch_size": 7}
    expected = make(**options).fit(images).distillation_
    with pytest.warns(OutOfMemoryWarning, match="parts of at most 3"):
        found = make(4, where, **options).fit(images).distillation_
    for a, b in zip(expected.students_, found.students_, strict=True):
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-8)
    losses = [[epoch["train_loss"] for epoch in d.history_] for d in (expected, found)]
    np.testing.assert_allclose(*losses, rtol=1e-9)


def test_scoring_goes_on_too_and_remembers(make, images, odd_images):
    detector = make().fit(images)
    X = np.concatenate([images, odd_images])
    expected, maps = detector.score_samples(X, return_map=True)
    (hook,) = detector.features_._teacher.blocks[1].norm2._forward_hooks.values()
    hook.limit = 3
    with pytest.warns(OutOfMemoryWarning) as seen:
        scores, maps_in_parts = detector.score_samples(X, return_map=True)
    assert len(seen) == 2  # 8 and 4 are too many
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    np.testing.assert_allclose(maps_in_parts, maps, rtol=1e-4, atol=1e-5)
    detector.score_samples(X)  # a warning would be an error


def test_features_in_parts_are_the_same_to_the_bit(tiny, images):
    whole, parts = (
        ViTFeatures(backbone=limited(tiny, limit).float(), image_size=SIZE).fit(images)
        for limit in (99, 3)
    )
    with pytest.warns(OutOfMemoryWarning):
        found = parts.transform(images)
    np.testing.assert_array_equal(found, whole.transform(images))


def test_an_image_that_does_not_fit_says_what_to_do(make, images):
    message = (
        r"cpu with a single image of 128 x 128 pixels\. Pass a smaller image_size.*device='cpu'"
    )
    with pytest.raises(MemoryError, match=message) as raised:
        make(0).fit(images)
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)


def test_students_of_batches_in_parts_are_not_remembered(make, images, tmp_path):
    options = {"student": "block", "where": "learning"}
    with DiskCache(tmp_path) as memory, pytest.warns(OutOfMemoryWarning):
        make(3, memory=memory, **options).fit(images)
        size = memory.size
        make(3, memory=memory, **options).fit(images)
        assert memory.size == size
        make(memory=memory, **options).fit(images)
        assert memory.size > size  # now they are


def test_a_fit_in_parts_goes_on_from_a_checkpoint(tiny, images, tmp_path):
    options = {"n_blocks": 2, "student": "block", "max_epochs": 2, "random_state": 0}
    backbone = limited(tiny, 3, where="learning")
    with pytest.warns(OutOfMemoryWarning):
        plain = BlockDistillation(**with_student(backbone=backbone, **options)).fit(images)
        other = BlockDistillation(
            **with_student(backbone=backbone, checkpoint_dir=tmp_path, **options)
        ).fit(images)
    np.testing.assert_array_equal(plain.transform(images), other.transform(images))


def test_tuned_features_need_whole_batches(tiny, images):
    backbone = limited(tiny, 3, block=2)
    features = CompactFeatures(
        backbone=backbone, image_size=SIZE, n_tuned_blocks=1, max_epochs=1, random_state=0
    )
    with (
        pytest.warns(OutOfMemoryWarning),
        pytest.raises(torch.OutOfMemoryError, match="do not fit"),
    ):
        features.fit(images)
