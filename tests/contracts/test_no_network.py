"""The network: it is used to download a backbone, for nothing else, and not where that is off."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

#: Every connection and every question for an address is noted, and refused.
WATCH = """
import sys
asked = []

def refuse(event, args):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}:
        asked.append(event)
        raise OSError(f"refused by the test: {event}")

sys.addaudithook(refuse)
"""

HUB_MODEL = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WATCH + textwrap.dedent(code)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    return done.stdout.splitlines()


def ask_for_weights(tmp_path, **environment):
    """Whether the hub is asked for weights that are not on this machine."""
    code = f"""
        from skanomaly_vit._backbone.loading import load_backbone
        from skanomaly_vit.exceptions import WeightsUnavailableError
        try:
            load_backbone({HUB_MODEL!r}, pretrained=True, image_size=None, seed=0)
        except WeightsUnavailableError:
            print("unavailable", bool(asked))
    """
    return run(code, HF_HOME=str(tmp_path), **environment)


def test_a_detector_lives_without_the_network(tmp_path):
    code = f"""
        import warnings
        import joblib
        import numpy as np
        warnings.simplefilter("ignore", UserWarning)  # of a threshold set by three images
        from skanomaly_vit import TransformalyDetector
        from skanomaly_vit.report import write_report

        X = np.random.default_rng(0).integers(0, 256, (16, 56, 56, 3), dtype=np.uint8)
        folder = {str(tmp_path)!r}
        detector = TransformalyDetector(image_size=56, n_blocks=2, memory=folder + "/cache").fit(X)
        detector.score_samples(X, return_map=True)
        write_report(detector, X, path=folder + "/report.html")
        detector.save(folder + "/model.skanomaly")
        TransformalyDetector.load(folder + "/model.skanomaly").predict(X)
        joblib.dump(detector, folder + "/model.joblib")
        joblib.load(folder + "/model.joblib").p_values(X)
        print(asked)
    """
    assert run(code) == ["[]"]


def test_the_hub_is_asked_for_weights(tmp_path):
    assert ask_for_weights(tmp_path, HF_HUB_OFFLINE="0") == ["unavailable True"]


def test_the_download_can_be_turned_off(tmp_path):
    assert ask_for_weights(tmp_path, HF_HUB_OFFLINE="1") == ["unavailable False"]
