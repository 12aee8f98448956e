"""Tokens that wait in a temporary file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skanomaly_vit._backbone import activations
from skanomaly_vit._backbone.activations import HeldActivations
from skanomaly_vit._backbone.tensor_file import TensorFile
from skanomaly_vit.exceptions import OutOfMemoryWarning


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_come_back_to_the_bit(dtype):
    torch.manual_seed(0)
    file = TensorFile()
    tensors = [torch.randn(shape).to(dtype) for shape in ((3, 5), (7,), (2, 0), (4, 2))]
    tensors.append(torch.randn(6, 6).to(dtype).T)
    places = [file.append(tensor) for tensor in tensors]
    for place, tensor in reversed(list(zip(places, tensors, strict=True))):
        assert torch.equal(file.read(place), tensor)


def test_a_student_may_learn_from_tokens_of_a_file():
    file = TensorFile()
    weight = torch.ones(3, requires_grad=True)
    (file.read(file.append(torch.arange(3.0))) * weight).sum().backward()
    assert weight.grad.tolist() == [0, 1, 2]


def tokens_of(n_images, n_values=100):
    return {i: {0: torch.full((n_values,), float(i))} for i in range(n_images)}


def test_memory_holds_the_first_tokens_and_a_file_the_others(monkeypatch):
    monkeypatch.setattr(activations, "IN_MEMORY", 1000)  # bytes
    held = HeldActivations(4000)
    held.keep(tokens_of(20))
    found = held.find(range(20), [0])
    assert sorted(found) == list(range(10))  # up to its limit
    assert all(torch.equal(found[i][0], torch.full((100,), float(i))) for i in found)
    in_memory = [i for i, each in held._tokens.items() if isinstance(each[0], torch.Tensor)]
    assert in_memory == [0, 1]


def test_a_fit_from_a_file_is_that_from_memory(make_detector, images, monkeypatch):
    expected = make_detector().fit(images).score_samples(images)
    monkeypatch.setattr(activations, "IN_MEMORY", 0)
    found = make_detector().fit(images).score_samples(images)
    np.testing.assert_array_equal(found, expected)


def test_a_full_disk_costs_time_and_nothing_else(make_detector, images, monkeypatch):
    expected = make_detector().fit(images).score_samples(images)
    monkeypatch.setattr(activations, "IN_MEMORY", 0)
    append, calls = TensorFile.append, []

    def fill_up(self, tensor):
        calls.append(tensor)
        if len(calls) > 9:
            raise OSError(28, "No space left on device")
        return append(self, tensor)

    monkeypatch.setattr(TensorFile, "append", fill_up)
    with pytest.warns(OutOfMemoryWarning, match="No space left on device") as caught:
        detector = make_detector().fit(images)
    assert len([each for each in caught if each.category is OutOfMemoryWarning]) == 1
    np.testing.assert_array_equal(detector.score_samples(images), expected)


def test_a_short_write_is_a_full_disk(monkeypatch):
    file = TensorFile()
    place = file.append(torch.ones(4))

    class Short:
        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            return getattr(self.real, name)

        def write(self, data):
            return self.real.write(data[:3])

    file._file = Short(file._file)
    with pytest.raises(OSError, match="No space left"):
        file.append(torch.ones(5))
    assert torch.equal(file.read(place), torch.ones(4))
