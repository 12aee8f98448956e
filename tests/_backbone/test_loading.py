"""Where weights come from: the package, a checkpoint, the hub's cache; and what is said if not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import timm
import torch
from backbones import family
from safetensors.torch import save_file

from skanomaly_vit._backbone import loading as _backbones
from skanomaly_vit._backbone.loading import load_backbone
from skanomaly_vit.exceptions import WeightsUnavailableError

HUB_MODEL = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def load(backbone, pretrained=True, image_size=None, seed=0):
    return load_backbone(backbone, pretrained=pretrained, image_size=image_size, seed=seed)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


# --- the embedded backbone


def test_embedded_backbone_is_the_vit_of_its_card():
    model, preprocessing = load("embedded")
    assert len(model.blocks) == 11
    assert preprocessing.image_size == (112, 112)
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    assert preprocessing.interpolation == "bicubic"
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(19.8e6, rel=0.01)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_embedded_backbone_takes_another_size():
    model, preprocessing = load("embedded", image_size=(56, 84))
    assert preprocessing.image_size == (56, 84)
    assert model.eval()(torch.zeros(1, 3, 56, 84)).shape == (1, 384)


def test_damaged_embedded_weights_are_refused(monkeypatch):
    monkeypatch.setattr(_backbones, "EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(OSError, match=r"is damaged: SHA-256 e370.*Reinstall skanomaly-vit"):
        load("embedded")


def test_embedded_weights_have_card_and_licences():
    folder = Path(_backbones.__file__).parents[1] / "weights"
    assert _backbones.EMBEDDED_SHA256 in (folder / "CARD.md").read_text()
    assert "Apache License" in (folder / "LICENSE-APACHE-2.0.txt").read_text()
    assert "MIT" in (folder / "NOTICE.md").read_text()


def test_embedded_with_a_checkpoint_is_a_contradiction(tmp_path):
    with pytest.raises(ValueError, match="backbone='embedded' has weights of its own"):
        load("embedded", pretrained=tmp_path / "other.safetensors")


def test_embedded_with_random_weights_differs_from_the_pretrained_one():
    random, _ = load("embedded", pretrained=False)
    assert not same_weights(random, load("embedded")[0])


# --- names and sizes


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("tag", ["no_such_tag", ""])
def test_unknown_tag_lists_those_that_there_are(tag, pretrained):
    message = (
        rf"has the tag '{tag}', which timm .* Pass one of .*'vit_base_patch16_224\.augreg_in1k'"
    )
    with pytest.raises(ValueError, match=message):
        load(f"vit_base_patch16_224.{tag}", pretrained=pretrained)


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_repository_of_the_hub(pretrained, monkeypatch):
    made = []

    def create(name, **options):
        made.append((name, options["pretrained"]))
        return timm.models.create_model("test_vit")

    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda repository, filename: "/a/file"
    )
    monkeypatch.setattr(timm, "create_model", create)
    load("hf-hub:owner/net@main", pretrained=pretrained)
    assert made == [("hf-hub:owner/net@main", pretrained)]


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("error", [KeyError("architecture"), RuntimeError("Unknown model")])
def test_a_repository_of_the_hub_that_is_no_model(error, pretrained, monkeypatch):
    def fail(*ignored, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: "/a/file")
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"'hf-hub:owner/net' is no model of timm: \w+Error"):
        load("hf-hub:owner/net", pretrained=pretrained)


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_repository_out_of_reach(pretrained, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: None)
    monkeypatch.setattr(_backbones, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailableError, match=r"hf-hub:owner/net.*are unavailable"):
        load("hf-hub:owner/net", pretrained=pretrained)
    with pytest.raises(ValueError, match="'hf-hub:owner/name'"):
        load("hf-hub:net", pretrained=pretrained)


def test_unknown_name_suggests_close_ones():
    with pytest.raises(ValueError, match=r"'vit_base_patch16_385' is not a timm.*patch16_384"):
        load("vit_base_patch16_385")


def test_size_that_the_patches_do_not_divide_names_the_nearest():
    with pytest.raises(ValueError, match=r"not a multiple of.*\(14, 14\).*image_size=\(98, 98\)"):
        load("embedded", image_size=100)
    with pytest.raises(ValueError, match=r"image_size=\(7, 7\) is smaller than a patch"):
        load("embedded", image_size=7)
    with pytest.raises(ValueError, match=r"not a multiple of.*\(16, 16\).*image_size=\(48, 48\)"):
        load(family("class token"), image_size=45)


@pytest.mark.parametrize("size", [(112,), (3, 112, 112), ("112", 112), (0, 112), (1.5, 2)])
def test_size_that_is_none(size):
    with pytest.raises(ValueError, match=r"is not a size. Pass \(height, width\)"):
        load("embedded", image_size=size)


def test_network_without_a_size_argument_says_so():
    with pytest.raises(ValueError, match=r"cannot be built for image_size=\(64, 64\)"):
        load("test_resnet", pretrained=False, image_size=64)


def test_other_type_errors_of_a_network_are_not_taken_for_a_size(monkeypatch):
    def broken(name, **options):
        raise TypeError("something else")

    monkeypatch.setattr(timm, "create_model", broken)
    with pytest.raises(TypeError, match="something else"):
        load("vit_tiny_patch16_224", pretrained=False)


def test_a_network_that_cannot_be_resized_says_so():
    model = family("class token")

    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed, self.blocks = model.patch_embed, model.blocks

    with pytest.raises(ValueError, match=r"image_size=\(64, 64\) differs from .*\(32, 32\).*Fixed"):
        load(Fixed(), image_size=64)


# --- checkpoints


@pytest.mark.parametrize("name", ["flat.safetensors", "flat.pth", "nested.pth"])
def test_checkpoint_gives_the_weights_that_were_saved(tmp_path, name):
    saved, _ = load("vit_tiny_patch16_224", pretrained=False, seed=1)
    weights = saved.state_dict()
    if name.endswith(".safetensors"):
        save_file(weights, tmp_path / name)
    else:
        torch.save(
            {"state_dict": weights} if name.startswith("nested") else weights, tmp_path / name
        )
    loaded, _ = load("vit_tiny_patch16_224", pretrained=tmp_path / name, seed=2)
    assert same_weights(loaded, saved)


def test_checkpoint_needs_no_classifier(tmp_path):
    """Image towers such as that of CLIP come without one, and features do not pass through it."""
    name = "deit_tiny_patch16_224"
    whole, _ = load_backbone(name, pretrained=False, image_size=32, seed=3)
    weights = {k: v for k, v in whole.state_dict().items() if not k.startswith("head.")}
    save_file(weights, tmp_path / "tower.safetensors")
    model, _ = load_backbone(name, pretrained=tmp_path / "tower.safetensors", image_size=32, seed=0)
    images = torch.randn(2, 3, 32, 32)
    found, expected = (each.eval().forward_features(images) for each in (model, whole))
    torch.testing.assert_close(found, expected)


def test_checkpoint_of_another_network_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(family("class token").state_dict(), path)
    with pytest.raises(ValueError, match=r"other.safetensors' does not fit backbone='deit_tiny"):
        load("deit_tiny_patch16_224", pretrained=path)


def test_checkpoint_with_code_in_it_is_not_run(tmp_path):
    path = tmp_path / "whole_model.pth"
    torch.save(family("class token"), path)
    with pytest.raises(ValueError, match=r"whole_model.pth' cannot be read as tensors only"):
        load("vit_tiny_patch16_224", pretrained=path)


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_broken_checkpoint_names_the_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00\x01garbage")
    with pytest.raises(ValueError, match=f"{name}' cannot be read as tensors only"):
        load("vit_tiny_patch16_224", pretrained=tmp_path / name)


def test_checkpoint_that_holds_no_tensors(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "log.pth")
    with pytest.raises(ValueError, match=r"log.pth' holds dict, not a state_dict"):
        load("vit_tiny_patch16_224", pretrained=tmp_path / "log.pth")


def test_missing_checkpoint_and_directory(tmp_path):
    with pytest.raises(ValueError, match=r"missing.pth' is no file"):
        load("vit_tiny_patch16_224", pretrained=tmp_path / "missing.pth")
    with pytest.raises(ValueError, match="is a directory"):
        load("vit_tiny_patch16_224", pretrained=tmp_path)


def test_checkpoint_for_a_network_is_a_contradiction(tiny):
    with pytest.raises(ValueError, match="backbone is already a network"):
        load(tiny, pretrained="weights.pth")


# --- the hub


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own: the hub reads its settings at import."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, "TQDM_DISABLE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


FIT_BY_NAME = f"""
    import numpy as np
    from skanomaly_vit import ViTFeatures
    images = np.zeros((1, 32, 32, 3), np.uint8)
    transformer = ViTFeatures(backbone={HUB_MODEL!r}, image_size=32)
    print(transformer.fit(images).transform(images).tolist())
"""


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory) -> Path:
    """A hub cache as a download leaves it, holding a real-size network's random weights."""
    home = tmp_path_factory.mktemp("hf")
    repo = timm.get_pretrained_cfg(HUB_MODEL).hf_hub_id
    folder = home / "hub" / f"models--{repo.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    save_file(timm.create_model(HUB_MODEL).state_dict(), snapshot / "model.safetensors")
    return home


@pytest.mark.parametrize("offline", ["1", "0"])
def test_cached_weights_load_without_a_network(hub_cache, offline):
    done = run(
        FIT_BY_NAME,
        HF_HOME=str(hub_cache),
        HF_HUB_OFFLINE=offline,
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert done.returncode == 0, done.stderr
    assert "Retrying" not in done.stderr  # the hub is not asked for what is there already
    vit = timm.create_model(HUB_MODEL, img_size=32)
    path = next(hub_cache.rglob("model.safetensors"))
    expected, _ = load(HUB_MODEL, pretrained=path, image_size=32)
    batch = torch.full((1, 3, 32, 32), -1.0)  # black, normalised by mean 0.5 and std 0.5
    with torch.inference_mode():
        expected.eval()
        wanted = expected.forward_head(expected.forward_features(batch), pre_logits=True)
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), wanted)
    assert vit.embed_dim == wanted.shape[1]


# A client of the hub may connect a second time at once; timm's download does so 15 times.
@pytest.mark.parametrize(("offline", "at_most"), [("1", 0), ("0", 2)])
def test_without_weights_the_error_comes_without_retries_and_names_the_ways_out(
    tmp_path, offline, at_most
):
    code = f"""
        import sys
        import timm
        from skanomaly_vit._backbone.loading import load_backbone
        from skanomaly_vit.exceptions import WeightsUnavailableError
        connections = []
        sys.addaudithook(lambda event, _: event == "socket.connect" and connections.append(event))
        try:
            load_backbone({HUB_MODEL!r}, pretrained=True, image_size=None, seed=0)
        except WeightsUnavailableError as error:
            print(len(connections))
            print(error)
    """
    # Port 9 of this machine refuses connections: a hub out of reach, without asking a real one.
    done = run(
        code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE=offline, HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert done.returncode == 0, done.stderr
    found, message = done.stdout.split("\n", 1)
    assert int(found) <= at_most
    assert f"The weights of backbone='{HUB_MODEL}' are unavailable" in message
    for way_out in (
        "HF_HOME",
        "pretrained='path/to/checkpoint.safetensors'",
        "backbone='embedded'",
    ):
        assert way_out in message


def test_a_hub_that_breaks_off_a_download_is_the_same_error(monkeypatch):
    def break_off(name, **options):
        raise ConnectionResetError("peer")

    monkeypatch.setattr(_backbones, "_require_cached_or_reachable", lambda name, cfg: None)
    monkeypatch.setattr(timm, "create_model", break_off)
    with pytest.raises(WeightsUnavailableError, match=r"ResetError: peer.*Three ways"):
        load(HUB_MODEL)


def test_a_hub_that_answers_is_left_to_timm(monkeypatch):
    made = []
    monkeypatch.setattr(_backbones.huggingface_hub, "try_to_load_from_cache", lambda *a: None)
    monkeypatch.setattr(_backbones.huggingface_hub.HfApi, "model_info", lambda *a, **k: None)
    monkeypatch.setattr(_backbones, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_backbones, "_create", lambda *a, **k: made.append((a, k)))
    _backbones._published(HUB_MODEL, None)
    assert made == [((HUB_MODEL, None), {"pretrained": True})]


def test_network_without_published_weights_says_so():
    with pytest.raises(WeightsUnavailableError, match=r"timm publishes no weights.*'embedded'"):
        load("vit_small_patch16_18x2_224")
