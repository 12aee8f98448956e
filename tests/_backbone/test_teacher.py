"""The teacher: frozen, walked once, and its blocks called again just as they were."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest
import timm
import torch
from backbones import FAMILIES, family
from images import meeting

from skanomaly_vit import ViTFeatures
from skanomaly_vit._backbone.block_calls import look_away
from skanomaly_vit._backbone.devices import resolve_device
from skanomaly_vit._backbone.discrepancy import DISCREPANCY, concatenate
from skanomaly_vit._backbone.discrepancy import embed as embed_batches
from skanomaly_vit._backbone.loading import load_backbone
from skanomaly_vit._backbone.teacher import Teacher, load_teacher, positions_of, same_teacher
from skanomaly_vit.distillation._block_training import new_student
from skanomaly_vit.features._tuning import TunedNetwork, tuned_copy
from skanomaly_vit.onnx._export import _graph_of


def as_teacher(model: torch.nn.Module, **options: object) -> Teacher:
    defaults = {"pretrained": True, "image_size": None, "device": "cpu", "seed": 0}
    return load_teacher(model, **defaults | options)


#: Enough that no batch is padded, so that what is compared is what the network itself gives.
N_IMAGES = 16


def noise(teacher: Teacher, n: int = N_IMAGES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, *teacher.preprocessing.image_size, generator=generator)


def embed(teacher, students, batches) -> tuple[np.ndarray, np.ndarray | None]:
    """Features and discrepancies (n, k) for students of the last k blocks."""
    first = len(teacher.blocks) - len(students)

    class Passes:
        def __init__(self):
            self.teacher = teacher

        def run(self, indices, blocks, visit, track):
            return (teacher(batch, blocks=blocks, visit=visit) for batch in batches)

    of_blocks = dict(enumerate(students, start=first))
    embedded = concatenate(
        embed_batches(Passes(), np.arange(0), of_blocks), teacher.views, len(students)
    )
    return embedded["pooled"], embedded.get(DISCREPANCY)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_with_its_teachers_weights_has_discrepancy_zero(name):
    teacher = as_teacher(family(name))
    students = [copy.deepcopy(block) for block in teacher.blocks]
    _, discrepancies = embed(teacher, students, [noise(teacher)])
    np.testing.assert_array_equal(discrepancies, np.zeros((N_IMAGES, 3)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_student_differs_from_its_teacher_and_follows_its_generator(name):
    teacher = as_teacher(family(name))
    first, again, other = (
        [new_student(block, torch.Generator().manual_seed(seed)) for block in teacher.blocks]
        for seed in (0, 0, 1)
    )
    errors = [embed(teacher, s, [noise(teacher)])[1] for s in (first, again, other)]
    assert (errors[0] > 1e-3).all()
    np.testing.assert_array_equal(errors[0], errors[1])
    assert (errors[0] != errors[2]).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_the_networks_own_output_with_or_without_students(name):
    model = family(name).eval()
    teacher = as_teacher(model)
    batch = noise(teacher)
    with torch.inference_mode():  # attention with a bias rounds otherwise where gradients are on
        expected = as_teacher(model).model(batch).numpy()
    alone, none = embed(teacher, [], [batch])
    with_students, _ = embed(teacher, copy.deepcopy(teacher.blocks), [batch])
    np.testing.assert_array_equal(alone, expected)
    np.testing.assert_array_equal(with_students, expected)
    assert none is None


def test_discrepancy_is_the_mean_squared_error_over_tokens_and_channels(tiny):
    teacher = as_teacher(tiny)
    students = [new_student(b, torch.Generator().manual_seed(0)) for b in teacher.blocks[-2:]]
    batch = noise(teacher)
    _, discrepancies = embed(teacher, students, [batch[:2], batch[2:]])
    with torch.no_grad():
        tokens = tiny.eval().norm_pre(tiny._pos_embed(tiny.patch_embed(batch)))
        for index, block in enumerate(tiny.blocks):
            target = block(tokens)
            if index >= 1:
                error = (students[index - 1](tokens) - target).numpy() ** 2
                np.testing.assert_allclose(
                    discrepancies[:, index - 1], error.mean(axis=(1, 2)), rtol=1e-5
                )
            tokens = target


def test_teacher_is_frozen_in_eval_mode_and_the_users_network_is_left_alone(tiny):
    model = copy.deepcopy(tiny).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = as_teacher(model)
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_dropout_in_the_network_leaves_targets_alone():
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=3,
        num_classes=0, proj_drop_rate=0.5, drop_path_rate=0.5,
    ).train()  # fmt: skip
    teacher = as_teacher(model)
    runs = [embed(teacher, [], [noise(teacher)])[0] for _ in range(2)]
    np.testing.assert_array_equal(*runs)


def test_hooks_are_gone_after_a_pass_even_one_that_failed(tiny):
    teacher = as_teacher(tiny)

    def fail(call):
        raise RuntimeError("visitor")

    with pytest.raises(RuntimeError, match="visitor"):
        teacher(noise(teacher), blocks=[1, 2], visit=fail)
    assert not any(block._forward_hooks for block in teacher.blocks)


def test_a_pass_visits_only_the_blocks_asked_for_in_order(tiny):
    teacher = as_teacher(tiny)
    seen = []
    teacher(noise(teacher), blocks=[1, 2], visit=lambda call: seen.append(call.index))
    assert seen == [1, 2]


def test_no_activation_outlives_its_block(tiny):
    teacher = as_teacher(tiny)
    outputs: list[weakref.ref] = []
    alive: list[int] = []

    class Watcher(torch.nn.Module):
        def forward(self, tokens):
            alive.append(sum(output() is not None for output in outputs))
            return tokens.clone()

    def note(module, args, output):
        outputs.append(weakref.ref(output))

    for block in teacher.blocks:
        block.register_forward_hook(note)
    features, _ = embed(teacher, [Watcher() for _ in range(3)], [noise(teacher)] * 4)
    assert len(outputs) == 12
    assert max(alive) <= 2  # what went into the block, and what came out of it
    assert len(features) == 4 * N_IMAGES


def test_more_blocks_than_there_are_is_an_error(tiny):
    with pytest.raises(ValueError, match=r"n_blocks=4, but the backbone has 3 blocks.*3 or fewer"):
        as_teacher(tiny).last_blocks(4)


@pytest.mark.parametrize("name", ["test_resnet", "swin_tiny_patch4_window7_224"])
def test_a_network_without_blocks_is_no_vit(name):
    with pytest.raises(ValueError, match=r"is no Vision Transformer: it has no list `.blocks`"):
        as_teacher(name, pretrained=False)


def test_a_network_with_blocks_of_another_kind_is_no_vit():
    teacher = as_teacher("test_efficientnet", pretrained=False)
    with pytest.raises(ValueError, match="is no Vision Transformer: its block"):
        embed(teacher, copy.deepcopy(teacher.blocks[-1:]), [noise(teacher, 1)])


def test_a_network_that_does_not_pool_is_refused(tiny):
    class Unpooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = copy.deepcopy(tiny.blocks)

        def forward(self, images):
            return self.blocks(images.flatten(2).transpose(1, 2)[..., :1].repeat(1, 1, 24))

    teacher = as_teacher(Unpooled(), image_size=8)
    with pytest.raises(ValueError, match=r"gives \(2, 64, 24\) for 2 images; expected"):
        embed(teacher, [], [noise(teacher, 2)])


def test_own_module_with_plain_forward_works():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Conv2d(3, 8, 4, 4)
            layer = torch.nn.TransformerEncoderLayer
            self.blocks = torch.nn.ModuleList(
                layer(8, 2, 16, batch_first=True, dropout=0) for _ in range(2)
            )

        def forward(self, images):
            tokens = self.embed(images).flatten(2).transpose(1, 2)
            for block in self.blocks:
                tokens = block(tokens)
            return tokens.mean(1)

    teacher = as_teacher(Own(), image_size=16)
    students = [copy.deepcopy(block) for block in teacher.blocks]
    features, discrepancies = embed(teacher, students, [noise(teacher)])
    assert features.shape == (N_IMAGES, 8)
    np.testing.assert_array_equal(discrepancies, np.zeros((N_IMAGES, 2)))


# timm, resampling the bias tables of BEiT: remarks of torch on speed and on indexing.
@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers")
@pytest.mark.parametrize("name", FAMILIES)
def test_another_image_size_changes_the_tokens_and_keeps_the_features(name):
    patch = 14 if FAMILIES[name][1] == 28 else 16
    network = family(name)
    if not hasattr(network, "set_input_size"):
        with pytest.raises(ValueError, match="Build it for that size"):
            as_teacher(network, image_size=4 * patch)
        pytest.skip(f"timm {timm.__version__} cannot change the size of a built {name}")
    teacher = as_teacher(network, image_size=4 * patch)
    assert teacher.preprocessing.image_size == (4 * patch, 4 * patch)
    seen = []
    features = teacher(noise(teacher), blocks=[2], visit=lambda c: seen.append(c.tokens.shape))
    assert features.shape == (N_IMAGES, 24)
    assert 16 <= seen[0][1] <= 21  # 4 x 4 patches and up to five prefix tokens


def test_fingerprint_follows_weights_and_preprocessing(tiny):
    teacher = as_teacher(tiny)
    assert teacher.fingerprint == as_teacher(copy.deepcopy(tiny)).fingerprint
    changed = copy.deepcopy(tiny)
    with torch.no_grad():
        changed.blocks[0].mlp.fc1.weight[0, 0] += 1e-6
    prints = {
        teacher.fingerprint,
        as_teacher(changed).fingerprint,
        as_teacher(tiny, image_size=64).fingerprint,
    }
    assert len(prints) == 3


def test_pickled_teacher_gives_the_same_features(tiny):
    teacher = as_teacher(tiny)
    copied = pickle.loads(pickle.dumps(teacher))
    batch = noise(teacher)
    np.testing.assert_array_equal(embed(teacher, [], [batch])[0], embed(copied, [], [batch])[0])


def test_device_none_is_the_best_there_is(monkeypatch):
    for cuda, mps, best in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert resolve_device(None) == torch.device(best)


def test_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device='cuda:1' is not available.*device='cpu'"):
        resolve_device("cuda:1")
    with pytest.raises(ValueError, match="device='gpu' is not a torch device"):
        resolve_device("gpu")
    assert resolve_device("meta") == torch.device("meta")


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    options = {"pretrained": False, "image_size": 16}
    first, again, other = (
        load_backbone("skanomaly_tiny_double", seed=seed, **options)[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first.blocks[0].mlp.fc1.weight, again.blocks[0].mlp.fc1.weight)
    assert not torch.equal(first.blocks[0].mlp.fc1.weight, other.blocks[0].mlp.fc1.weight)
    assert torch.equal(state, torch.random.get_rng_state())


def test_random_weights_leave_the_generators_of_gpus_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    ViTFeatures(backbone="skanomaly_tiny", pretrained=False, device="cpu", random_state=0).fit(
        np.zeros((2, 8, 8, 3), np.uint8)
    )


def test_two_threads_draw_random_weights_as_each_does_alone(monkeypatch):
    def draw(seed: int) -> torch.Tensor:
        model, _ = load_backbone("skanomaly_tiny", pretrained=False, image_size=None, seed=seed)
        return model.blocks[0].mlp.fc1.weight

    alone = [draw(seed) for seed in range(2)]
    monkeypatch.setattr(timm, "create_model", meeting(timm.create_model))
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(draw, range(2)))
    assert all(map(torch.equal, together, alone))


def during_a_pass(teacher: Teacher, make_copy: Callable[[], Any]) -> tuple[Any, list[int]]:
    """A copy made while another thread is at the first block, and the blocks that it has seen."""
    seen: list[int] = []
    with ThreadPoolExecutor(1) as other:
        copying: list[Future] = []

        def visit(call):
            seen.append(call.index)
            if not copying:
                copying.append(other.submit(make_copy))
                wait(copying, timeout=0.2)  # time enough to copy, were it not to wait

        teacher(noise(teacher), blocks=range(3), visit=visit)
        return copying[0].result(), seen


def test_copies_of_blocks_have_no_hooks_of_another_threads_pass():
    teacher = as_teacher(family("class token"))
    copies, _ = during_a_pass(teacher, lambda: teacher.copy_blocks([1]))
    assert not copies[1]._forward_hooks
    torch.testing.assert_close(
        copies[1].state_dict(), teacher.blocks[1].state_dict(), rtol=0, atol=0
    )


def test_a_tuned_network_is_not_seen_by_another_threads_visitor():
    teacher = as_teacher(family("class token"))
    network, seen = during_a_pass(teacher, lambda: TunedNetwork(teacher, 2))
    network.features(noise(teacher))
    tuned, seen_too = during_a_pass(teacher, lambda: tuned_copy(teacher, network.state()))
    tuned(noise(teacher), blocks=(), visit=look_away)
    assert seen == seen_too == [0, 1, 2]


def test_a_teacher_with_repaired_positions_is_not_seen_by_another_threads_visitor(tiny):
    teacher, other = as_teacher(tiny), as_teacher(tiny)
    with torch.no_grad():
        other.model.pos_embed.mul_(1 + 1e-6)  # as if another processor had interpolated them
    positions = positions_of(other.model)
    same, seen = during_a_pass(teacher, lambda: same_teacher(teacher, other.fingerprint, positions))
    same(noise(teacher), blocks=(), visit=look_away)
    assert seen == [0, 1, 2]


def test_a_graph_for_export_is_not_seen_by_another_threads_visitor(fitted):
    teacher = fitted._held_teacher()
    graph, seen = during_a_pass(teacher, lambda: _graph_of(fitted, teacher, None, False))
    graph(noise(teacher))
    assert seen == [0, 1, 2]
