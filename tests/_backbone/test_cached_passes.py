"""`memory`: what fits share, what they must not, and that no result is affected."""

from __future__ import annotations

import copy
import itertools
import os
import sqlite3

import joblib
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from students import with_student

from skanomaly_vit import BlockDistillation, DiskCache, TransformalyDetector, ViTFeatures
from skanomaly_vit._backbone import image_estimator as _base
from skanomaly_vit._backbone.activations import HeldActivations
from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit.exceptions import CacheWarning
from skanomaly_vit.model_selection import NormalOnlyKFold, anomaly_scorer


@pytest.fixture
def cache(tmp_path):
    with DiskCache(tmp_path / "cache") as cache:
        yield cache


@pytest.fixture
def paths(images, tmp_path) -> list[str]:
    names = [str(tmp_path / f"{i}.png") for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(name)
    return names


MEMORIES = {
    "cache": lambda folder: DiskCache(folder),
    "path": lambda folder: folder,
    "text": str,
    "joblib": lambda folder: joblib.Memory(folder, verbose=0),
}


def outcome(detector: TransformalyDetector, X) -> list[np.ndarray]:
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in
               detector.distillation_.history_]  # fmt: skip
    students = [value.numpy() for s in detector.distillation_.students_
                for value in s.state_dict().values()]  # fmt: skip
    scores = detector.score_samples(X)
    return [scores, np.array(detector.offset_), *students, np.array(str(history))]


def assert_same(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("student", ["ridge", "block"])
@pytest.mark.parametrize("kind", MEMORIES)
def test_results_are_the_same_to_the_bit(kind, student, make_detector, images, tmp_path):
    expected = outcome(make_detector(student=student).fit(images), images)
    memory = MEMORIES[kind](tmp_path / "memory")
    for n_blocks in (1, 2, 2, 3):  # nothing known, a part, all, more
        detector = make_detector(student=student, n_blocks=n_blocks, memory=memory)
        detector.fit(images)
        if n_blocks == 2:
            assert_same(outcome(detector, images), expected)


@pytest.mark.parametrize("kind", MEMORIES)
def test_transformers_remember_too(kind, tiny, images, tmp_path, embedded):
    for cls in (ViTFeatures, BlockDistillation):
        expected = cls(backbone=tiny, random_state=0, **{"n_blocks": 2} if cls is
                       BlockDistillation else {}).fit(images)  # fmt: skip
        memory = MEMORIES[kind](tmp_path / cls.__name__)
        for _ in range(2):
            again = clone(expected).set_params(memory=memory).fit(images)
            embedded.clear()
            np.testing.assert_array_equal(again.transform(images), expected.transform(images))
        assert sum(embedded) == len(images)  # by the one without memory


@pytest.mark.parametrize("student", ["ridge", "block"])
@pytest.mark.parametrize("kind", ["cache", "joblib"])
def test_what_comes_after_the_network_never_touches_it(
    kind, student, make_detector, images, odd_images, tmp_path, embedded
):
    memory = MEMORIES[kind](tmp_path / "memory")
    options = {"student": student, "memory": memory}
    make_detector(**options).fit(images).score_samples(odd_images)
    embedded.clear()
    for change in (
        {"pca_variance": 0.5},
        {"density": "knn"},
        {"fusion": "standardized"},
        {"contamination": 0.3},
        {"n_blocks": 1},
        {"feature_spaces": "pretrained"},
    ):
        make_detector(**options | change).fit(images).score_samples(odd_images)
    assert embedded == []


def test_folds_share_the_tokens_of_their_images(make_detector, images, odd_images, cache, embedded):
    X, y = np.concatenate([images, odd_images]), np.repeat([1, -1], [20, 6])
    search = GridSearchCV(
        make_detector(memory=cache),
        {"n_blocks": [1, 3, 2], "pca_variance": [0.5, 0.9]},
        scoring=anomaly_scorer("roc_auc", anomaly_label=-1),
        cv=NormalOnlyKFold(3),
        refit=False,
    ).fit(X, y)
    blank_images = embedded.count(1)
    assert sum(embedded) - blank_images <= len(X)
    plain = clone(search).set_params(estimator__memory=None).fit(X, y)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )


def test_processes_share_a_cache(images, odd_images, cache):
    X, y = np.concatenate([images, odd_images]), np.repeat([1, -1], [20, 6])
    detector = TransformalyDetector(
        backbone="embedded", image_size=28, pretrained=False, n_blocks=2, random_state=0,
        memory=cache,
    )  # fmt: skip
    grid = {"n_blocks": [1, 2], "pca_variance": [0.5, 0.9]}
    options = {"scoring": anomaly_scorer("roc_auc", anomaly_label=-1), "refit": False}
    searches = [
        GridSearchCV(detector, grid, cv=NormalOnlyKFold(2), n_jobs=n_jobs, **options).fit(X, y)
        for n_jobs in (2, None)
    ]
    np.testing.assert_allclose(*(s.cv_results_["mean_test_score"] for s in searches))
    assert cache.size > 0


def test_a_search_loads_the_backbone_once(images, cache, monkeypatch):
    loads = []
    load = _base.load_teacher

    def counting(*args, **options):
        loads.append(args)
        return load(*args, **options)

    monkeypatch.setattr(_base, "load_teacher", counting)
    _base._load_recent_teacher.cache_clear()
    options = {"backbone": "skanomaly_tiny", "pretrained": False, "random_state": 0}
    for variance in (0.5, 0.6, 0.7):
        TransformalyDetector(
            **with_student(n_blocks=1, memory=cache, pca_variance=variance, **options)
        ).fit(images)
    assert len(loads) == 1
    TransformalyDetector(**with_student(n_blocks=1, image_size=16, memory=cache, **options)).fit(
        images
    )
    assert len(loads) == 2


def test_a_checkpoint_that_changed_is_read_again(images, cache, tmp_path):
    path = tmp_path / "weights.pth"
    scores = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_vit").state_dict(), path)
        options = {"backbone": "test_vit", "pretrained": path, "n_blocks": 1}
        detectors = [
            TransformalyDetector(**with_student(random_state=0, memory=memory, **options)).fit(
                images
            )
            for memory in (cache, None)
        ]
        scores.append([detector.score_samples(images) for detector in detectors])
    np.testing.assert_array_equal(scores[0][0], scores[0][1])
    np.testing.assert_array_equal(scores[1][0], scores[1][1])
    assert (scores[0][0] != scores[1][0]).all()


@pytest.mark.parametrize(
    "change",
    [{"alpha": 1.0}, {"validation_fraction": 0.5}, {"batch_size": 4},
     {"student": "block"}, {"image_size": 48}],
    ids=str,
)  # fmt: skip
def test_students_follow_what_they_are_trained_with(change, make_detector, images, cache):
    make_detector(memory=cache).fit(images)
    changed = make_detector(memory=cache, **change).fit(images)
    assert_same(outcome(changed, images), outcome(make_detector(**change).fit(images), images))


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 1e-2}, {"learning_rate_schedule": "constant"}, {"max_epochs": 3},
     {"random_state": 1}, {"patience": 1}],
    ids=str,
)  # fmt: skip
def test_block_students_follow_their_schedule(change, make_detector, images, cache):
    make_detector(student="block", memory=cache).fit(images)
    changed = make_detector(student="block", memory=cache, **change).fit(images)
    expected = make_detector(student="block", **change).fit(images)
    assert_same(outcome(changed, images), outcome(expected, images))


def test_students_follow_their_images_and_weights(make_detector, tiny, images, cache):
    make_detector(memory=cache).fit(images)
    reordered = images[::-1]
    brighter = images.copy()
    brighter[0, 0, 0] += 1
    other = copy.deepcopy(tiny)
    with torch.no_grad():
        other.blocks[0].mlp.fc1.weight[0, 0] += 1e-3
    for X, backbone in [(reordered, tiny), (brighter, tiny), (images, other)]:
        changed, expected = (
            outcome(make_detector(memory=memory, backbone=backbone).fit(X), X)
            for memory in (cache, None)
        )
        assert_same(changed, expected)


def test_an_image_is_known_by_its_content_not_its_path(make_detector, paths, images, cache):
    first = make_detector(memory=cache).fit(paths).score_samples(paths)
    Image.fromarray(255 - images[0]).save(paths[0])
    detector = make_detector(memory=cache).fit(paths)
    expected = make_detector().fit(paths).score_samples(paths)
    np.testing.assert_array_equal(detector.score_samples(paths), expected)
    assert (first != expected).all()


def test_a_copied_image_is_known_again(make_detector, paths, cache, embedded, tmp_path):
    make_detector(memory=cache).fit(paths)
    embedded.clear()
    copies = [str(tmp_path / f"copy-{os.path.basename(path)}") for path in paths]
    for path, copied in zip(paths, copies, strict=True):
        os.link(path, copied)
    make_detector(memory=cache).fit(copies)
    assert embedded == []


def test_an_image_that_changes_meanwhile_is_an_error(make_detector, paths, cache, monkeypatch):
    run = Teacher.__call__

    def changing(self, images, **options):
        Image.new("RGB", (32, 32)).save(paths[3])
        return run(self, images, **options)

    monkeypatch.setattr(Teacher, "__call__", changing)
    with pytest.raises(ValueError, match=r"sample 3 \('.*3\.png'\) changed while it was in use"):
        make_detector(memory=cache).fit(paths)


def test_an_unreadable_image_is_found_before_work_starts(make_detector, paths, cache, embedded):
    with open(paths[7], "r+b") as file:
        file.truncate(200)
    with (
        Image.open(paths[7]) as broken,
        pytest.raises(ValueError, match="sample 1: the image cannot be read"),
    ):
        make_detector(memory=cache).fit([paths[0], broken, paths[1]])
    assert embedded == []


def test_a_damaged_entry_is_computed_again_with_a_warning(make_detector, images, cache):
    expected = make_detector(memory=cache).fit(images).score_samples(images)
    database = sqlite3.connect(cache.location / "cache.sqlite")
    with database:
        database.execute("UPDATE entries SET value = zeroblob(size)")
    database.close()
    detector = make_detector(memory=cache)
    with pytest.warns(CacheWarning, match="damaged"):
        scores = detector.fit(images).score_samples(images)
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(detector.score_samples(images), expected)


def test_a_cache_that_is_too_small_changes_nothing(make_detector, images, tmp_path):
    with DiskCache(tmp_path / "small", max_bytes=20_000) as cache:
        scores = make_detector(memory=cache).fit(images).score_samples(images)
        assert cache.size <= 20_000
    np.testing.assert_array_equal(scores, make_detector().fit(images).score_samples(images))


def test_a_cache_that_fails_changes_nothing(make_detector, images, tmp_path):
    (tmp_path / "cache.sqlite").write_bytes(b"not a database" * 1000)
    detector = make_detector(memory=tmp_path)
    with pytest.warns(CacheWarning, match="not used any more"):
        scores = detector.fit(images).score_samples(images)
    np.testing.assert_array_equal(scores, make_detector().fit(images).score_samples(images))


@pytest.mark.parametrize("kind", ["cache", "joblib"])
def test_a_training_that_was_stopped_is_not_remembered(kind, make_detector, images, tmp_path):
    class StopAfterOneEpoch:
        def setup(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context, **kwargs):
            pass

        def on_fit_task_end(self, estimator, context, **kwargs):
            return context.task_name == "epoch"

        def teardown(self, estimator, context):
            pass

    memory = MEMORIES[kind](tmp_path / "memory")
    stopped = make_detector(student="block", memory=memory)
    stopped.set_callbacks(StopAfterOneEpoch()).fit(images)
    assert len(stopped.distillation_.history_) == 1
    whole = make_detector(student="block", memory=memory).fit(images)
    assert len(whole.distillation_.history_) == 2


@pytest.mark.parametrize("memory", [3, object(), 1.5], ids=lambda value: type(value).__name__)
def test_what_cannot_remember_is_refused(make_detector, images, memory):
    with pytest.raises(ValueError, match="'memory' parameter"):
        make_detector(memory=memory).fit(images)


def test_a_file_is_no_memory(make_detector, images, tmp_path):
    path = tmp_path / "model.pkl"
    path.touch()
    with pytest.raises(ValueError, match=r"model\.pkl' is a file; a cache needs a folder"):
        make_detector(memory=path).fit(images)


def test_memory_can_come_after_fit(make_detector, images, cache, embedded):
    detector = make_detector().fit(images)
    expected = detector.score_samples(images)
    detector.set_params(memory=cache)
    np.testing.assert_array_equal(detector.score_samples(images), expected)
    embedded.clear()
    np.testing.assert_array_equal(detector.score_samples(images), expected)
    assert embedded == []


@pytest.fixture
def looked_up(monkeypatch) -> list[bytes]:
    """Keys that are looked up in caches on disk, as it happens."""
    keys: list[bytes] = []
    get = DiskCache.get

    def noting(self, wanted):
        keys.extend(wanted)
        return get(self, wanted)

    monkeypatch.setattr(DiskCache, "get", noting)
    return keys


@pytest.mark.parametrize(("budget", "readings"), [(2**30, 1), (0, 2)])
def test_a_fit_reads_kept_tokens_once_if_they_fit_in_memory(
    make_detector, images, cache, looked_up, budget, readings
):
    make_detector(memory=cache, random_state=0).fit(images)
    looked_up.clear()
    # Another split: tokens are known, students and discrepancies are not.
    make_detector(memory=cache, random_state=1, activation_cache=budget).fit(images)
    tokens_per_image = 4  # at three levels, and the features
    times = [looked_up.count(key) for key in set(looked_up)]
    trained_on = 16
    assert times.count(readings) >= trained_on * tokens_per_image
    assert max(times) == readings


def test_main_memory_holds_no_more_beside_a_cache(make_detector, images, cache, monkeypatch):
    keep, levels = HeldActivations.keep, set()

    def noting(self, tokens):
        levels.update(level for values in tokens.values() for level in values)
        keep(self, tokens)

    monkeypatch.setattr(HeldActivations, "keep", noting)
    make_detector(n_blocks=1).fit(images)
    alone, levels = levels, set()
    make_detector(n_blocks=1, memory=cache).fit(images)  # which keeps the tokens of all blocks
    assert levels == alone


def test_students_are_rebuilt_once_a_process(make_detector, images, cache, looked_up):
    first = make_detector(memory=cache).fit(images)
    second = make_detector(memory=cache, pca_variance=0.5).fit(images)
    for a, b in zip(first.distillation_.students_, second.distillation_.students_, strict=True):
        assert a is b


def test_students_that_fits_share_stay_on_their_device(make_detector, images, cache):
    first, second = (make_detector(memory=cache).fit(images).distillation_ for _ in range(2))
    students = first._students_on(torch.device("meta")).values()
    assert {value.device.type for s in students for value in s.buffers()} == {"meta"}
    assert {value.device.type for s in second.students_ for value in s.buffers()} == {"cpu"}


def test_a_backbone_that_fits_share_stays_on_its_device(images, cache):
    parameters = {"backbone": "test_vit", "pretrained": False, "random_state": 0, "memory": cache}
    first, second = (ViTFeatures(**parameters).fit(images) for _ in range(2))
    expected = second.transform(images)
    assert first.set_params(device="meta")._held_teacher().dtype == torch.float32
    second.set_params(memory=None)
    np.testing.assert_array_equal(second.transform(images), expected)


def test_students_of_one_memory_are_missing_in_another(make_detector, images, tmp_path):
    alpha = 0.0123  # which no other test has, in this process
    make_detector(memory=tmp_path / "a", alpha=alpha).fit(images)
    make_detector(memory=tmp_path / "b", alpha=alpha).fit(images)
    with DiskCache(tmp_path / "a") as a, DiskCache(tmp_path / "b") as b:
        assert a.size == b.size > 0


def test_rounded_students_are_others(make_detector, images, cache):
    exact = make_detector(memory=cache).fit(images)
    before = copy.deepcopy(outcome(exact, images))
    make_detector(memory=cache, student_dtype="bfloat16").fit(images)
    assert_same(outcome(exact, images), before)
    assert_same(outcome(make_detector(memory=cache).fit(images), images), before)


class Camera(timm.models.vision_transformer.VisionTransformer):
    """A network, while whose pass another image takes the place of one."""

    shot = None

    def forward_features(self, images):
        if Camera.shot is not None:
            Camera.shot()
        return super().forward_features(images)


@pytest.fixture
def camera(tmp_path, monkeypatch):
    """A network, and two files of a black image, of which the second may change meanwhile."""
    torch.manual_seed(0)
    network = Camera(img_size=32, patch_size=16, embed_dim=64, depth=2, num_heads=4, num_classes=0)
    names = [str(tmp_path / name) for name in ("first.png", "latest.png")]
    for name in names:
        Image.new("RGB", (32, 32)).save(name)
    monkeypatch.setattr(Camera, "shot", None)
    return network, names


def test_features_of_an_image_that_changed_meanwhile_are_not_kept_as_those_of_the_old(
    camera, tmp_path, monkeypatch
):
    network, (first, latest) = camera
    options = {"backbone": network, "batch_size": 1, "random_state": 0}
    memory = joblib.Memory(tmp_path / "memory", verbose=0)
    features = ViTFeatures(**options, memory=memory).fit([first])
    white = Image.new("RGB", (32, 32), "white")
    monkeypatch.setattr(Camera, "shot", lambda: white.save(latest))
    features.transform([first, latest])
    monkeypatch.setattr(Camera, "shot", None)
    Image.new("RGB", (32, 32)).save(latest)
    np.testing.assert_array_equal(*features.transform([first, latest]))


def test_an_image_that_goes_on_changing_is_an_error(camera, tmp_path, monkeypatch):
    network, (first, latest) = camera
    memory = joblib.Memory(tmp_path / "memory", verbose=0)
    features = ViTFeatures(backbone=network, batch_size=1, random_state=0, memory=memory)
    features.fit([first])
    grey = itertools.count(100)
    monkeypatch.setattr(
        Camera, "shot", lambda: Image.new("RGB", (32, 32), (next(grey), 0, 0)).save(latest)
    )
    with pytest.raises(ValueError, match=r"sample 1 \('.*latest\.png'\) changed while it was in"):
        features.transform([first, latest])


@pytest.mark.parametrize("student", ["ridge", "block"])
@pytest.mark.parametrize("option", ["memory", "checkpoint_dir"])
def test_students_of_images_that_change_meanwhile_are_not_kept(
    option, student, make_detector, paths, tmp_path, monkeypatch
):
    run = Teacher.__call__

    def changing(self, images, **options):
        for path in paths if len(images) > 1 else ():  # not yet when it looks at a blank image
            Image.new("RGB", (32, 32)).save(path)
        return run(self, images, **options)

    kept = joblib.Memory(tmp_path / "kept", verbose=0) if option == "memory" else tmp_path / "kept"
    monkeypatch.setattr(Teacher, "__call__", changing)
    with pytest.raises(ValueError, match=r"sample \d+ \('.*\.png'\) changed while it was"):
        make_detector(student=student, **{option: kept}).fit(paths)
