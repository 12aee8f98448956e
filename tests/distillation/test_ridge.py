"""Ridge students: exact, deterministic, and their statistics add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backbones import FAMILIES, family
from students import with_student

from skanomaly_vit import BlockDistillation
from skanomaly_vit._backbone.block_calls import BlockCall
from skanomaly_vit.distillation import _ridge
from skanomaly_vit.distillation._ridge import RidgeModule, RidgeStatistics


@pytest.fixture
def make(tiny):
    def make(**parameters):
        return BlockDistillation(
            **with_student(**{"backbone": tiny, "n_blocks": 2, "random_state": 0} | parameters)
        )

    return make


def call_of(rng, n_images=6, n_tokens=5, dim=4) -> BlockCall:
    tokens, output = (torch.tensor(rng.normal(size=(n_images, n_tokens, dim))) for _ in range(2))
    return BlockCall(0, (tokens,), {}, output)


def design(call: BlockCall) -> np.ndarray:
    """Rows [token, mean token of its image, 1], written out."""
    tokens = call.tokens.numpy()
    mean = np.broadcast_to(tokens.mean(axis=1, keepdims=True), tokens.shape)
    ones = np.ones((*tokens.shape[:2], 1))
    return np.concatenate([tokens, mean, ones], axis=2).reshape(-1, 2 * tokens.shape[2] + 1)


def statistics_of(*calls: BlockCall) -> RidgeStatistics:
    statistics = RidgeStatistics.empty(calls[0].tokens.shape[-1])
    for call in calls:
        statistics.add(call)
    return statistics


def test_statistics_are_the_products_of_the_design_written_out(rng):
    call = call_of(rng)
    statistics, inputs = statistics_of(call), design(call)
    residual = (call.output - call.tokens).numpy().reshape(-1, 4)
    np.testing.assert_allclose(statistics.gram, inputs.T @ inputs, atol=1e-12)
    np.testing.assert_allclose(statistics.cross, inputs.T @ residual, atol=1e-12)


def test_solution_is_that_of_the_penalised_least_squares_problem(rng):
    call = call_of(rng)
    inputs, alpha = design(call), 0.3
    residual = (call.output - call.tokens).numpy().reshape(-1, 4)
    strength = np.sqrt(alpha * np.mean(np.sum(inputs[:, :-1] ** 2, axis=0)))
    penalty = strength * np.eye(9)
    penalty[-1, -1] = 0  # the bias is free
    expected = np.linalg.lstsq(
        np.concatenate([inputs, penalty]), np.concatenate([residual, np.zeros((9, 4))])
    )[0]
    np.testing.assert_allclose(statistics_of(call).solve(alpha), expected, atol=1e-10)


def test_student_predicts_the_output_and_its_loss_is_the_mean_squared_error(rng):
    call = call_of(rng)
    statistics = statistics_of(call)
    weights = statistics.solve(0.01)
    predicted = call.replay(RidgeModule(*weights.split([4, 4, 1])))
    expected = call.tokens.numpy() + (design(call) @ weights.numpy()).reshape(6, 5, 4)
    np.testing.assert_allclose(predicted, expected, atol=1e-12)
    error = np.mean((expected - call.output.numpy()) ** 2)
    assert statistics.loss(weights) == pytest.approx(error)


def test_statistics_add_up_over_batches(rng):
    call = call_of(rng)
    parts = [
        BlockCall(0, (call.tokens[part],), {}, call.output[part])
        for part in (slice(0, 2), slice(2, 6))
    ]
    whole, together = statistics_of(call), statistics_of(*parts)
    np.testing.assert_allclose(together.gram, whole.gram, atol=1e-12)
    np.testing.assert_allclose(together.cross, whole.cross, atol=1e-12)
    assert together.square == pytest.approx(whole.square)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_imitated_better_than_by_doing_nothing(name, images):
    distillation = BlockDistillation(
        **with_student(backbone=family(name), n_blocks=None, validation_fraction=0, alpha=1e-4)
    ).fit(images)
    copied = BlockDistillation(
        **with_student(backbone=family(name), n_blocks=None, validation_fraction=0, alpha=1e9)
    ).fit(images)  # all weights but the bias are penalised away
    assert (distillation.transform(images) < 0.5 * copied.transform(images)).all()


def test_recorded_loss_is_the_mean_discrepancy_of_the_training_images(make, images):
    distillation = make(validation_fraction=0).fit(images)
    (record,) = distillation.history_
    np.testing.assert_allclose(
        record["train_loss"], distillation.transform(images).mean(axis=0), rtol=1e-3
    )


def test_no_seed_is_needed(make, images):
    runs = [
        make(validation_fraction=0, random_state=seed).fit(images).transform(images)
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(*runs)


def test_students_do_not_learn_from_held_out_images(make, images, odd_images):
    held_out = make().fit(images).validation_indices_
    poisoned = images.copy()
    poisoned[held_out] = odd_images[: len(held_out)]
    np.testing.assert_array_equal(*[make().fit(X).transform(images) for X in (images, poisoned)])


def test_odd_images_are_imitated_worse(make, images, odd_images):
    distillation = make().fit(images)
    normal, odd = distillation.transform(images), distillation.transform(odd_images)
    assert (np.median(odd, axis=0) > 2 * np.median(normal, axis=0)).all()


def test_tokens_that_are_not_finite_name_the_block(make, images):
    broken = family("class token")
    with torch.no_grad():
        broken.blocks[1].mlp.fc2.bias[0] = torch.nan
    with pytest.raises(ValueError, match="Block 1 of the backbone gives tokens that are not"):
        make(backbone=broken).fit(images)


class NoFloat64(torch.Tensor):
    """A tensor of a device without float64, such as Apple's MPS, until it is on the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.double or kwargs.get("dtype") is torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        out = super().__torch_function__(func, types, args, kwargs)
        return out.as_subclass(torch.Tensor) if func is torch.Tensor.cpu else out


def test_sums_need_no_float64_on_the_device():
    tokens, output = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    there = BlockCall(0, (tokens.as_subclass(NoFloat64),), {}, output.as_subclass(NoFloat64))
    found, expected = statistics_of(there), statistics_of(BlockCall(0, (tokens,), {}, output))
    assert torch.equal(found.gram, expected.gram)
    assert torch.equal(found.cross, expected.cross)
    assert found.square == expected.square


def test_an_indefinite_gram_is_an_error_that_names_the_block(make, images, monkeypatch):
    def rounded(a, b):
        return a.bfloat16().T.double() @ b.double()

    monkeypatch.setattr(_ridge, "_outer", rounded)
    with pytest.raises(ValueError, match=r"Block 1 of the backbone: the Gram .* larger alpha"):
        make(alpha=1e-4).fit(images)


@pytest.mark.parametrize("alpha", [0.0, 9e-5, 1e-6])
def test_alpha_has_a_floor_below_which_products_are_noise(make, images, alpha):
    with pytest.raises(ValueError, match=r"'alpha' parameter of RidgeStudent .* \[0.0001, inf\)"):
        make(alpha=alpha).fit(images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tokens_in_half_precision_are_summed_in_float32(rng, dtype):
    tokens, output = (torch.tensor(rng.normal(size=(40, 50, 4)), dtype=dtype) for _ in range(2))
    whole = [each.double() for each in (tokens, output)]
    found = statistics_of(BlockCall(0, (tokens * 40,), {}, output * 40))
    expected = statistics_of(BlockCall(0, (whole[0] * 40,), {}, whole[1] * 40))
    scale = expected.gram.abs().max()
    assert (found.gram - expected.gram).abs().max() < 1e-2 * scale
    assert found.dtype == dtype
