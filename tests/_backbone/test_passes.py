"""Passes of the teacher: where tokens are kept an image is embedded once, and no bit differs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backbones import FAMILIES, family
from students import with_student

from skanomaly_vit import BlockDistillation, TransformalyDetector, ViTFeatures


def students_of(distillation: BlockDistillation) -> list[torch.Tensor]:
    return [value for s in distillation.students_ for value in s.state_dict().values()]


@pytest.mark.parametrize("student", ["ridge", "block"])
@pytest.mark.parametrize("name", FAMILIES)
def test_kept_tokens_change_no_bit_in_any_family(name, student, images):
    fits = [
        BlockDistillation(**with_student(
            backbone=family(name), n_blocks=None, student=student, max_epochs=2, batch_size=8,
            activation_cache=size, random_state=0,
        )).fit(images)
        for size in (0, 2**30)
    ]  # fmt: skip
    for a, b in zip(*(students_of(fit) for fit in fits), strict=True):
        assert torch.equal(a, b)
    np.testing.assert_array_equal(*(fit.transform(images) for fit in fits))


@pytest.mark.parametrize("student", ["ridge", "block"])
def test_a_fit_embeds_every_image_once(make_detector, images, embedded, student):
    make_detector(student=student, max_epochs=3).fit(images)
    blank = 1
    assert sum(embedded) == len(images) + blank


def test_without_a_cache_every_epoch_embeds_the_images_again(make_detector, images, embedded):
    make_detector(student="block", max_epochs=3, activation_cache=0).fit(images)
    probe, calibrating = 1, 2  # no epoch sees these: they tell the threshold
    assert sum(embedded) == 3 * (len(images) - calibrating) + len(images) + probe


def test_tokens_that_exceed_the_budget_are_embedded_again(make_detector, images, embedded):
    generous = make_detector().fit(images)
    once = sum(embedded)
    per_image = 3 * 5 * 24 * 4 + 24 * 4  # three levels of (tokens, dim), and the features
    embedded.clear()
    tight = make_detector(activation_cache=10 * per_image, batch_size=4).fit(images)
    assert once < sum(embedded) < 2 * len(images)
    generous.set_params(batch_size=4)
    np.testing.assert_array_equal(
        make_detector(batch_size=4).fit(images).score_samples(images), tight.score_samples(images)
    )


def test_scoring_keeps_nothing(fitted, images, embedded):
    fitted.score_samples(images)
    fitted.score_samples(images)
    assert sum(embedded) == 2 * len(images)


class Own(torch.nn.Module):
    """Blocks that get an argument which `extra` makes of the images."""

    def __init__(self, extra):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 8, 8, 8)
        self.blocks = torch.nn.ModuleList(Shifted() for _ in range(3))
        self.extra = extra

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, shift=self.extra(images))
        return tokens.mean(1)


class Shifted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, tokens, shift):
        return tokens + torch.tanh(self.linear(tokens)) + shift


def of_the_images(images):
    return images.mean(dim=(1, 2, 3))[:, None, None]


def of_nothing(images):
    return torch.full((1, 1, 1), 0.25)


@pytest.mark.parametrize(
    ("extra", "n_passes"), [(of_nothing, 1), (of_the_images, 2)], ids=["constant", "of the images"]
)
def test_arguments_that_depend_on_the_images_are_never_replayed(images, embedded, extra, n_passes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Own(extra)
    options = {"backbone": network, "image_size": 32, "n_blocks": 2, "student": "block"}
    options |= {"max_epochs": 1, "random_state": 0}
    plain = TransformalyDetector(**with_student(activation_cache=0, **options)).fit(images)
    embedded.clear()
    cached = TransformalyDetector(**with_student(**options)).fit(images)
    assert (sum(embedded) > 1.5 * len(images)) == (n_passes == 2)
    np.testing.assert_array_equal(plain.score_samples(images), cached.score_samples(images))


def test_a_negative_budget_is_refused(make_detector, images):
    with pytest.raises(ValueError, match="'activation_cache' parameter"):
        make_detector(activation_cache=-1).fit(images)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_do_not_depend_on_the_neighbours(name, images):
    features = ViTFeatures(backbone=family(name)).fit(images)
    together = features.transform(images)
    for size in (1, 2, 5):
        np.testing.assert_array_equal(features.transform(images[:size]), together[:size])


@pytest.mark.parametrize("student", ["ridge", "block"])
def test_discrepancies_do_not_depend_on_the_neighbours(make_detector, images, student):
    distillation = make_detector(student=student).fit(images).distillation_
    alone = np.concatenate([distillation.transform(images[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(distillation.transform(images)[:5], alone, rtol=1e-4)


def test_a_block_that_works_in_place_is_refused(images):
    class InPlace(torch.nn.Module):
        def forward(self, tokens, shift):
            return tokens.add_(shift)

    network = Own(of_nothing)
    network.blocks[1] = InPlace()
    with pytest.raises(ValueError, match=r"block 1 \(InPlace\) writes its output over its input"):
        BlockDistillation(backbone=network, image_size=32, n_blocks=2).fit(images)
