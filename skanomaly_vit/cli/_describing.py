"""What ``info`` says of a model file or an ONNX file, neither with torch."""

from __future__ import annotations

import os
from typing import Any

import click

from skanomaly_vit.cli._options import require
from skanomaly_vit.cli._steps import is_onnx


def describe(model: str) -> dict[str, Any]:
    """Read the card of a model, and add the versions of packages here."""
    from skanomaly_vit._utils.provenance import versions
    from skanomaly_vit.exceptions import ModelFileError

    try:
        card = _onnx_card(model) if is_onnx(model) else _model_card(model)
    except ModelFileError as error:
        raise click.UsageError(str(error)) from error
    return {**card, "versions_here": versions()}


def _model_card(model: str) -> dict[str, Any]:
    from skanomaly_vit.persistence import model_card

    return model_card(model)


def _onnx_card(model: str) -> dict[str, Any]:
    require("onnx:runtime", "an ONNX file")
    from skanomaly_vit._images.saved_framing import describe_tiles
    from skanomaly_vit.onnx._file import read
    from skanomaly_vit.onnx._framing import framing_of

    _, values = read(model)
    framing = framing_of(values)
    del values["framing"]  # with all its bits
    return {
        "path": model,
        "file_size": os.path.getsize(model),
        **values,
        "region_share": None if framing.roi is None else float(framing.roi.mean()),
        "keep_aspect": framing.keep_aspect,
        "tiles": describe_tiles(framing.tiles),
    }


def summarize(described: dict[str, Any]) -> str:
    """Format the result of `describe` for people."""
    from skanomaly_vit._utils.provenance import printable

    lines = _onnx_lines(described) if "outputs" in described else _model_lines(described)
    # A file may come from anyone; its text must not steer the terminal.
    return "\n".join(f"{name + ':':<16}{printable(value)}" for name, value in lines.items())


def _onnx_lines(described: dict[str, Any]) -> dict[str, str]:
    n_calibrating = described["n_calibrating"] or 0
    return {
        **_file_lines(described),
        "kind": "ONNX graph",
        "backbone": described["backbone"],
        "fingerprint": described["backbone_fingerprint"],
        "quantization": _describe_quantization(described),
        "outputs": ", ".join(described["outputs"]),
        "region": _describe_region(described),
        "framing": _describe_framing(described),
        "threshold": _describe_threshold(described),
        "false alarms": _describe_rate(described["false_alarm_rate"], n_calibrating),
        "calibration": f"{n_calibrating or 'no'} held-out images",
        **_version_lines(described),
    }


def _describe_rate(rate: float | None, n_calibrating: int) -> str:
    """The rate of an ONNX file, or the lowest that so many images allow."""
    from skanomaly_vit._utils.certificates import percent

    if rate is None:
        return "not recorded"
    if n_calibrating == 0:
        return f"{percent(rate)} of the training images; of new ones, more"
    return f"{percent(max(rate, 1 / (n_calibrating + 1)))} of normal images"


def _describe_quantization(described: dict[str, Any]) -> str:
    kind, noise = described["quantization"], described["noise"]
    if kind is None:
        return "none; it computes in float32"
    return f"{kind}; rounding moves scores of normal images by {noise:.2g} standard deviations"


def _model_lines(described: dict[str, Any]) -> dict[str, str]:
    from skanomaly_vit._utils.certificates import Certificate

    parameters, changed = described["parameters"], described["changed_parameters"]
    dtype = f" in {described['dtype']}" if described["dtype"] else ""  # not in older files
    inside = "in the file" if described["has_backbone"] else "not in the file"
    certificate = Certificate(
        rate=described["false_alarm_rate"],
        confidence=described["threshold_confidence"],
        n_images=described["n_calibrating"] or 0,
        n_units=described["n_calibration_units"] or 0,
        bound=described["false_alarm_bound"],
        bound_confidence=described["false_alarm_bound_confidence"],
    )
    is_recorded = described["n_calibrating"] is not None
    return {
        **_file_lines(described),
        "backbone": f"{described['backbone']}{dtype} ({inside})",
        "fingerprint": described["backbone_fingerprint"],
        "densities": ", ".join(f"{k} {v}" for k, v in described["densities"].items()),
        "students": f"{described['student'] or 'none'} {described['blocks'] or ''}".rstrip(),
        "images": f"{described['n_images']} "
        f"({described['n_images_held_out']} of them held out for the threshold)",
        "region": _describe_region(described),
        "threshold": _describe_threshold(described),
        "false alarms": certificate.describe_rate() if is_recorded else "not recorded",
        "calibration": certificate.describe_calibration() if is_recorded else "not recorded",
        "updates": "; ".join(map(_describe_update, described["updates"] or [])) or "none",
        "parameters": ", ".join(f"{name}={parameters.get(name)!r}" for name in changed)
        or "all default",
        **_version_lines(described),
    }


def _file_lines(described: dict[str, Any]) -> dict[str, str]:
    return {
        "file": f"{described['path']} ({described['file_size'] / 2**20:.1f} MiB)",
        "written": described["created"],
    }


def _describe_region(described: dict[str, Any]) -> str:
    share = described["region_share"]
    return "all pixels count" if share is None else f"{share:.1%} of the pixels count"


def _describe_framing(described: dict[str, Any]) -> str:
    found = {name: described[name] for name in ("keep_aspect", "tiles") if described[name]}
    return ", ".join(f"{name}={value!r}" for name, value in found.items()) or "whole images"


def _describe_threshold(described: dict[str, Any]) -> str:
    return f"{described['threshold']:.6g} (a lower score is an anomaly)"


def _version_lines(described: dict[str, Any]) -> dict[str, str]:
    return {
        title: ", ".join(f"{name} {version}" for name, version in described[key].items())
        for title, key in (("versions", "versions"), ("versions here", "versions_here"))
    }


def _describe_update(entry: dict[str, Any]) -> str:
    calibrate = f", {entry['n_calibrating']} of them calibrate" if entry["n_calibrating"] else ""
    return (
        f"{entry['date'][:10]} {entry['n_images']} images by {entry['what']}{calibrate} "
        f"({entry['digest'][:12]})"
    )
