"""Features of tuned blocks: what the tuning minimises, when it stops, and what it leaves alone."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from backbones import FAMILIES, family
from images import meeting
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from torchvision.transforms import v2

from skanomaly_vit import CompactFeatures, DiskCache, KNNDensity, MeanShiftedFeatures, ViTFeatures
from skanomaly_vit._backbone import image_estimator as _base
from skanomaly_vit._backbone.teacher import Teacher, load_teacher
from skanomaly_vit._images.opening import open_images
from skanomaly_vit.exceptions import LabelWarning
from skanomaly_vit.features._compact import Compactness
from skanomaly_vit.features._mean_shifted import MeanShiftedContrast, info_nce
from skanomaly_vit.features._tuned import TunedFeatures
from skanomaly_vit.features._tuning import TunedNetwork, tuned_copy

BOTH = pytest.mark.parametrize("cls", [CompactFeatures, MeanShiftedFeatures])


@pytest.fixture(scope="session")
def tiny(tiny):
    """With the same weights under every version of timm: of some, tuning hardly lowers the loss."""
    network = copy.deepcopy(tiny)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return network


@pytest.fixture
def make(tiny):
    def make(cls, **parameters) -> TunedFeatures:
        # Steps of PANDA are 1e-5 long at its own rate; these are long enough to be seen.
        rate = 3.0 if cls is CompactFeatures else 1e-2
        quick = {"max_epochs": 3, "learning_rate": rate, "batch_size": 8, "random_state": 0}
        return cls(**{"backbone": tiny} | quick | parameters)

    return make


def teacher_of(model: torch.nn.Module) -> Teacher:
    return load_teacher(model, pretrained=True, image_size=None, device="cpu", seed=0)


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


# --- the networks


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_features_from_kept_tokens_are_those_of_the_whole_network(name, n_blocks):
    teacher = teacher_of(family(name))
    network = TunedNetwork(teacher, n_blocks)
    images = torch.randn(5, 3, *teacher.preprocessing.image_size)
    calls = []
    with torch.no_grad():
        for parameter in network.parameters.values():
            parameter.mul_(1.5)  # so that the tuned blocks differ from the teacher's
        plain = teacher(images, blocks=[network.first], visit=calls.append)
        whole, tail = network.features(images), network.features_from(calls[0])
    torch.testing.assert_close(tail, whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, plain, rtol=1e-2)
    copied = tuned_copy(teacher, network.state())
    torch.testing.assert_close(copied(images, blocks=(), visit=calls.append), whole, rtol=0, atol=0)


def test_only_the_last_blocks_and_the_norm_learn(tiny):
    learning = TunedNetwork(teacher_of(tiny), 2).parameters
    assert {name.rsplit(".", 1)[0].split(".attn")[0].split(".mlp")[0].split(".norm")[0]
            for name in learning} == {"blocks.1", "blocks.2", "norm"}  # fmt: skip


@BOTH
def test_more_blocks_than_the_backbone_has(cls, make, images):
    with pytest.raises(ValueError, match=r"n_tuned_blocks=4, but the backbone has 3 blocks"):
        make(cls, n_tuned_blocks=4).fit(images)


# --- what is minimised


def test_compact_features_lie_closer_to_the_mean_of_pretrained_ones(make, tiny, images):
    pretrained = ViTFeatures(backbone=tiny).fit_transform(images)
    features = make(CompactFeatures, validation_fraction=0, max_epochs=12).fit(images)
    np.testing.assert_allclose(features.center_, pretrained.mean(axis=0), rtol=1e-5, atol=1e-6)
    before, after = (
        np.square(Z - features.center_).mean() for Z in (pretrained, features.transform(images))
    )
    assert after < 0.9 * before
    losses = [record["train_loss"] for record in features.history_]
    assert after < losses[-1] < losses[0]
    assert features.n_epochs_ == len(features.history_) == 12
    assert np.isnan(features.initial_loss_)


def test_the_held_out_loss_is_what_it_says(make, tiny, images):
    features = make(CompactFeatures, max_epochs=12, patience=12).fit(images)
    assert features.n_epochs_ > 0
    held_out = images[features.validation_indices_]
    assert len(held_out) == 4
    pretrained = ViTFeatures(backbone=tiny).fit_transform(held_out)
    initial = np.square(pretrained - features.center_).mean()
    np.testing.assert_allclose(features.initial_loss_, initial, rtol=1e-4)
    last = np.square(features.transform(held_out) - features.center_).mean()
    kept = features.history_[features.n_epochs_ - 1]
    np.testing.assert_allclose(kept["valid_loss"], last, rtol=1e-4)


@BOTH
def test_held_out_images_take_part_in_the_centre(cls, make, tiny, images):
    features = make(cls, max_epochs=1, validation_fraction=0.5).fit(images)
    pretrained = ViTFeatures(backbone=tiny).fit_transform(images)
    if cls is MeanShiftedFeatures:
        pretrained = unit(pretrained)
    np.testing.assert_allclose(features.center_, pretrained.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_copies_are_held_out_together(make, images):
    pairs = np.repeat(np.arange(8), 2)
    features = make(CompactFeatures, max_epochs=1, validation_fraction=0.25)
    held_out = features.fit(images[pairs]).validation_indices_
    assert len(held_out) == 4
    assert not set(pairs[held_out]) & set(np.delete(pairs, held_out))


def test_too_few_images_of_held_out_copies_are_refused(make, images):
    pairs = np.array([0, 1, 2, 3, 4, 4])
    message = r"holds out 1 of these, 1 image\(s\); at least 2 must be held out"
    with pytest.raises(ValueError, match=message):
        make(MeanShiftedFeatures, validation_fraction=0.1).fit(images[pairs])


def test_mean_shifted_features_have_length_1_and_a_centre_of_such(make, tiny, images):
    pretrained = unit(ViTFeatures(backbone=tiny).fit_transform(images))
    features = make(MeanShiftedFeatures, validation_fraction=0).fit(images)
    np.testing.assert_allclose(features.center_, pretrained.mean(axis=0), rtol=1e-5, atol=1e-6)
    tuned = features.transform(images)
    np.testing.assert_allclose(np.linalg.norm(tuned, axis=1), 1, rtol=1e-6)
    assert not np.allclose(tuned, pretrained, atol=1e-4)


def test_mean_shifted_features_learn_to_tell_views(make, images):
    features = make(MeanShiftedFeatures, max_epochs=8, validation_fraction=0.5).fit(images)
    losses = [record["valid_loss"] for record in features.history_]
    assert min(losses) < features.initial_loss_ - 0.01


def test_info_nce_by_hand(rng):
    first, second = rng.normal(size=(2, 3, 4))
    temperature = 0.25
    views = unit(np.concatenate([first, second]))
    expected = np.zeros(3)
    for i in range(6):
        partner = (i + 3) % 6
        exponents = [views[i] @ views[j] / temperature for j in range(6) if j != i]
        positive = views[i] @ views[partner] / temperature
        expected[i % 3] += (np.log(np.exp(exponents).sum()) - positive) / 2
    found = info_nce(torch.from_numpy(first), torch.from_numpy(second), temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_the_contrast_is_taken_around_the_centre(tiny, images):
    teacher = teacher_of(tiny)
    network = TunedNetwork(teacher, 1)
    center = np.linspace(-0.2, 0.2, 24, dtype=np.float32)
    objective = MeanShiftedContrast(
        open_images(images), teacher.preprocessing, network, center,
        temperature=0.5, batch_size=8, n_jobs=1,
    )  # fmt: skip
    (views, *others) = objective.batches(np.arange(12), 0, iter)
    assert views.shape == (2, 8, 3, 32, 32)
    assert [len(batch[0]) for batch in others] == [4]
    with torch.no_grad():
        found = objective.losses(views)
        first, second = (unit(network.features(view).numpy()) - center for view in views)
    expected = info_nce(torch.from_numpy(first), torch.from_numpy(second), 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("n_images", "sizes"), [(0, []), (2, [2]), (9, [9]), (10, [8, 2]), (16, [8, 8]), (17, [8, 9])]
)
def test_no_image_is_alone_in_a_batch(n_images, sizes, tiny, images):
    teacher = teacher_of(tiny)
    objective = MeanShiftedContrast(
        open_images(images), teacher.preprocessing, TunedNetwork(teacher, 1),
        np.zeros(24, np.float32), temperature=0.25, batch_size=8, n_jobs=1,
    )  # fmt: skip
    batches = objective.batches(np.arange(n_images), 0, iter)
    assert [len(batch[0]) for batch in batches] == sizes
    assert objective.n_batches(n_images) == len(sizes)


def test_views_differ_by_image_by_draw_and_by_seed_alone(tiny, rng):
    teacher = teacher_of(tiny)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    objective = MeanShiftedContrast(
        open_images(np.stack([image] * 4)), teacher.preprocessing, TunedNetwork(teacher, 1),
        np.zeros(24, np.float32), temperature=0.25, batch_size=2, n_jobs=1,
    )  # fmt: skip

    def draw(seed: int) -> torch.Tensor:
        return torch.cat(list(objective.batches(np.arange(4), seed, iter)), dim=1).flatten(0, 1)

    views = draw(0)
    for i in range(8):
        assert not any(torch.equal(views[i], views[j]) for j in range(i))
    assert torch.equal(draw(0), views)
    assert not torch.equal(draw(1), views)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (
        teacher.preprocessing.mean, teacher.preprocessing.std))  # fmt: skip
    colours = views * std + mean
    assert -1e-5 <= colours.min() < 0.3
    assert 0.7 < colours.max() <= 1 + 1e-5


# --- when it stops, and which state counts


def test_a_collapse_ends_tuning_and_is_not_kept(make, images):
    collapsing = {"max_epochs": 60, "patience": 60}
    free = make(CompactFeatures, min_spread=0, **collapsing).fit(images)
    assert min(record["valid_loss"] for record in free.history_) < 0.5 * free.initial_loss_
    features = make(CompactFeatures, min_spread=0.8, **collapsing).fit(images)
    floor = 0.8 * features.initial_loss_
    losses = [record["valid_loss"] for record in features.history_]
    assert losses[-1] < floor <= min(losses[:-1])
    assert 0 < features.n_epochs_ < len(losses)
    held_out = features.transform(images[features.validation_indices_])
    assert np.square(held_out - features.center_).mean() >= floor * (1 - 1e-4)


@BOTH
def test_tuning_ends_without_a_gain_and_keeps_the_best(cls, make, images, monkeypatch):
    script = iter([3.0, 2.5, 2.0, 2.5, 2.25, 1.0])
    objective = {CompactFeatures: Compactness, MeanShiftedFeatures: MeanShiftedContrast}[cls]
    learn = objective.losses

    def losses(self, batch):
        return learn(self, batch) if torch.is_grad_enabled() else torch.tensor([next(script)])

    monkeypatch.setattr(objective, "losses", losses)
    features = make(cls, max_epochs=9, patience=2).fit(images)
    assert [record["valid_loss"] for record in features.history_] == [2.5, 2.0, 2.5, 2.25]
    assert features.initial_loss_ == 3.0
    assert features.n_epochs_ == 2
    script = iter([3.0, 2.5, 2.0])
    shorter = make(cls, max_epochs=2).fit(images)
    np.testing.assert_array_equal(features.transform(images), shorter.transform(images))


@BOTH
def test_without_a_gain_the_pretrained_features_are_kept(cls, make, tiny, images):
    with pytest.warns(
        ConvergenceWarning, match="did not improve the loss on .* held-out images in 1 epochs"
    ) as caught:
        features = make(cls, learning_rate=1e-30, patience=1).fit(images)
    assert caught[0].filename == __file__
    plain = ViTFeatures(backbone=tiny).fit_transform(images)
    if cls is MeanShiftedFeatures:
        plain = unit(plain)
    assert features.n_epochs_ == 0
    np.testing.assert_allclose(features.transform(images), plain, rtol=1e-6, atol=1e-7)


@BOTH
def test_labels_of_anomalies_are_warned_of(cls, make, images):
    with pytest.warns(LabelWarning, match="labels of several kinds") as caught:
        make(cls, max_epochs=1).fit(images, [1, -1] * (len(images) // 2))
    assert caught[0].filename == __file__


@BOTH
def test_a_tuning_that_diverges_says_so(cls, make, images):
    with pytest.raises(ValueError, match=r"diverged: .* with learning_rate=1e\+30"):
        make(cls, learning_rate=1e30, validation_fraction=0).fit(images)


@BOTH
def test_epochs_are_logged(cls, make, images, caplog):
    with caplog.at_level(logging.INFO, "skanomaly_vit"):
        make(cls, verbose=1, max_epochs=1).fit(images)
    assert "epoch 1/1: loss" in caplog.text
    assert "held out" in caplog.text


class StopAfterTwo:
    """A callback that counts tasks, and asks to stop after two epochs.

    Of each epoch it notes how many batches were announced.
    """

    max_propagation_depth = None

    def __init__(self):
        self.ended = []
        self.announced = []

    def setup(self, estimator, context):
        pass

    teardown = on_fit_task_begin = setup

    def on_fit_task_end(self, estimator, context):
        self.ended.append(context.task_name)
        if context.task_name == "epoch":
            self.announced.append(context.max_subtasks)
        return self.ended.count("epoch") == 2


@BOTH
def test_callbacks_see_epochs_and_batches_and_can_stop(cls, make, images):
    callback = StopAfterTwo()
    features = make(cls, max_epochs=9, patience=9).set_callbacks(callback).fit(images)
    assert len(features.history_) == callback.ended.count("epoch") == 2
    # 16 images in 2 batches to learn from, 4 in 1 held out
    assert callback.ended.count("batch") == 2 * (2 + 1)
    assert callback.announced == 2 * [2 + 1]


def test_callbacks_see_one_batch_less_where_an_image_is_left_over(make, images):
    callback = StopAfterTwo()
    make(MeanShiftedFeatures, validation_fraction=0).set_callbacks(callback).fit(images[:17])
    assert callback.ended.count("batch") == 2 * 2
    assert callback.announced == 2 * [2]


# --- what it leaves alone


@BOTH
def test_the_teacher_and_the_global_generator_are_left_alone(cls, images, tmp_path):
    # With a memory, estimators share one teacher.
    shared = {"backbone": "skanomaly_tiny", "pretrained": False, "device": "cpu",
              "memory": str(tmp_path / "a"), "random_state": 0}  # fmt: skip
    before = ViTFeatures(**shared).fit(images)
    expected, weights = before.transform(images), pickle.dumps(before._teacher.model.state_dict())
    state = torch.get_rng_state()
    features = cls(n_tuned_blocks=1, learning_rate=1.0, max_epochs=2, validation_fraction=0,
                   **shared).fit(images)  # fmt: skip
    assert features.n_epochs_ == 2
    features.transform(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert pickle.dumps(before._teacher.model.state_dict()) == weights
    assert not any(p.requires_grad for p in features._teacher.model.parameters())
    after = before.set_params(memory=str(tmp_path / "b")).transform(images)
    np.testing.assert_array_equal(after, expected)


def test_views_leave_the_generators_of_gpus_alone(make, images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    make(MeanShiftedFeatures, device="cpu").fit(images)


# --- the same again


def test_two_threads_draw_views_as_each_does_alone(make, images, monkeypatch):
    def losses(seed: int) -> list[float]:
        features = make(MeanShiftedFeatures, max_epochs=1, random_state=seed).fit(images)
        return [features.initial_loss_, features.history_[0]["train_loss"]]

    alone = [losses(seed) for seed in range(2)]
    make_params = meeting(v2.RandomResizedCrop.make_params)
    monkeypatch.setattr(v2.RandomResizedCrop, "make_params", make_params)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(losses, range(2))) == alone


@BOTH
def test_the_same_seed_gives_the_same_bits(cls, make, images):
    first = make(cls, validation_fraction=0).fit(images)
    again = clone(first).set_params(n_jobs=2).fit(images)
    np.testing.assert_array_equal(again.transform(images), first.transform(images))
    losses = [[record["train_loss"] for record in f.history_] for f in (first, again)]
    assert losses[0] == losses[1]
    other = clone(first).set_params(random_state=1).fit(images)
    assert not np.array_equal(other.transform(images), first.transform(images))


def test_the_activation_cache_spares_passes_and_changes_nothing(make, images, embedded):
    kept = make(CompactFeatures).fit(images)
    n_kept = sum(taken for taken in embedded if taken)
    embedded.clear()
    anew = make(CompactFeatures, activation_cache=0).fit(images)
    assert sum(embedded) > n_kept
    np.testing.assert_allclose(anew.transform(images), kept.transform(images), rtol=1e-4, atol=1e-5)


@BOTH
def test_memory_changes_nothing(cls, make, images, tmp_path):
    expected = make(cls, validation_fraction=0).fit(images).transform(images)
    memory = DiskCache(tmp_path)
    for _ in range(2):
        features = make(cls, validation_fraction=0, memory=memory).fit(images)
        np.testing.assert_array_equal(features.transform(images), expected)


@BOTH
def test_memory_keeps_no_tokens_of_a_network_that_nobody_else_has(cls, make, images, tmp_path):
    memory = DiskCache(tmp_path)
    features = make(cls, memory=memory).fit(images)
    size = memory.size
    Z = features.transform(images)
    assert memory.size - size < 2 * Z.nbytes  # features alone; tokens are many times that


def test_pickles_give_the_same_bits_in_another_process(images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    expected = {}
    for cls in (CompactFeatures, MeanShiftedFeatures):
        features = cls(
            backbone="vit_tiny_patch16_224", pretrained=False, image_size=32, n_tuned_blocks=1,
            max_epochs=1, learning_rate=1e-2, validation_fraction=0, device="cpu", random_state=0,
        ).fit(images)  # fmt: skip
        expected[cls.__name__] = features.transform(images)
        joblib.dump(features, tmp_path / cls.__name__)
        block = sum(v.nbytes for v in features._teacher.blocks[-1].state_dict().values())
        assert (tmp_path / cls.__name__).stat().st_size < 1.1 * block  # of twelve
    code = (
        "import joblib, numpy as np\n"
        "for name in ('CompactFeatures', 'MeanShiftedFeatures'):\n"
        "    np.save(name, joblib.load(name).transform(np.load('images.npy')))"
    )
    path = os.pathsep.join(filter(None, [root(), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    for name, Z in expected.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), Z)


def root() -> str:
    return str(Path(sys.modules["skanomaly_vit"].__file__).parents[1])


@BOTH
def test_a_refit_forgets_what_was_tuned_before(cls, make, images, odd_images):
    expected = make(cls, validation_fraction=0).fit(images).transform(images)
    features = make(cls, validation_fraction=0).fit(odd_images)
    features.transform(images)
    np.testing.assert_array_equal(features.fit(images).transform(images), expected)


# --- as scikit-learn has it


@BOTH
def test_a_pipeline_scores_odd_images_lower(cls, make, images, odd_images):
    pipeline = make_pipeline(make(cls), KNNDensity(n_neighbors=2)).fit(images)
    assert np.median(pipeline.score_samples(odd_images)) < pipeline.score_samples(images).min()


@BOTH
def test_names_of_features(cls, make, images):
    features = make(cls, max_epochs=1).set_output(transform="pandas").fit(images)
    names = features.transform(images).columns.tolist()
    assert names == features.get_feature_names_out().tolist()
    assert names[:2] == [f"{cls.__name__.lower()}{i}" for i in range(2)]
    assert len(names) == 24


@pytest.mark.parametrize(
    ("cls", "parameter", "value"),
    [
        (CompactFeatures, "n_tuned_blocks", 0), (CompactFeatures, "max_epochs", 0),
        (CompactFeatures, "learning_rate", 0), (CompactFeatures, "validation_fraction", 1.0),
        (CompactFeatures, "patience", 0), (CompactFeatures, "min_spread", 1.0),
        (CompactFeatures, "activation_cache", -1), (CompactFeatures, "verbose", "loud"),
        (MeanShiftedFeatures, "temperature", 0), (MeanShiftedFeatures, "n_tuned_blocks", 1.5),
        (MeanShiftedFeatures, "batch_size", 1),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused(cls, parameter, value, make, images):
    with pytest.raises(ValueError, match=f"The '{parameter}' parameter of"):
        make(cls, **{parameter: value}).fit(images)


@BOTH
def test_too_few_images_to_hold_some_out(cls, make, images):
    with pytest.raises(ValueError, match="validation_fraction=0"):
        make(cls).fit(images[:1])
    n_enough = {CompactFeatures: 1, MeanShiftedFeatures: 2}[cls]
    features = make(cls, validation_fraction=0).fit(images[:n_enough])
    assert features.transform(images).shape == (20, 24)


@pytest.mark.parametrize(
    ("n_images", "fraction", "message"),
    [
        (1, 0, "holds out 0; at least 2 must be left to train on. Pass more images"),
        (5, 0.7, "holds out 4; at least 2 must be left to train on. Pass more images"),
        (5, 0.2, "holds out 1; at least 2 must be held out, or none. Pass more images"),
    ],
)
def test_an_image_alone_is_not_told_from_others(
    n_images, fraction, message, make, images, monkeypatch
):
    monkeypatch.setattr(_base, "load_teacher", lambda *a, **k: pytest.fail("began to work"))
    with pytest.raises(ValueError, match=rf"n_samples={n_images}\).* {message}"):
        make(MeanShiftedFeatures, validation_fraction=fraction).fit(images[:n_images])


def test_two_held_out_images_are_told_apart(make, images):
    features = make(MeanShiftedFeatures, validation_fraction=0.5).fit(images[:4])
    assert features.initial_loss_ > 0
