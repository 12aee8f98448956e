"""Views of one pass, and the pooling of students' errors."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
import torch
from backbones import FAMILIES, family

from skanomaly_vit import BlockDistillation, DiskCache, TransformalyDetector, ViTFeatures
from skanomaly_vit._backbone.teacher import load_teacher
from skanomaly_vit._backbone.views import View
from skanomaly_vit._images.opening import open_images

VIEWS = ("pooled", "pooled:-2", "mean_patch", "max_patch:-3")


def tokens_of(model, images):
    """Tokens after each block, without our passes: a list of (n, tokens, dim)."""
    teacher = load_teacher(model, pretrained=True, image_size=None, device="cpu", seed=0)
    (batch,) = open_images(images).batches(
        teacher.preprocessing, batch_size=len(images), n_jobs=None
    )
    found = []
    handles = [b.register_forward_hook(lambda m, a, out: found.append(out)) for b in model.blocks]
    with torch.no_grad():
        model.eval()(batch)
    for handle in handles:
        handle.remove()
    return found


def n_prefix_of(model, tokens):
    grid = model.patch_embed.grid_size
    return tokens.shape[1] - grid[0] * grid[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_views_are_what_their_names_say(name, images):
    model = family(name)
    found = ViTFeatures(backbone=model, views=VIEWS).fit(images).transform(images)
    normed = [torch.nn.functional.layer_norm(t, t.shape[-1:]) for t in tokens_of(model, images)]
    n_prefix = n_prefix_of(model, normed[0])
    middle = normed[-2][:, 0] if n_prefix else normed[-2].mean(dim=1)
    expected = [
        torch.from_numpy(ViTFeatures(backbone=model).fit(images).transform(images)),
        middle,
        normed[-1][:, n_prefix:].mean(dim=1),
        normed[-3][:, n_prefix:].amax(dim=1),
    ]
    np.testing.assert_allclose(found, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-5)


def test_columns_are_named_after_views(tiny, images):
    features = ViTFeatures(backbone=tiny, views=["max_patch", "pooled:-2"]).fit(images)
    names = features.get_feature_names_out()
    assert len(names) == features.transform(images).shape[1]
    assert [names[0], names[-1]] == ["max_patch_0", f"pooled:-2_{len(names) // 2 - 1}"]


def test_one_name_is_one_view(tiny, images):
    one, several = (
        ViTFeatures(backbone=tiny, views=v).fit_transform(images) for v in ("pooled", ["pooled"])
    )
    np.testing.assert_array_equal(one, several)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (("pooled", "max"), "'max' is no view"),
        ("max_patch:2", "'max_patch:2' is no view"),
        ("max_patch:-0", "'max_patch:-0' is no view"),
        ((), "views is empty"),
        (("pooled", "pooled:-1"), "'pooled' is there twice"),
        (("pooled:-9",), "'pooled:-9' is of block 9 from the end, but the backbone has 3 blocks"),
        ((1,), "1 is no view"),
    ],
)
@pytest.mark.parametrize("cls", [ViTFeatures, TransformalyDetector])
def test_other_views_are_refused(cls, views, message, tiny, images):
    with pytest.raises(ValueError, match=message):
        cls(backbone=tiny, views=views, **{} if cls is ViTFeatures else {"n_blocks": 1}).fit(images)


def test_the_name_of_a_view_is_the_shortest():
    assert View.parse("max_patch:-1").name == "max_patch"
    assert View.parse("max_patch:-12").name == "max_patch:-12"


@pytest.mark.parametrize(("pooling", "n_worst"), [("max", 1), (0.01, 1), (0.5, 2), (1.0, 4)])
def test_errors_are_pooled_over_the_worst_patches(pooling, n_worst, tiny, images):
    fitted = BlockDistillation(backbone=tiny, n_blocks=2, pooling=pooling, random_state=0)
    found = fitted.fit(images).transform(images)
    tokens = tokens_of(tiny, images)
    n_prefix = n_prefix_of(tiny, tokens[0])
    assert tokens[0].shape[1] - n_prefix == 4
    for column, index in enumerate(fitted.block_indices_):
        with torch.no_grad():
            imitated = fitted.students_[column](tokens[index - 1])
        errors = (imitated - tokens[index]).square().mean(dim=2)[:, n_prefix:]
        worst = errors.sort(dim=1, descending=True).values[:, :n_worst].mean(dim=1)
        np.testing.assert_allclose(found[:, column], worst, rtol=1e-4)


def test_the_mean_is_over_all_tokens(tiny, images):
    fitted = BlockDistillation(backbone=tiny, n_blocks=1, random_state=0).fit(images)
    tokens = tokens_of(tiny, images)
    with torch.no_grad():
        errors = (fitted.students_[0](tokens[-2]) - tokens[-1]).square().mean(dim=(1, 2))
    np.testing.assert_allclose(fitted.transform(images)[:, 0], errors, rtol=1e-4)


@pytest.mark.parametrize("pooling", [0.0, 1.5, "median"])
def test_other_poolings_are_refused(pooling, tiny, images):
    with pytest.raises(ValueError, match="'pooling' parameter"):
        TransformalyDetector(backbone=tiny, n_blocks=1, pooling=pooling).fit(images)


@pytest.mark.parametrize("views", [VIEWS[:3], ("max_patch",)])
def test_memory_and_workers_change_no_bit(views, make_detector, images, tmp_path):
    expected = make_detector(views=views, pooling=0.3).fit(images).score_samples(images)
    with DiskCache(tmp_path / "cache") as cache:
        for other in (("pooled",), views, views):  # another entry first
            detector = make_detector(views=other, pooling=0.3, memory=cache).fit(images)
        np.testing.assert_array_equal(detector.score_samples(images), expected)
        mean = make_detector(views=views, pooling="mean", memory=cache).fit(images)
        assert (mean.score_samples(images) != expected).any()
    with joblib.parallel_config("threading", n_jobs=2):
        shared = make_detector(views=views, pooling=0.3, batch_size=4).fit(images)
        np.testing.assert_array_equal(
            shared.score_samples(images),
            make_detector(views=views, pooling=0.3, batch_size=4).fit(images).score_samples(images),
        )


def test_each_view_has_a_density_and_the_sum_is_the_score(make_detector, images):
    detector = make_detector(views=("pooled", "max_patch")).fit(images)
    assert list(detector.density_) == ["pooled", "max_patch", "discrepancy"]
    spaces, views = detector.score_spaces(images), detector.score_views(images)
    assert list(views) == ["pooled", "max_patch"]
    np.testing.assert_allclose(sum(views.values()), spaces.pretrained)
    total = spaces.pretrained + spaces.discrepancy
    np.testing.assert_allclose(total, detector.score_samples(images))
    assert detector.recipe_.views == ("pooled", "max_patch")


def test_without_the_pretrained_space_no_view_scores(make_detector, images):
    detector = make_detector(feature_spaces="discrepancy").fit(images)
    assert list(detector.density_) == ["discrepancy"]
    assert list(detector.score_spaces(images)) == ["discrepancy"]
    assert list(detector.score_views(images)) == []


def test_views_together_vary_as_one_space(make_detector, tiny, images):
    views = ("pooled", "max_patch", "mean_patch:-2")
    detector = make_detector(views=views).fit(images)
    learned = np.delete(np.arange(len(images)), detector.validation_indices_)
    total = np.zeros(len(learned))
    for view in views:
        rows = ViTFeatures(backbone=tiny, views=view).fit(images).transform(images[learned])
        location, scale = detector.fusion_[view]
        total += (detector.density_[view].score_left_out(rows) - location) / scale
    assert total.std() == pytest.approx(1, abs=1e-3)


def test_partial_fit_refuses_other_views(make_detector, images):
    detector = make_detector(views=("pooled",)).fit(images)
    with pytest.raises(ValueError, match="views was"):
        detector.set_params(views=("max_patch",)).partial_fit(images)
