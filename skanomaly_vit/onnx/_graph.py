"""ONNX graph of a detector: from normalized pixels to score, decision, p-value and map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from skanomaly_vit._backbone.anomaly_maps import continued
from skanomaly_vit._backbone.block_calls import BlockCall
from skanomaly_vit._backbone.discrepancy import DISCREPANCY as DISCREPANCY_SPACE
from skanomaly_vit._backbone.discrepancy import token_errors
from skanomaly_vit._backbone.patches import (
    BOTH,
    DISCREPANCY,
    FEATURES,
    SMALLEST_ERROR,
    NormalPatches,
)
from skanomaly_vit._backbone.teacher import penultimate, split_regions
from skanomaly_vit._backbone.views import PENULTIMATE, Readout, n_prefix
from skanomaly_vit.distillation._ridge import RidgeModule
from skanomaly_vit.onnx._density_graphs import density_graph

#: Names of the constants of a graph that say where normal scores lie.
OFFSET, CALIBRATION = "offset", "calibration"


class DetectorGraph(nn.Module):
    """A fitted detector as one exportable network.

    Parameters
    ----------
    model : nn.Module
        The backbone, on the CPU. The graph registers hooks on its blocks.
    readout : Readout
        Views and pooling.
    grid : tuple of (int, int) or None
        Rows and columns of the patches, if the backbone tells.
    students : mapping of int to nn.Module
        Student of each block in the discrepancy space.
    densities, fusion : dict
        `density_` and `fusion_` of `TransformalyDetector`.
    offset : float
    calibration_scores, calibration_units : ndarray or None
        None gives a graph without p-values.
    normal : NormalPatches or None
        None gives a graph without maps.
    map_method : str
        Source of the maps; a key of ``normal.map_scale``.
    takes_regions : bool
        Whether the input has a fourth channel, above 0 where pixels count.
    """

    offset: torch.Tensor

    def __init__(
        self,
        model: nn.Module,
        readout: Readout,
        grid: tuple[int, int] | None,
        students: Mapping[int, nn.Module],
        densities: Mapping[str, Any],
        fusion: Mapping[str, tuple[float, float]],
        *,
        offset: float,
        calibration_scores: np.ndarray | None,
        calibration_units: np.ndarray | None,
        normal: NormalPatches | None,
        map_method: str,
        takes_regions: bool,
    ) -> None:
        super().__init__()
        self.model, self._readout, self._grid = model, readout, grid
        self.takes_regions = takes_regions
        self.students = nn.ModuleDict({str(i): _exportable(s) for i, s in students.items()})
        self.densities = nn.ModuleDict({name: density_graph(d) for name, d in densities.items()})
        self._fusion = dict(fusion)
        # A buffer: the exporter would write a Python number as float32.
        self.register_buffer(OFFSET, torch.tensor(offset, dtype=torch.float64))
        self.calibration = None
        if calibration_scores is not None:
            self.calibration = Calibration(calibration_scores, calibration_units)
        self.maps = None if normal is None else _Maps(normal, map_method)
        self._calls: list[BlockCall] = []
        blocks = list(model.blocks)  # type: ignore[arg-type]
        self._views = {v: v.index(len(blocks)) for v in readout.views if not v.is_penultimate}
        of_maps = self.maps.blocks if self.maps is not None else ()
        watched = {*students, *self._views.values(), *of_maps}
        for index, block in enumerate(blocks):
            if index in watched:
                block.register_forward_hook(self._hook_of(index), with_kwargs=True)

    def _hook_of(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._calls.append(BlockCall(index, args, kwargs, output))

        return hook

    def output_names(self) -> list[str]:
        """Names of the outputs of `forward`."""
        names = ["score", "decision"]
        names += ["p_value"] if self.calibration is not None else []
        return names + (["anomaly_map"] if self.maps is not None else [])

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Normalized pixels (batch, 3 or 4, height, width) -> the outputs of `output_names`."""
        self._calls.clear()
        pixels, inside = split_regions(pixels, self._grid)  # (batch, 3, ...), (batch, patches)
        pooled = {PENULTIMATE.name: penultimate(self.model, pixels)}  # (batch, dim)
        outputs_of = {call.index: call.output for call in self._calls}
        for view, index in self._views.items():
            tokens = outputs_of[index]
            prefix = n_prefix(tokens, self._grid)
            pooled[view.name] = view.pool(tokens, prefix, inside)  # (batch, dim)
        errors = {call.index: self._errors_of(call) for call in self._students_calls()}
        score = self._score(pooled, {i: self._pooled(each, inside) for i, each in errors.items()})
        outputs = [score, score - self.offset]
        if self.calibration is not None:
            outputs.append(self.calibration(score))
        if self.maps is not None:
            outputs.append(self.maps(self._calls, errors, inside))
        return tuple(outputs)

    def score_features(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Scores of images of which the features in each space are known: (n_images,)."""
        errors = {}
        if DISCREPANCY_SPACE in features:
            columns = torch.from_numpy(np.array(features[DISCREPANCY_SPACE]))  # (n, students)
            blocks = sorted(map(int, self.students))
            errors = {index: columns[:, i] for i, index in enumerate(blocks)}
        pooled = {
            name: torch.from_numpy(np.array(rows))
            for name, rows in features.items()
            if name != DISCREPANCY_SPACE
        }
        return self._score(pooled, errors).numpy()

    def p_values_of(self, scores: np.ndarray) -> np.ndarray:
        """The p-values that go with scores."""
        return self.calibration(torch.from_numpy(scores)).numpy()  # type: ignore[misc]

    def _students_calls(self) -> list[BlockCall]:
        return [call for call in self._calls if str(call.index) in self.students]

    def _errors_of(self, call: BlockCall) -> torch.Tensor:
        # (batch, tokens, dim) -> (batch, tokens)
        return token_errors(self.students[str(call.index)], call)

    def _pooled(self, errors: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
        # (batch, tokens) -> (batch,)
        return self._readout.pool_errors(errors, n_prefix(errors, self._grid), inside)

    def _score(
        self, pooled: dict[str, torch.Tensor], errors: dict[int, torch.Tensor]
    ) -> torch.Tensor:
        embedded = {name: features.double() for name, features in pooled.items()}
        if errors:
            columns = [errors[index] for index in sorted(errors)]
            embedded[DISCREPANCY_SPACE] = torch.stack(columns, dim=1).double()
        parts = []
        for space, density in self.densities.items():
            location, scale = self._fusion[space]
            parts.append((density(embedded[space]) - location) / scale)
        return torch.stack(parts).sum(dim=0)


class _LinearStudent(nn.Module):
    """A `RidgeModule` that does not copy its weights for each image of a batch."""

    token_weight: torch.Tensor
    mean_weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, student: RidgeModule) -> None:
        super().__init__()
        self.register_buffer("token_weight", student.token_weight)
        self.register_buffer("mean_weight", student.mean_weight)
        self.register_buffer("bias", student.bias)

    def forward(self, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shift = tokens.mean(dim=1, keepdim=True) @ self.mean_weight + self.bias  # (batch, 1, dim)
        return tokens + tokens @ self.token_weight + shift


def _exportable(student: nn.Module) -> nn.Module:
    return _LinearStudent(student) if isinstance(student, RidgeModule) else student


class Calibration(nn.Module):
    """The p-values of `conformal_p_values`, by counting."""

    known: torch.Tensor
    share: torch.Tensor

    def __init__(self, scores: np.ndarray, units: np.ndarray | None) -> None:
        super().__init__()
        order = np.argsort(scores, kind="stable")
        unit = np.unique(np.arange(len(scores)) if units is None else units, return_inverse=True)[1]
        share = 1 / np.bincount(unit)[unit]
        # With its first axis, lest the exporter give the constant another name.
        self.register_buffer("known", torch.from_numpy(scores[None, order]))
        self.register_buffer("share", torch.from_numpy(share[order]))
        self._n_units = int(unit.max()) + 1

    def forward(self, score: torch.Tensor) -> torch.Tensor:
        is_below = (self.known <= score[:, None]).double()  # [B, n_calibrating]
        rank = (is_below * self.share).sum(dim=1)  # [B]
        return (1 + rank) / (self._n_units + 1)


class _Maps(nn.Module):
    """The maps of `MapCollector`, patch by patch."""

    center: torch.Tensor
    whitening: torch.Tensor

    def __init__(self, normal: NormalPatches, method: str) -> None:
        super().__init__()
        self._layout, self._method, self._scale = normal.layout, method, normal.map_scale
        self._students = list(normal.blocks)
        self._location = normal.location.tolist()
        self._deviation = normal.scale.tolist()
        self.register_buffer("center", normal.center)
        self.register_buffer("whitening", normal.whitening)

    @property
    def blocks(self) -> set[int]:
        return set() if self._method == DISCREPANCY else {self._layout.block}

    def forward(
        self,
        calls: list[BlockCall],
        errors: dict[int, torch.Tensor],
        inside: torch.Tensor | None,
    ) -> torch.Tensor:
        parts = []
        if self._method != FEATURES:
            columns = [
                self._standardize(column, self._layout.patches(errors[index]))
                for column, index in enumerate(self._students)
            ]
            mean = torch.stack(columns).mean(dim=0)  # (batch, patches)
            parts.append(mean / self._scale[DISCREPANCY])
        if self._method != DISCREPANCY:
            (call,) = (call for call in calls if call.index == self._layout.block)
            parts.append(self._standardize(-1, self._distances(call)) / self._scale[FEATURES])
        combined = parts[0] if len(parts) == 1 else (parts[0] + parts[1]) / self._scale[BOTH]
        grid = (self._layout.rows, self._layout.columns)
        maps = combined.unflatten(1, grid)  # (batch, rows, columns)
        if inside is not None:
            maps = continued(maps, inside.unflatten(1, grid))
        return maps.float()

    def _distances(self, call: BlockCall) -> torch.Tensor:
        tokens = self._layout.tokens_of(call)
        center, whitening = self.center.to(tokens), self.whitening.to(tokens)
        return ((tokens - center) @ whitening).square().mean(dim=2)

    def _standardize(self, column: int, values: torch.Tensor) -> torch.Tensor:
        logarithms = values.double().clamp(min=SMALLEST_ERROR).log()
        return (logarithms - self._location[column]) / self._deviation[column]
