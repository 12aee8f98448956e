"""Block students: what they learn, when they stop, which state counts."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from backbones import FAMILIES, family
from students import with_student

from skanomaly_vit import BlockDistillation
from skanomaly_vit._backbone.block_calls import BlockCall
from skanomaly_vit._backbone.discrepancy import token_errors
from skanomaly_vit._backbone.image_estimator import split_validation
from skanomaly_vit.distillation._block_training import new_student


@pytest.fixture
def make(tiny):
    def make(**parameters):
        quick = {"student": "block", "n_blocks": 2, "max_epochs": 2, "random_state": 0}
        return BlockDistillation(**with_student(**{"backbone": tiny} | quick | parameters))

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_students_of_every_family_learn(name, images):
    distillation = BlockDistillation(**with_student(
        backbone=family(name), student="block", n_blocks=None, max_epochs=8, batch_size=4,
        learning_rate=5e-3, validation_fraction=0, random_state=0,
    )).fit(images)  # fmt: skip
    first, last = (distillation.history_[epoch]["train_loss"] for epoch in (0, -1))
    assert (np.array(last) < 0.8 * np.array(first)).all()


def test_imitation_fails_on_odd_images(make, images, odd_images):
    distillation = make(max_epochs=30, learning_rate=5e-3).fit(images)
    normal, odd = distillation.transform(images), distillation.transform(odd_images)
    assert (np.median(odd, axis=0) > np.median(normal, axis=0)).all()


def test_only_the_last_blocks_have_students(make, images):
    distillation = make(n_blocks=2).fit(images)
    assert len(distillation.students_) == 2
    assert distillation.block_indices_ == [1, 2]
    assert distillation.get_feature_names_out().tolist() == ["block1", "block2"]
    assert distillation.transform(images).shape == (20, 2)


def test_none_is_all_blocks(make, images):
    assert make(n_blocks=None).fit(images).block_indices_ == [0, 1, 2]


def test_more_blocks_than_the_backbone_has(make, images):
    with pytest.raises(ValueError, match=r"n_blocks=10, but the backbone has 3 blocks"):
        make(n_blocks=10).fit(images)


def test_a_student_does_not_depend_on_how_many_others_there_are(make, images):
    few, many = make(n_blocks=1).fit(images), make(n_blocks=3).fit(images)
    np.testing.assert_array_equal(few.transform(images)[:, 0], many.transform(images)[:, 2])


def test_fitted_students_are_frozen_in_eval_mode(make, images):
    for student in make().fit(images).students_:
        assert not student.training
        assert not any(parameter.requires_grad for parameter in student.parameters())


def test_best_epoch_on_held_out_images_is_kept_block_by_block(make, images):
    # A learning rate at which some epochs make a student worse.
    distillation = make(
        max_epochs=6, patience=6, learning_rate=0.05, learning_rate_schedule="constant"
    ).fit(images)
    valid = np.array([record["valid_loss"] for record in distillation.history_])
    assert (valid.argmin(axis=0) < 5).any(), "no student ever became worse: the test tests nothing"
    held_out = distillation.transform(images[distillation.validation_indices_])
    np.testing.assert_allclose(held_out.mean(axis=0), valid.min(axis=0), rtol=1e-5)


def test_a_single_step_is_taken_at_the_learning_rate(make, images):
    single = {"max_epochs": 1, "batch_size": 20, "validation_fraction": 0}
    one_cycle, constant = (
        make(learning_rate_schedule=schedule, **single).fit(images)
        for schedule in ("one_cycle", "constant")
    )
    np.testing.assert_array_equal(one_cycle.transform(images), constant.transform(images))


def test_without_held_out_images_the_last_epoch_counts(make, images):
    distillation = make(
        max_epochs=6, validation_fraction=0, learning_rate=0.05, learning_rate_schedule="constant",
        batch_size=20,
    ).fit(images)  # fmt: skip
    longer = make(
        max_epochs=7, validation_fraction=0, learning_rate=0.05, learning_rate_schedule="constant",
        batch_size=20,
    ).fit(images)  # fmt: skip
    assert len(distillation.validation_indices_) == 0
    assert "valid_loss" not in distillation.history_[0]
    # One batch an epoch: the seventh epoch's loss is that of the students after the sixth.
    np.testing.assert_allclose(
        distillation.transform(images).mean(axis=0), longer.history_[6]["train_loss"], rtol=1e-4
    )


def test_a_student_that_stopped_improving_is_not_trained_further(make, images):
    distillation = make(
        max_epochs=30, patience=1, learning_rate=0.05, learning_rate_schedule="constant"
    ).fit(images)
    assert len(distillation.history_) < 30
    train = np.array([record["train_loss"] for record in distillation.history_])
    valid = np.array([record["valid_loss"] for record in distillation.history_])
    for block in range(2):
        gains = np.minimum.accumulate(valid[:, block])
        worse = np.flatnonzero(valid[1:, block] >= gains[:-1]) + 1
        assert np.isnan(train[worse[0] + 1 :, block]).all()
        assert np.isfinite(train[: worse[0] + 1, block]).all()


def test_students_do_not_learn_from_held_out_images(make, images, odd_images):
    distillation = make().fit(images)
    held_out = distillation.validation_indices_
    assert len(held_out) == 4
    poisoned = images.copy()
    poisoned[held_out] = odd_images[:4]
    one_epoch = [make(max_epochs=1).fit(X).transform(images) for X in (images, poisoned)]
    np.testing.assert_array_equal(*one_epoch)


def test_copies_are_held_out_together(make, images):
    pairs = np.repeat(np.arange(8), 2)
    held_out = make(validation_fraction=0.25).fit(images[pairs]).validation_indices_
    assert len(held_out) == 4
    assert not set(pairs[held_out]) & set(np.delete(pairs, held_out))


def test_one_cycle_and_constant_schedules_differ(make, images):
    constant = make(learning_rate_schedule="constant").fit(images).transform(images)
    assert (constant != make().fit(images).transform(images)).all()


def test_divergence_is_named(make, images):
    with pytest.raises(ValueError, match=r"diverged: its loss is nan with learning_rate=1e\+30"):
        make(learning_rate=1e30, learning_rate_schedule="constant", max_epochs=4).fit(images)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("n_blocks", 0), ("max_epochs", 0), ("learning_rate", 0.0), ("patience", 0),
        ("learning_rate_schedule", "cosine"), ("student", "linear"),
        ("validation_fraction", 1.0), ("verbose", -1),
    ],
)  # fmt: skip
def test_wrong_training_parameters_are_named_in_fit(make, images, parameter, value):
    with pytest.raises(ValueError, match=f"The '{parameter}' parameter of"):
        make(**{parameter: value}).fit(images)


def test_initial_weights_are_those_of_a_fresh_transformer():
    student = new_student(family("relative position bias (BEiT)").blocks[0], torch.Generator())
    assert all(parameter.requires_grad for parameter in student.parameters())
    values = student.state_dict()
    assert torch.all(values["attn.q_bias"] == 0)
    assert torch.all(values["norm1.weight"] == 1)
    assert torch.all(values["gamma_1"] == 1)
    assert values["mlp.fc1.weight"].std() == pytest.approx(0.0176, rel=0.1)  # cut at 2 deviations
    assert values["mlp.fc1.weight"].abs().max() <= 0.04
    assert not student.training


@pytest.mark.parametrize(
    ("n", "fraction", "held_out"), [(10, 0.2, 2), (11, 0.2, 3), (5, 0.0, 0), (2, 0.2, 1)]
)
def test_split_is_a_partition(n, fraction, held_out):
    train, validation = split_validation(n, fraction, np.random.RandomState(0))
    assert len(validation) == held_out
    np.testing.assert_array_equal(np.sort(np.r_[train, validation]), np.arange(n))


def test_split_that_leaves_nothing():
    with pytest.raises(ValueError, match=r"n_samples=1\), but validation_fraction=0.2 holds"):
        split_validation(1, 0.2, np.random.RandomState(0))


def test_history_is_finite_and_counted(make, images):
    history = make(max_epochs=3).fit(images).history_
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert all(math.isfinite(v) for record in history for v in record["train_loss"])
    assert all(record["seconds"] > 0 for record in history)


@pytest.mark.parametrize("student", ["ridge", "block"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_students_in_half_precision_take_half_the_bytes_and_keep_their_scores(
    student, dtype, images
):
    options = {"n_blocks": 2, "image_size": 28, "max_epochs": 1, "random_state": 0}
    whole, half = (
        BlockDistillation(**with_student(student=student, student_dtype=d, **options)).fit(images)
        for d in (None, dtype)
    )
    pickled = pickle.dumps(half)
    # The sums of ridge students stay as they are: as much again as the students in half precision.
    share = 0.55 if student == "block" else 0.68
    assert len(pickled) < share * len(pickle.dumps(whole))
    loaded = pickle.loads(pickled)
    np.testing.assert_array_equal(loaded.transform(images), half.transform(images))
    assert half.transform(images).dtype == np.float32
    np.testing.assert_allclose(half.transform(images), whole.transform(images), rtol=0.05)
    assert (half.transform(images) != whole.transform(images)).any()


def test_weights_that_half_precision_cannot_hold_are_an_error(tiny, images):
    large = copy.deepcopy(tiny)
    with torch.no_grad():
        for parameter in large.blocks[2].mlp.fc2.parameters():
            parameter *= 1e7
    options = {"backbone": large, "n_blocks": 1, "random_state": 0}
    with pytest.raises(ValueError, match="student_dtype='float16' cannot hold a student's weights"):
        BlockDistillation(**with_student(student_dtype="float16", **options)).fit(images)
    BlockDistillation(**with_student(student_dtype="bfloat16", **options)).fit(images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_errors_of_half_precision_backbones_are_those_of_float32(dtype):
    """The square of a small error is 0 in float16, and the mean of large ones is infinite."""
    output = torch.ones(2, 5, 8, dtype=dtype)
    for factor in (1 + 2**-7, 1000.0):
        student = torch.nn.Linear(8, 8, bias=False, dtype=dtype)
        with torch.no_grad():
            student.weight.copy_(factor * torch.eye(8))
        call = BlockCall(0, (torch.ones_like(output) / 64,), {}, output / 64)
        errors = token_errors(student, call)
        assert errors.dtype == torch.float32
        expected = (student(call.tokens).float() - call.output.float()).square().mean(dim=2)
        torch.testing.assert_close(errors, expected, rtol=1e-6, atol=0.0)
