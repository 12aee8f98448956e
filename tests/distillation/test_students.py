"""Students as parts: named, passed, searched, or a user's own."""

from __future__ import annotations

import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GridSearchCV

from skanomaly_vit import BlockDistillation, TransformalyDetector
from skanomaly_vit.distillation import BlockStudent, RidgeStudent
from skanomaly_vit.model_selection import NormalOnlyKFold, anomaly_scorer


class MeanStudent(BaseEstimator):
    """Predicts that a block adds the same to every token."""

    def __init__(self, factor=1.0, random_state=None):
        self.factor = factor
        self.random_state = random_state

    def fit(self, batches):
        total, n = 0.0, 0
        for _ in range(2):  # a stream can be iterated over again
            for tokens, output in batches:
                total = total + (output - tokens).double().sum(dim=(0, 1))
                n += tokens.shape[0] * tokens.shape[1]
        self.shift_ = self.factor * total / n
        self.seed_ = self.random_state
        return self

    def predict(self, tokens):
        return tokens + self.shift_.to(tokens)


class CutStudent(MeanStudent):
    def predict(self, tokens):
        return tokens[:, 1:]


@pytest.fixture
def make(tiny):
    def make(**parameters):
        return BlockDistillation(
            **{"backbone": tiny, "n_blocks": 2, "random_state": 0} | parameters
        )

    return make


@pytest.mark.parametrize(
    ("name", "part"), [("ridge", RidgeStudent()), ("block", BlockStudent())], ids=str
)
def test_a_name_stands_for_default_parameters(name, part, make, images):
    found = [make(student=student).fit(images).transform(images) for student in (name, part)]
    np.testing.assert_array_equal(*found)


def test_a_parameter_of_a_student_is_followed(make, images):
    stiff = make(student=RidgeStudent(alpha=1e9)).fit(images)
    assert (stiff.transform(images) > make().fit(images).transform(images)).all()


@pytest.mark.parametrize(
    "student", [RidgeStudent(alpha=0.0), BlockStudent(patience=0), BlockStudent(max_epochs=1.5)]
)
def test_a_parameter_of_a_student_is_checked_before_any_work(student, make):
    with pytest.raises(ValueError, match=f"parameter of {type(student).__name__}"):
        make(student=student).fit(["no such file"])


def test_a_part_is_cloned_and_left_alone(make, images):
    student = RidgeStudent(alpha=0.5)
    distillation = make(student=student).fit(images)
    assert distillation.student is student
    assert not hasattr(student, "module_")
    assert clone(distillation).student.alpha == 0.5


def test_parameters_are_searched_by_their_path(make_detector, images, odd_images):
    X, y = np.concatenate([images, odd_images]), np.repeat([1, -1], [len(images), len(odd_images)])
    detector = make_detector(student=RidgeStudent(), contamination=0.2)
    assert detector.get_params(deep=True)["student__alpha"] == 0.01
    search = GridSearchCV(
        detector,
        {"student__alpha": [1e-3, 1.0]},
        cv=NormalOnlyKFold(2),
        scoring=anomaly_scorer(),
        refit=False,
    ).fit(X, y)
    assert search.cv_results_["param_student__alpha"].tolist() == [1e-3, 1.0]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("name", ["student__alpha", "density__n_neighbors"])
def test_a_parameter_of_a_part_that_is_a_name_says_what_to_pass(name, make_detector):
    with pytest.raises(ValueError, match=rf"{name} cannot be set.*'auto' is a name. Pass the part"):
        make_detector().set_params(**{name: 1})


def test_a_part_and_its_parameter_can_be_set_at_once():
    detector = TransformalyDetector().set_params(student=RidgeStudent(), student__alpha=2.0)
    assert detector.student.alpha == 2.0


# --- RidgeStudent by itself


def test_a_ridge_student_fits_a_stream(make, images, monkeypatch):
    """The same map as the distillation's, from the tokens that a block takes and gives."""
    distillation = make(n_blocks=1, validation_fraction=0.0).fit(images)
    teacher = distillation._held_teacher()
    calls = []
    source = distillation._open(images, reset=False)
    passes = distillation._passes(teacher, source).passes
    for _ in passes.run(np.arange(len(images)), [2], calls.append):
        pass
    student = RidgeStudent().fit([(call.tokens, call.output) for call in calls])
    for call in calls:
        expected = distillation.students_[0](call.tokens)
        torch.testing.assert_close(student.predict(call.tokens), expected)


def test_a_stream_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="found no batch of tokens"):
        RidgeStudent().fit([])


# --- a user's own


def test_a_student_of_ones_own_is_fitted_for_each_block(make, images, odd_images):
    distillation = make(student=MeanStudent()).fit(images)
    errors = distillation.transform(images)
    assert errors.shape == (len(images), 2)
    assert (np.median(distillation.transform(odd_images), axis=0) > np.median(errors, axis=0)).all()
    assert len({id(student) for student in distillation.students_}) == 2
    # Its error is the variance of what the block adds, and the record of the losses says so.
    assert len(distillation.history_) == 1
    learned = np.delete(errors, distillation.validation_indices_, axis=0)
    losses = distillation.history_[0]["train_loss"]
    np.testing.assert_allclose(losses, learned.mean(axis=0), rtol=1e-5)


def test_an_own_student_follows_the_seed_and_its_parameters(make, images):
    distillation = make(student=MeanStudent(factor=2.0)).fit(images)
    inner = distillation.students_[0].student
    assert inner.factor == 2.0
    assert isinstance(inner.seed_, int)


@pytest.mark.parametrize("kind", ["pickle", "memory", "threads"])
def test_an_own_student_gives_the_same_scores_everywhere(kind, make_detector, images, tmp_path):
    detector = make_detector(student=MeanStudent(), contamination=0.2).fit(images)
    expected = detector.score_samples(images)
    if kind == "pickle":
        other = pickle.loads(pickle.dumps(detector))
    else:
        memory = tmp_path if kind == "memory" else None
        other = make_detector(student=MeanStudent(), memory=memory, contamination=0.2)
        with joblib.parallel_config("threading", n_jobs=2 if kind == "threads" else 1):
            other.fit(images)
    for _ in range(2):
        np.testing.assert_array_equal(other.score_samples(images), expected)


def test_an_own_student_of_other_parameters_is_not_recalled(make_detector, images, tmp_path):
    first, second = (
        make_detector(student=MeanStudent(f), memory=tmp_path, contamination=0.2).fit(images)
        for f in (1.0, 3.0)
    )
    assert (first.score_samples(images) != second.score_samples(images)).any()


def test_a_prediction_of_another_shape_is_refused(make, images):
    with pytest.raises(ValueError, match=r"CutStudent.predict gives \(\d+, 4, 24\) for tokens of"):
        make(student=CutStudent()).fit(images)


def test_checkpoints_refuse_an_own_student_before_any_work(make, tmp_path):
    with pytest.raises(
        ValueError, match="checkpoints hold students of this package only, not a Me"
    ):
        make(student=MeanStudent(), checkpoint_dir=tmp_path).fit(["no such file"])


def test_a_model_file_refuses_an_own_student(images, tmp_path):
    detector = TransformalyDetector(
        backbone="skanomaly_tiny", pretrained=False, image_size=32, n_blocks=1, random_state=0,
        student=MeanStudent(),
    ).fit(images)  # fmt: skip
    with pytest.raises(ValueError, match=r"student=MeanStudent\(...\) is not of skanomaly-vit"):
        detector.save(tmp_path / "m")


@pytest.mark.parametrize("student", [object(), "linear", 1])
def test_what_is_no_student_is_refused(student, make, images):
    with pytest.raises(ValueError, match="The 'student' parameter of BlockDistillation"):
        make(student=student).fit(images)


@pytest.mark.parametrize("student", [MeanStudent, RidgeStudent])
def test_a_class_in_place_of_a_student_is_refused(student, make, images):
    with pytest.raises(
        ValueError, match=f"student={student.__name__} is a class; pass an instance"
    ):
        make(student=student).fit(images)
