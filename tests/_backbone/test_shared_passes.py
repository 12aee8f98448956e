"""Work that is shared out by joblib: the same bits as in one process, whoever does it."""

from __future__ import annotations

import pickle
from multiprocessing.pool import ThreadPool

import joblib
import numpy as np
import pytest
import torch
from backbones import family
from images import blobs
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, register_parallel_backend
from PIL import Image
from students import with_student

from skanomaly_vit import BlockDistillation, CompactFeatures, ViTFeatures
from skanomaly_vit._backbone import image_estimator as _base
from skanomaly_vit._backbone import passes as _passes
from skanomaly_vit._backbone import shared_passes as _shards
from skanomaly_vit._backbone.passes import shards_of
from skanomaly_vit._backbone.shared_passes import TeacherHandle
from skanomaly_vit.distributed import _joblib as _engines
from skanomaly_vit.distributed._joblib import JoblibEngine, SharedObject, active_engine
from skanomaly_vit.exceptions import CheckpointWarning, UnreadableImageWarning

N_IMAGES = 40


class Elsewhere(AutoBatchingMixin, ParallelBackendBase):
    """Does as the backends of Ray and Spark: pickles what it is given, gives all results at once.

    Here "elsewhere" is another thread, for speed; real processes have tests of their own.
    """

    def effective_n_jobs(self, n_jobs):
        return n_jobs or 1

    def configure(self, n_jobs=1, parallel=None, **ignored):
        self.parallel = parallel
        self.pool = ThreadPool(n_jobs)
        return n_jobs

    def terminate(self):
        self.pool.terminate()

    def submit(self, func, callback=None):
        sent.append(pickle.dumps(func))
        return self.pool.apply_async(work, (sent[-1],), callback=callback)

    apply_async = submit  # the name that joblib 1.4 knows


sent: list[bytes] = []


def work(call):
    return through_a_store(through_a_store(pickle.loads(call))())


def through_a_store(thing):
    """As Ray hands things over: their arrays lie in memory that nobody may write to."""
    buffers = []
    data = pickle.dumps(thing, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])


register_parallel_backend("elsewhere", Elsewhere)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of eight images, nothing left from the tests before."""
    monkeypatch.setattr(_passes, "IMAGES_PER_SHARD", 8)
    monkeypatch.setattr(_passes, "SHARDS_PER_SUM", 1)
    sent.clear()
    _engines._held.clear()


@pytest.fixture
def many(rng) -> np.ndarray:
    return blobs(rng, N_IMAGES)


@pytest.fixture
def paths(many, tmp_path) -> list[str]:
    names = [str(tmp_path / f"{i}.png") for i in range(len(many))]
    for name, image in zip(names, many, strict=True):
        Image.fromarray(image).save(name)
    return names


@pytest.fixture
def make(make_detector):
    def make(**parameters):
        return make_detector(**{"batch_size": 4, "contamination": 0.2} | parameters)

    return make


def states(detector):
    return [value for s in detector.distillation_.students_ for value in s.state_dict().values()]


def assert_same_detector(detector, other):
    assert detector.offset_ == other.offset_
    for a, b in zip(states(detector), states(other), strict=True):
        assert torch.equal(a, b)
    np.testing.assert_array_equal(detector.calibration_scores_, other.calibration_scores_)
    losses = [
        [record["train_loss"] for record in d.distillation_.history_] for d in (detector, other)
    ]
    assert losses[0] == losses[1]


@pytest.fixture
def shared_out(monkeypatch):
    """The functions of which tasks were made."""
    names = []
    run = JoblibEngine.run

    def noting(self, function, shared, tasks):
        tasks = list(tasks)
        names.append(tasks[0].function.__name__)
        return run(self, function, shared, tasks)

    monkeypatch.setattr(JoblibEngine, "run", noting)
    return names


def test_shards_are_of_whole_batches_whatever_the_number_of_images(monkeypatch):
    assert shards_of(20, 3) == [slice(0, 6), slice(6, 12), slice(12, 18), slice(18, 20)]
    assert shards_of(20, 30) == [slice(0, 20)]
    assert shards_of(0, 3) == []
    monkeypatch.undo()
    assert shards_of(300, 32)[:2] == [slice(0, 128), slice(128, 256)]
    assert shards_of(1100, 32, of_sums=True) == [slice(0, 1024), slice(1024, 1100)]


def test_nothing_is_shared_out_unless_asked_for(make, many, shared_out):
    assert active_engine() is None
    make().fit(many).score_samples(many)
    with joblib.parallel_config(backend="threading", n_jobs=1):
        make().fit(many)
    assert shared_out == []


@pytest.mark.parametrize("backend", ["threading", "elsewhere"])
@pytest.mark.parametrize("student", ["ridge", "block"])
def test_no_bit_depends_on_who_does_the_work(make, many, odd_images, student, backend, shared_out):
    alone = make(student=student).fit(many)
    new = np.concatenate([odd_images, many])
    with joblib.parallel_config(backend=backend, n_jobs=3):
        together = make(student=student).fit(many)
        scores, maps = together.score_samples(new, return_map=True)
        spaces = together.score_spaces(new)
    fitting = "sum_part" if student == "ridge" else "train_part"
    assert shared_out == [fitting, "embed_part", "embed_part", "embed_part"]
    assert_same_detector(together, alone)
    np.testing.assert_array_equal(scores, alone.score_samples(new))
    np.testing.assert_array_equal(maps, alone.anomaly_map(new))
    np.testing.assert_array_equal(spaces.discrepancy, alone.score_spaces(new).discrepancy)


@pytest.mark.parametrize("n_jobs", [2, 5])
def test_no_bit_depends_on_the_number_of_workers(make, many, n_jobs):
    alone = make(n_blocks=3, student="block").fit(many)
    with joblib.parallel_config(backend="threading", n_jobs=n_jobs):
        together = make(n_blocks=3, student="block").fit(many)
    assert_same_detector(together, alone)


def test_sums_that_round_by_order_are_taken_in_the_same_order(make, many):
    """Float64 tokens: sums of products of float32 ones are exact with so few images."""
    double = family("class token").double()
    alone = make(backbone=double, batch_size=2).fit(many)
    with joblib.parallel_config(backend="threading", n_jobs=3):
        together = make(backbone=double, batch_size=2).fit(many)
    assert_same_detector(together, alone)


def test_processes_of_loky_find_the_backbone_by_name(make, paths):
    named = {"backbone": "test_vit", "pretrained": False, "image_size": 32, "n_blocks": 2}
    alone = make(**named).fit(paths)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        together = make(**named).fit(paths)
        scores = together.score_samples(paths)
    assert_same_detector(together, alone)
    np.testing.assert_array_equal(scores, alone.score_samples(paths))


@pytest.mark.parametrize(
    ("estimator", "options"),
    [(ViTFeatures, {}), (BlockDistillation, {"n_blocks": 2}), (CompactFeatures, {})],
)
def test_the_transformers_are_shared_out_too(estimator, options, tiny, many, shared_out):
    options = options | {"backbone": tiny, "batch_size": 4, "random_state": 0}
    alone = estimator(**options).fit_transform(many)
    assert not shared_out
    with joblib.parallel_config(backend="elsewhere", n_jobs=2):
        np.testing.assert_array_equal(estimator(**options).fit_transform(many), alone)
    assert "embed_part" in shared_out


@pytest.mark.parametrize("kind", ["paths", "PIL", "tensor", "rows", "floats"])
def test_every_form_of_images_can_be_shared_out(make, many, paths, kind):
    forms = {
        "paths": paths,
        "PIL": [Image.fromarray(image) for image in many],
        "tensor": torch.from_numpy(many).permute(0, 3, 1, 2),
        "rows": many.reshape(len(many), -1),
        "floats": many / 255,
    }
    X = forms[kind]
    shape = {"image_shape": (32, 32, 3)} if kind == "rows" else {}
    detector = make(**shape).fit(X)
    alone = detector.score_samples(X)
    with joblib.parallel_config(backend="elsewhere", n_jobs=2):
        np.testing.assert_array_equal(detector.score_samples(X), alone)


def test_paths_travel_and_pixels_do_not(make, many, paths):
    detector = make().fit(many)
    with joblib.parallel_config(backend="elsewhere", n_jobs=2):
        detector.score_samples(paths)
    assert len(sent) == N_IMAGES / 8
    assert max(len(call) for call in sent) < 8 * 320
    assert sum(call.count(b".png") for call in sent) == N_IMAGES


@pytest.fixture
def unpacked(monkeypatch):
    """What came out of objects."""
    things = []
    open_shared_object = SharedObject.open

    def opening(self):
        things.append(open_shared_object(self))
        return things[-1]

    monkeypatch.setattr(SharedObject, "open", opening)
    return things


def test_what_all_tasks_need_travels_once(make, many, unpacked):
    """The network and the students are unpacked once, and no task carries them."""
    detector = make().fit(many)
    with joblib.parallel_config(backend="elsewhere", n_jobs=3):
        for _ in range(2):
            detector.score_samples(many)
    assert sorted(type(thing).__name__ for thing in unpacked) == ["StudentsHandle", "TeacherHandle"]
    assert (
        max(len(call) for call in sent) < 8 * 32 * 32 * 3 + 8 * 300
    )  # the pixels, not the weights


def test_a_worker_that_cannot_see_the_folder_is_sent_what_it_needs(make, many, monkeypatch):
    detector = make().fit(many)
    alone = detector.score_samples(many)
    by_name = SharedObject.by_name

    def lost(self):
        return _engines.replace(by_name(self), path="/nowhere")

    monkeypatch.setattr(SharedObject, "by_name", lost)
    with joblib.parallel_config(backend="elsewhere", n_jobs=2):
        np.testing.assert_array_equal(detector.score_samples(many), alone)


def test_a_file_that_is_not_what_was_sent_is_not_unpickled(tmp_path):
    shared_object = SharedObject.pack({"a": 1}, str(tmp_path)).by_name()
    assert shared_object.open() == {"a": 1}
    with open(shared_object.path, "wb") as file:
        file.write(pickle.dumps({"a": 2}))
    with pytest.raises(_engines._MissingError):
        shared_object.open()


def test_another_backbone_under_the_same_name_is_refused(paths, make, monkeypatch):
    named = {"backbone": "test_vit", "pretrained": False, "image_size": 32, "n_blocks": 1}
    detector = make(**named).fit(paths)
    load = _shards.load_teacher
    monkeypatch.setattr(_shards, "load_teacher", lambda *a, **k: load(*a, **k | {"seed": 7}))
    with joblib.parallel_config(backend="elsewhere", n_jobs=2):
        with pytest.raises(ValueError, match=r"A worker found backbone='test_vit'.*store_backbone"):
            detector.score_samples(paths)
        detector.set_params(store_backbone=True).score_samples(paths)  # it travels itself


def test_a_backbone_of_another_processor_is_found_by_name(many, monkeypatch, unpacked):
    features = ViTFeatures(
        backbone="test_vit", pretrained=False, image_size=32, batch_size=4, random_state=0
    ).fit(many)
    expected = features.transform(many)
    load = _shards.load_teacher

    def load_here(*args, **options):
        teacher = load(*args, **options)
        with torch.no_grad():
            teacher.model.pos_embed.mul_(1 + 1e-6)  # as if interpolated with other rounding
        return teacher

    monkeypatch.setattr(_base, "load_teacher", load_here)
    monkeypatch.setattr(_shards, "load_teacher", load_here)
    features = pickle.loads(pickle.dumps(features))
    with joblib.parallel_config(backend="elsewhere", n_jobs=2):
        np.testing.assert_array_equal(features.transform(many), expected)
    (handle,) = (thing for thing in unpacked if isinstance(thing, TeacherHandle))
    assert not handle.include_weights


@pytest.mark.parametrize("backend", ["threading", "elsewhere"])
def test_the_first_unreadable_image_is_the_one_that_is_named(make, many, paths, backend):
    detector = make().fit(many)
    for broken in (35, 13):
        with open(paths[broken], "wb") as file:
            file.write(b"no image")
    with pytest.raises(ValueError, match="sample 13 ") as alone:
        detector.score_samples(paths)
    sharing = joblib.parallel_config(backend=backend, n_jobs=2)
    with sharing, pytest.raises(ValueError, match="sample 13 ") as together:
        detector.score_samples(paths)
    assert str(together.value) == str(alone.value)


def test_unreadable_images_get_nan_as_in_one_process(make, many, paths):
    detector = make(on_error="nan").fit(many)
    for broken in (*range(8, 16), 35):  # a whole shard, and one more
        with open(paths[broken], "wb") as file:
            file.write(b"no image")
    with pytest.warns(UnreadableImageWarning) as alone:
        scores, maps = detector.score_samples(paths, return_map=True)
    sharing = joblib.parallel_config(backend="elsewhere", n_jobs=2)
    with sharing, pytest.warns(UnreadableImageWarning) as together:
        shared = detector.score_samples(paths, return_map=True)
    np.testing.assert_array_equal(shared[0], scores)
    for a, b in zip(shared[1], maps, strict=True):
        np.testing.assert_array_equal(a, b)
    assert alone[0].message.images == together[0].message.images


def test_sizes_of_images_are_known_without_decoding_them_again(make, many, paths, monkeypatch):
    detector = make().fit(many)
    monkeypatch.setattr("skanomaly_vit._images.source.image_size", None)  # would fail if called
    with joblib.parallel_config(backend="elsewhere", n_jobs=2):
        assert detector.anomaly_map(paths).shape == (N_IMAGES, 32, 32)


def test_memory_remembers_what_was_shared_out(make, many, tmp_path, shared_out):
    remembering = {"memory": str(tmp_path / "cache"), "backbone": family("class token")}
    with joblib.parallel_config(backend="elsewhere", n_jobs=2):
        first = make(**remembering).fit(many)
        asked = len(shared_out)
        second = make(**remembering).fit(many)
    assert asked > 0
    assert len(shared_out) == asked
    assert_same_detector(second, first)
    assert_same_detector(make(**remembering, n_jobs=2).fit(many), first)


@pytest.mark.parametrize("backend", ["threading", "loky", "elsewhere"])
def test_a_task_of_joblib_is_not_split_further(backend):
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert active_engine().n_workers == 2
        inside = joblib.Parallel()(joblib.delayed(active_engine)() for _ in range(3))
    assert inside == [None] * 3


def test_threads_that_decode_stay_in_their_process(many, paths, make):
    detector = make(n_jobs=2).fit(many)
    with joblib.parallel_config(backend="elsewhere", n_jobs=2):
        detector.score_samples(paths[:8])  # a single shard
    assert sent == []


def test_progress_counts_batches_of_shards(make, many):
    class Counting:
        max_propagation_depth = None

        def setup(self, estimator, context):
            self.tasks = []

        def teardown(self, estimator, context): ...

        def on_fit_task_begin(self, estimator, context):
            self.tasks.append(context.task_name)

        def on_fit_task_end(self, estimator, context): ...

    counting, counts = Counting(), []
    for n_jobs in (1, 2):
        with joblib.parallel_config(backend="threading", n_jobs=n_jobs):
            make().set_callbacks(counting).fit(many)
        counts.append({name: counting.tasks.count(name) for name in set(counting.tasks)})
    assert counts[0] == counts[1]
    assert counts[0]["batch"] == 8 + 10


def test_block_students_that_workers_train_have_no_checkpoints(tiny, many, tmp_path):
    options = {"backbone": tiny, "student": "block", "n_blocks": 2, "max_epochs": 1}
    alone = BlockDistillation(**with_student(**options, random_state=0)).fit(many)
    with (
        joblib.parallel_config("elsewhere", n_jobs=2),
        pytest.warns(CheckpointWarning, match="workers write none for the block students"),
    ):
        shared = BlockDistillation(
            **with_student(**options, random_state=0, checkpoint_dir=tmp_path)
        ).fit(many)
    np.testing.assert_array_equal(shared.transform(many), alone.transform(many))
