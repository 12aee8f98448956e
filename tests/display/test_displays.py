"""Displays: attributes, drawings, and errors."""

from __future__ import annotations

import inspect
import itertools
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from images import blobs
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skanomaly_vit import CompactFeatures, TransformalyDetector
from skanomaly_vit.display import (
    AnomalyMapDisplay,
    BlockDiscrepancyDisplay,
    EvaluationDisplay,
    EvidenceDisplay,
    GalleryDisplay,
    ScoreDisplay,
    TrainingDisplay,
)
from skanomaly_vit.display._overlay import Scale, overlay
from skanomaly_vit.display._style import SEQUENTIAL
from skanomaly_vit.monitoring import LineMonitor

mpl.use("Agg")

DISPLAYS = (
    AnomalyMapDisplay,
    BlockDiscrepancyDisplay,
    EvaluationDisplay,
    EvidenceDisplay,
    GalleryDisplay,
    ScoreDisplay,
    TrainingDisplay,
)
MAKERS = ("from_estimator", "from_predictions", "from_history", "from_monitor")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (9, 24, 32, 3), dtype=np.uint8)
MAPS = RNG.normal(2, 4, (9, 24, 32)).astype(np.float32)
SCORES = np.array([-5.0, 4, 3, -60, 2, 1, -1, 0, 5])
NORMAL = RNG.normal(1, 0.1, (20, 3))  # discrepancies
HISTORY = [
    {"epoch": 1, "train_loss": [0.9, 0.4], "valid_loss": [0.8, 0.5], "seconds": 1.0},
    {"epoch": 2, "train_loss": [0.5, 0.2], "valid_loss": [0.6, 0.4], "seconds": 1.0},
    {"epoch": 3, "train_loss": [0.4, np.nan], "valid_loss": [0.5, np.nan], "seconds": 1.0},
]


@pytest.fixture(autouse=True)
def closed():
    """Each test leaves no figure behind."""
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def detector(tiny):
    return TransformalyDetector(backbone=tiny, n_blocks=2, random_state=0).fit(
        blobs(np.random.default_rng(1), 20)
    )


class Mapping:
    """A fitted detector with maps of the distance to gray."""

    image_shape = None

    def __init__(self):
        self.methods = []

    def anomaly_map(self, X, method=None):
        self.methods.append(method)
        return [np.abs(np.asarray(x, float).mean(axis=2) - 128) / 10 for x in X]


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def shown_pixels(ax):
    """Pixels of the first image of axes."""
    return np.asarray(ax.get_images()[0].get_array())


def line_of(ax, label):
    return next(line for line in ax.get_lines() if line.get_label() == label)


def changed_line(shift=2.0):
    """A monitor of a line whose scores move after 300 images."""
    monitor = LineMonitor(RNG.normal(size=200))
    monitor.update(RNG.normal(size=300), groups=["left", "right"] * 150)
    monitor.update(RNG.normal(-shift, 1, size=60))
    return monitor


# --- all of them

DRAWN = {
    "maps": lambda: AnomalyMapDisplay.from_predictions(IMAGES[:3], MAPS[:3], masks=MAPS[:3] > 6),
    "one map": lambda: AnomalyMapDisplay.from_predictions(IMAGES[:1], MAPS[:1], contour=3),
    "scores": lambda: ScoreDisplay.from_predictions(
        SCORES, -2, y=[1, 1, 1, -1, 1, 1, 1, 1, 1], normal_scores=SCORES + 1
    ),
    "evaluation": lambda: EvaluationDisplay.from_predictions(
        SCORES, KINDS, offset=0.5, anomaly_label=ODD
    ),
    "long tail": lambda: ScoreDisplay.from_predictions([-1e4, -3.0, -2, -1], -50),
    "lines": lambda: BlockDiscrepancyDisplay.from_predictions(NORMAL[:6] * 3, reference=NORMAL),
    "heat map": lambda: BlockDiscrepancyDisplay.from_predictions(NORMAL, reference=NORMAL),
    "rows without names": lambda: BlockDiscrepancyDisplay.from_predictions(
        np.tile(NORMAL, (20, 1)), reference=NORMAL
    ),
    "many blocks": lambda: BlockDiscrepancyDisplay.from_predictions(
        np.tile(NORMAL, 8)[:2],
        reference=np.tile(NORMAL, 8),
        block_names=[f"block{index}" for index in range(24)],
    ),
    "groups": lambda: BlockDiscrepancyDisplay.from_predictions(
        NORMAL, groups=["good"] * 15 + ["crack"] * 5, reference_group="good"
    ),
    "epochs": lambda: TrainingDisplay.from_history(HISTORY),
    "one epoch": lambda: TrainingDisplay.from_history(HISTORY[:1]),
    "many students": lambda: TrainingDisplay.from_history(
        [{"train_loss": np.arange(1, 25) / epoch} for epoch in (1, 2, 3)]
    ),
    "evidence": lambda: EvidenceDisplay.from_monitor(changed_line()),
    "evidence of a quiet line": lambda: EvidenceDisplay.from_monitor(changed_line(0)),
    "gallery": lambda: GalleryDisplay.from_predictions(IMAGES, SCORES * 1e5, offset=-2e5),
    "small gallery": lambda: GalleryDisplay.from_predictions(
        IMAGES, SCORES, offset=-2, n_images=3, titles=[f"part{i:04}.png" for i in range(9)]
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_overlaps_another_or_leaves_the_figure(name, monkeypatch):
    figure = DRAWN[name]().figure_
    texts = texts_of(figure, monkeypatch)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert len(boxes) > 2
    for (first, box), (second, other) in itertools.combinations(boxes, 2):
        overlap = box.intersection(box, other)
        assert overlap is None or min(overlap.width, overlap.height) < 1, (first, second)
    for text, box in boxes:
        inside = box.x0 > -1 and box.y0 > -1
        inside &= box.x1 < figure.bbox.width + 1 and box.y1 < figure.bbox.height + 1
        assert inside, text


def texts_of(figure, monkeypatch):
    """Drawn texts, without those of ticks beyond the ends."""
    drawn = []
    draw = Text.draw

    def recording(text, renderer):
        drawn.append(text)
        draw(text, renderer)

    monkeypatch.setattr(Text, "draw", recording)
    figure.canvas.draw()
    return [text for text in dict.fromkeys(drawn) if text.get_visible() and text.get_text()]


@pytest.mark.parametrize("name", DRAWN)
def test_plot_draws_on_given_axes_and_gives_itself_back(name):
    display = DRAWN[name]()
    figure, ax = plt.subplots(layout="constrained")
    assert display.plot(ax=ax) is display
    assert display.ax_ is ax
    assert display.figure_ is figure
    n_figures = len(plt.get_fignums())
    display.plot()
    assert display.figure_ is not figure
    assert len(plt.get_fignums()) == n_figures + 1


def count_required(function):
    parameters = inspect.signature(function).parameters.values()
    return sum(each.default is each.empty for each in parameters if each.kind != each.VAR_KEYWORD)


@pytest.mark.parametrize("display", DISPLAYS)
def test_without_matplotlib_each_says_how_to_get_it_before_any_work(display, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for make in MAKERS:
        if hasattr(display, make):
            # None of these could be worked on.
            function = getattr(display, make)
            arguments = [None] * count_required(function)
            with pytest.raises(ImportError, match=f"{make} requires.*pip install matplotlib"):
                function(*arguments)


@pytest.mark.parametrize("display", DISPLAYS)
def test_an_unknown_option_is_refused_before_any_work(display):
    for make in MAKERS:
        if hasattr(display, make):
            function = getattr(display, make)
            arguments = [None] * count_required(function)
            with pytest.raises(TypeError, match=f"{display.__name__}.plot got an .* 'size'"):
                function(*arguments, size=3)


def test_the_import_does_not_import_matplotlib():
    code = "import sys, skanomaly_vit.display; print('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["maps", "gallery"])
def test_axes_without_a_place_in_a_grid_cannot_be_divided(name):
    ax = plt.figure().add_axes((0, 0, 1, 1))
    with pytest.raises(ValueError, match=r"no place in a grid .* plt\.subplots"):
        DRAWN[name]().plot(ax=ax)


# --- maps


def test_each_image_is_beside_its_map_on_one_scale():
    display = AnomalyMapDisplay.from_predictions(IMAGES[:3], MAPS[:3])
    assert display.axes_.shape == (3, 2)
    for row, image, values in zip(display.axes_, IMAGES, MAPS, strict=False):
        np.testing.assert_array_equal(shown_pixels(row[0]), image)
        ground, overlay = row[1].get_images()
        np.testing.assert_allclose(ground.get_array(), image.mean(axis=2))
        np.testing.assert_array_equal(overlay.get_array(), values)
        assert overlay.get_clim() == (2, 8)
        assert overlay.get_cmap().name == SEQUENTIAL
        assert row[0].get_anchor() == row[1].get_anchor() == "C"  # not drawn to the scale
    label = display.colorbar_.ax.get_ylabel().replace("\n", " ")
    assert "standard deviations of normal patches" in label
    assert display.colorbar_.extend == "both"


def test_a_map_looks_as_it_does_in_reports_and_from_the_command_line():
    gray = np.repeat(IMAGES[0][..., :1], 3, axis=2)
    display = AnomalyMapDisplay.from_predictions([gray], MAPS[:1])
    ground, over = display.axes_[0, 1].get_images()
    below, above = ground.to_rgba(ground.get_array()), over.to_rgba(over.get_array())
    alpha = over.get_alpha()[..., None]
    drawn = 255 * (below * (1 - alpha) + above * alpha)[..., :3]
    expected = overlay(Image.fromarray(gray), MAPS[0], Scale(2, 8))
    np.testing.assert_allclose(drawn, np.asarray(expected), atol=1.5)  # 256 shades of each


def test_maps_of_several_calls_have_one_range():
    display = AnomalyMapDisplay.from_predictions(IMAGES[:2], MAPS[:2] / MAPS.max())
    assert display.axes_[0, 1].get_images()[1].get_clim() == (2, 8)
    assert display.colorbar_.extend == "min"


def test_another_range_says_that_it_is_cut():
    display = AnomalyMapDisplay.from_predictions(IMAGES[:2], MAPS[:2], map_range=(1, 4))
    over = display.axes_[1, 1].get_images()[1]
    assert over.get_clim() == (1, 4)
    np.testing.assert_allclose(over.get_alpha(), 0.75 * np.clip((MAPS[1] - 1) / 3, 0, 1))
    assert display.colorbar_.extend == "both"


def test_maps_show_p_values_where_the_detector_is_calibrated(fitted, images):
    display = AnomalyMapDisplay.from_estimator(fitted, images[:3], method="discrepancy")
    np.testing.assert_array_equal(display.p_values, fitted.p_values(images[:3]))
    np.testing.assert_array_equal(display.maps, fitted.anomaly_map(images[:3], "discrepancy"))
    titles = [ax.get_title() for ax in display.axes_[:, 0]]
    assert titles[1] == f"image 1\np {display.p_values[1]:.2g}"
    given = AnomalyMapDisplay.from_predictions(IMAGES[:2], MAPS[:2], p_values=[0.004, 1])
    assert given.axes_[0, 0].get_title() == "image 0\np 0.004"


def test_a_detector_of_another_kind_shows_p_values_too():
    class Calibrated(Mapping):
        calibration_scores_ = np.arange(3.0)
        calibration_units_ = None

        def score_samples(self, X):
            return np.array([-1.0, 1.5])

    assert AnomalyMapDisplay.from_estimator(Calibrated(), IMAGES[:2]).p_values.tolist() == [
        0.25,
        0.75,
    ]


def test_maps_come_from_the_detector_by_the_method_asked_for():
    detector = Mapping()
    display = AnomalyMapDisplay.from_estimator(detector, IMAGES[:2], method="features")
    assert detector.methods == ["features"]
    np.testing.assert_allclose(display.maps[1], np.abs(IMAGES[1].mean(axis=2) - 128) / 10)
    assert [ax.get_title() for ax in display.axes_[:, 0]] == ["image 0", "image 1"]


def test_rows_are_images_where_the_detector_says_so():
    class Rows(Mapping):
        image_shape = (24, 32, 3)

        def anomaly_map(self, X, method=None):
            return super().anomaly_map(X.reshape(-1, *self.image_shape))

    display = AnomalyMapDisplay.from_estimator(Rows(), IMAGES[:2].reshape(2, -1))
    np.testing.assert_array_equal(display.images[1], IMAGES[1])


def test_images_of_any_kind_and_size_are_shown(tmp_path):
    path = tmp_path / "gray.png"
    Image.fromarray(IMAGES[0, :, :, 0]).save(path)
    tall = np.full((40, 10), 65535, np.uint16)
    images = [str(path), tall, IMAGES[2] / np.float32(255)]
    maps = [MAPS[0], np.zeros((40, 10)), MAPS[2]]
    display = AnomalyMapDisplay.from_predictions(images, maps, titles=["a", "b", "c"])
    np.testing.assert_array_equal(
        shown_pixels(display.axes_[0, 0]), np.repeat(IMAGES[0, :, :, :1], 3, axis=2)
    )
    np.testing.assert_array_equal(shown_pixels(display.axes_[1, 0]), np.full((40, 10, 3), 255))
    np.testing.assert_array_equal(shown_pixels(display.axes_[2, 0]), IMAGES[2])
    assert [ax.get_title() for ax in display.axes_[:, 0]] == ["a", "b", "c"]


def test_true_defects_are_outlined_on_image_and_map(tmp_path):
    mask = np.zeros((24, 32), np.uint8)
    mask[5:11, 10:21] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(mask).save(path)
    display = AnomalyMapDisplay.from_predictions(
        IMAGES[:3], MAPS[:3], masks=[None, str(path), mask > 0]
    )
    n_lines = [[len(ax.collections) for ax in row] for row in display.axes_]
    assert n_lines == [[0, 0], [2, 2], [2, 2]]  # dark and light
    for outline in (display.axes_[1, 0].collections[1], display.axes_[2, 1].collections[0]):
        corners = outline.get_paths()[0].get_extents()
        np.testing.assert_allclose(corners.extents, (9.5, 4.5, 20.5, 10.5), atol=0.1)
    assert "dashed outline" in display.ax_.get_title()


def test_a_level_of_the_map_is_outlined_and_marked_on_the_scale():
    rising = np.tile(np.linspace(0, 10, 32), (24, 1))
    display = AnomalyMapDisplay.from_predictions(IMAGES[:1], [rising], contour=5)
    (image, overlay) = display.axes_[0]
    assert len(image.collections) == 0
    np.testing.assert_allclose(overlay.collections[0].get_paths()[0].vertices[:, 0], 15.5)
    assert {line.get_ydata()[0] for line in display.colorbar_.ax.get_lines()} == {5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": MAPS[:1]}, "maps holds 1 for 2 images"),
        ({"maps": [MAPS[0], MAPS[1, :8]]}, r"maps\[1\] has shape \(8, 32\).*sample 1.*\(24, 32\)"),
        ({"maps": MAPS[:2] * np.nan}, r"maps\[0\] holds NaN"),
        ({"masks": [None]}, "masks holds 1 for 2 images"),
        ({"masks": [None, np.ones((3, 3))]}, r"masks\[1\] has shape \(3, 3\)"),
        ({"titles": ["a"]}, "titles holds 1 titles for 2 images"),
        ({"map_range": (2, 2)}, r"map_range=\(2, 2\) has to be finite, with low below high"),
        ({"map_range": (0, np.inf)}, "has to be finite"),
        ({"map_range": 8}, "map_range=8 is no pair of numbers"),
        ({"p_values": [0.1]}, "p_values holds 1 values for 2 images"),
    ],
)
def test_maps_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AnomalyMapDisplay.from_predictions(IMAGES[:2], options.pop("maps", MAPS[:2]), **options)


def test_a_detector_is_not_asked_for_what_cannot_be_shown():
    detector = Mapping()
    with pytest.raises(ValueError, match=r"51 images need more rows .* pass at most 50"):
        AnomalyMapDisplay.from_estimator(detector, np.zeros((51, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="titles holds 1"):
        AnomalyMapDisplay.from_estimator(detector, IMAGES, titles=["a"])
    assert detector.methods == []
    with pytest.raises(ValueError, match="EllipticEnvelope has no anomaly_map"):
        AnomalyMapDisplay.from_estimator(EllipticEnvelope(), IMAGES)


# --- scores


def test_kinds_share_their_bins_and_none_is_lost():
    display = ScoreDisplay.from_predictions(SCORES, -2, normal_scores=[1, 2, 3], bins=7)
    assert display.bin_edges_[0] == -60
    assert display.bin_edges_[-1] == 5
    assert {kind: counts.sum() for kind, counts in display.counts_.items()} == {
        "normal images": 3,
        "new images": 9,
    }
    expected = np.histogram(SCORES, display.bin_edges_)[0]
    np.testing.assert_array_equal(display.counts_["new images"], expected)


def test_bars_are_shares_or_counts():
    for stat, unit in (("share", 100 / 9), ("count", 1)):
        display = ScoreDisplay.from_predictions(SCORES, bins=5, stat=stat)
        (bars,) = display.ax_.patches
        np.testing.assert_allclose(bars.get_data().values, display.counts_["new images"] * unit)
        np.testing.assert_array_equal(bars.get_data().edges, display.bin_edges_)


def test_threshold_and_flagged_shares_are_said():
    display = ScoreDisplay.from_predictions(SCORES, -1, normal_scores=[-7, 2, 3, 4])
    (line,) = display.ax_.get_lines()
    assert line.get_xdata() == [-1, -1]
    # -1 itself is not lower than -1.
    assert display.flagged_ == {"normal images": 0.25, "new images": pytest.approx(2 / 9)}
    assert legend_texts(display.ax_) == [
        "normal images: 4, 25.0% flagged",
        "new images: 9, 22.2% flagged",
        "threshold -1, flagged if lower",
    ]
    assert display.ax_.get_xlabel() == "score (higher = more normal)"


def test_kinds_differ_in_more_than_color():
    display = ScoreDisplay.from_predictions(
        SCORES, y=["a"] * 5 + ["b"] * 4, anomaly_label="b", normal_scores=SCORES
    )
    assert list(display.counts_) == ["normal images", "new, normal", "new, anomalies"]
    assert len({bars.get_hatch() for bars in display.ax_.patches}) == 3
    assert display.counts_["new, anomalies"].sum() == 4


def test_a_dark_style_shows_the_threshold():
    with plt.style.context("dark_background"):
        display = ScoreDisplay.from_predictions(SCORES, -1)
    assert to_hex(display.ax_.get_lines()[0].get_color()) == "#ffffff"


def test_numbers_of_images_have_whole_ticks():
    display = ScoreDisplay.from_predictions([1, 2, 3], stat="count")
    assert (display.ax_.get_yticks() % 1 == 0).all()
    _, ax = plt.subplots()
    ax.set_yscale("log")
    assert display.plot(ax, stat="count").ax_.get_yscale() == "log"


def test_without_a_threshold_nothing_is_flagged():
    display = ScoreDisplay.from_predictions(SCORES)
    assert display.flagged_ == {}
    assert not display.ax_.get_lines()
    assert legend_texts(display.ax_) == ["new images: 9"]


def test_a_long_tail_is_drawn_on_a_logarithmic_axis():
    scores = np.r_[-np.linspace(1, 20, 50), -9000, -4000]
    display = ScoreDisplay.from_predictions(scores, -30, bins=10)
    assert display.ax_.get_xscale() == "symlog"
    places = display.ax_.xaxis.get_transform().transform(display.bin_edges_)
    np.testing.assert_allclose(np.diff(places), np.diff(places)[0])
    assert display.counts_["new images"].sum() == 52
    assert display.plot(scale="linear").ax_.get_xscale() == "linear"
    assert ScoreDisplay.from_predictions([1, 2, 3]).ax_.get_xscale() == "linear"
    assert ScoreDisplay.from_predictions([1, 2], scale="symlog").ax_.get_xscale() == "symlog"


def test_scores_that_are_all_the_same_can_be_drawn():
    for scale in ("auto", "symlog"):
        display = ScoreDisplay.from_predictions([0.0, 0.0], scale=scale)
        assert display.counts_["new images"].sum() == 2


def test_scores_come_from_the_detector(detector, odd_images):
    normal = blobs(np.random.default_rng(2), 8)
    display = ScoreDisplay.from_estimator(detector, odd_images, normal)
    np.testing.assert_array_equal(display.scores, detector.score_samples(odd_images))
    np.testing.assert_array_equal(display.normal_scores, detector.score_samples(normal))
    assert display.ax_.get_lines()[0].get_xdata() == [detector.offset_] * 2
    assert display.flagged_["new images"] == np.mean(detector.predict(odd_images) == -1) == 1


@pytest.mark.parametrize(
    ("estimator", "has_threshold"),
    [
        (IsolationForest(random_state=0), True),
        (make_pipeline(StandardScaler(), IsolationForest(random_state=0)), True),
        (KernelDensity(), False),
    ],
)
def test_other_outlier_detectors_are_drawn_too(estimator, has_threshold):
    X = np.random.default_rng(0).normal(size=(50, 2))
    display = ScoreDisplay.from_estimator(estimator.fit(X), X, y=np.r_[np.ones(45), -np.ones(5)])
    if has_threshold:
        flagged = sum(
            display.flagged_[kind] * n for kind, n in zip(display.flagged_, (45, 5), strict=True)
        )
        assert flagged == pytest.approx(np.sum(estimator.predict(X) == -1))
    else:
        assert display.offset is None


def test_of_a_decision_function_the_threshold_is_zero():
    class Decides(IsolationForest):
        score_samples = property()  # hidden

        def decision_function(self, X):
            return X[:, 0]

    assert ScoreDisplay.from_estimator(Decides(), SCORES[:, None]).offset == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": [1, np.nan]}, "scores holds nan for sample 1"),
        ({"scores": [[1, 2]]}, r"scores has shape \(1, 2\)"),
        ({"scores": []}, r"scores has shape \(0,\)"),
        ({"normal_scores": [np.inf]}, "normal_scores holds inf"),
        ({"y": [1]}, "y holds 1 labels for 2 scores"),
        ({"y": ["a", "b"]}, "Pass the label of anomalies"),
        ({"stat": "density"}, r"stat='density' is not one of \['share', 'count'\]"),
        ({"scale": "log"}, "scale='log' is not one of"),
        ({"bins": 0}, "bins=0 must be at least 1"),
        ({"bins": [0, 1]}, "bins run from 0 to 1, scores and threshold from 1 to 2"),
    ],
)
def test_scores_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreDisplay.from_predictions(options.pop("scores", [1, 2]), **options)


@pytest.mark.parametrize("display", [ScoreDisplay, GalleryDisplay])
def test_a_classifier_gives_no_score_of_normality(display):
    with pytest.raises(ValueError, match="LogisticRegression is no outlier detector"):
        display.from_estimator(LogisticRegression(), IMAGES)


class Untouchable(IsolationForest):
    def score_samples(self, X):
        raise AssertionError("was asked for scores")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": [1, 1]}, "inconsistent numbers of samples"),
        ({"y": ["a", "b"]}, "Pass the label of anomalies"),
        ({"stat": "density"}, "stat='density'"),
    ],
)
def test_nothing_is_scored_for_a_histogram_that_cannot_be_drawn(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreDisplay.from_estimator(Untouchable(), IMAGES, **options)


# --- blocks


def test_discrepancies_are_in_deviations_of_normal_images():
    discrepancies = NORMAL.mean(axis=0) + NORMAL.std(axis=0) * [[1, 2, 3], [0, -1, 30]]
    display = BlockDiscrepancyDisplay.from_predictions(discrepancies, reference=NORMAL)
    np.testing.assert_allclose(display.standardized, [[1, 2, 3], [0, -1, 30]], atol=1e-9)
    lines = [container.lines[0] for container in display.ax_.containers]
    np.testing.assert_allclose(lines[1].get_ydata(), [0, -1, 30], atol=1e-9)
    assert lines[0].get_marker() != lines[1].get_marker()
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    assert legend_texts(display.ax_) == ["normal images, ± 1", "image 0", "image 1"]
    assert [label.get_text() for label in display.ax_.get_xticklabels()] == [
        "1 of 3",
        "2 of 3",
        "3 of 3",
    ]


def test_blocks_of_a_detector_and_of_its_students_are_the_same(detector, odd_images):
    normal = blobs(np.random.default_rng(2), 8)
    display = BlockDiscrepancyDisplay.from_estimator(detector, odd_images, normal)
    z, reference = (detector.distillation_.transform(X) for X in (odd_images, normal))
    expected = (z - reference.mean(axis=0, dtype=float)) / reference.std(axis=0, dtype=float)
    np.testing.assert_allclose(display.standardized, expected)
    assert display.block_names == ["block1", "block2"]
    assert (display.standardized > 0).all()
    students = BlockDiscrepancyDisplay.from_estimator(
        detector.distillation_, odd_images, normal, titles="abcdef"
    )
    np.testing.assert_array_equal(students.standardized, display.standardized)
    assert legend_texts(students.ax_)[1:] == list("abcdef")


def test_groups_have_a_mean_and_a_spread():
    groups = ["good"] * 15 + ["crack"] * 5
    values = np.r_[NORMAL[:15], NORMAL[15:] * 2]
    display = BlockDiscrepancyDisplay.from_predictions(
        values, groups=groups, reference_group="good"
    )
    np.testing.assert_allclose(display.means_["good"], 0, atol=1e-9)
    np.testing.assert_allclose(display.deviations_["good"], 1)
    np.testing.assert_allclose(display.means_["crack"], display.standardized[15:].mean(axis=0))
    crack = display.ax_.containers[0]
    (bars,) = crack.lines[2]
    lengths = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(lengths, 2 * display.deviations_["crack"])
    assert legend_texts(display.ax_)[1:] == ["crack (5)", "good (15)"]
    same = BlockDiscrepancyDisplay.from_predictions(values, groups=groups, reference=values[:15])
    np.testing.assert_array_equal(same.standardized, display.standardized)


def test_groups_of_a_detector(detector, images, odd_images):
    X = np.concatenate([images, odd_images])
    display = BlockDiscrepancyDisplay.from_estimator(
        detector, X, groups=[0] * 20 + [1] * 6, reference_group=0
    )
    assert (display.means_[1] > display.means_[0] + 1).all()


def test_many_images_are_a_heat_map():
    display = BlockDiscrepancyDisplay.from_predictions(NORMAL * 2, reference=NORMAL)
    (heat,) = display.ax_.get_images()
    np.testing.assert_array_equal(heat.get_array(), display.standardized)
    assert heat.get_clim() == (0, display.standardized.max())
    assert heat.get_cmap().name == SEQUENTIAL
    assert "standard deviations of normal images" in display.figure_.axes[1].get_ylabel()
    assert not display.plot(kind="line").ax_.get_images()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": None}, "the arguments name no normal images; pass normal images"),
        ({"reference": None, "groups": [0] * 20}, "the arguments name no normal images"),
        (
            {"reference": None, "groups": [0] * 20, "reference_group": 1},
            r"reference_group=1 is not among the groups \[0\]",
        ),
        ({"groups": [0] * 20, "reference_group": 0}, "both name normal images"),
        ({"groups": [0]}, "groups holds 1 labels for 20 images"),
        ({"reference": NORMAL[:, :2]}, "reference has 2 blocks, discrepancies have 3"),
        ({"reference": NORMAL[:1]}, "the 1 normal images all have the same discrepancy in block"),
        ({"reference": NORMAL[0]}, r"reference has shape \(3,\)"),
        ({"reference": NORMAL * np.nan}, "reference holds NaN or inf for sample 0"),
        ({"block_names": ["a"]}, "block_names holds 1 names for 3 blocks"),
        ({"kind": "bars"}, r"kind='bars' is not one of"),
    ],
)
def test_discrepancies_that_cannot_be_compared_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BlockDiscrepancyDisplay.from_predictions(NORMAL, **{"reference": NORMAL} | options)


def test_there_is_no_block_without_a_student(detector, make_detector, images, monkeypatch):
    pretrained = make_detector(feature_spaces="pretrained").fit(images)
    with pytest.raises(ValueError, match=r"no students.*feature_spaces='both'"):
        BlockDiscrepancyDisplay.from_estimator(pretrained, images, images)
    with pytest.raises(ValueError, match="no history of a training"):
        TrainingDisplay.from_estimator(pretrained)
    forest = IsolationForest().fit(NORMAL)
    with pytest.raises(ValueError, match="IsolationForest has no students; pass a Transformaly"):
        BlockDiscrepancyDisplay.from_estimator(forest, images, images)
    monkeypatch.setattr(type(detector.distillation_), "transform", None)  # not called
    with pytest.raises(ValueError, match="the arguments name no normal images"):
        BlockDiscrepancyDisplay.from_estimator(detector, images)
    with pytest.raises(ValueError, match="both name normal images"):
        BlockDiscrepancyDisplay.from_estimator(
            detector, images, images, groups=[1] * 20, reference_group=1
        )


# --- training


def test_a_line_per_block_over_the_epochs():
    display = TrainingDisplay.from_history(HISTORY, block_names=["block4", "block5"])
    early, late = (line_of(display.ax_, name) for name in ("block4", "block5"))
    np.testing.assert_array_equal(early.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(early.get_ydata(), [0.8, 0.6, 0.5])  # held out
    np.testing.assert_array_equal(late.get_ydata(), [0.5, 0.4, np.nan])
    assert early.get_marker() != late.get_marker()
    dashed = [line for line in display.ax_.get_lines() if line.get_linestyle() == "--"]
    np.testing.assert_array_equal(dashed[0].get_ydata(), [0.9, 0.5, 0.4])
    assert legend_texts(display.ax_) == ["block5", "block4", "held-out images", "training images"]
    assert display.ax_.get_yscale() == "log"


def test_without_held_out_images_the_training_loss_is_drawn():
    history = [{"train_loss": record["train_loss"]} for record in HISTORY]
    display = TrainingDisplay.from_history(history)
    np.testing.assert_array_equal(line_of(display.ax_, "1 of 2").get_ydata(), [0.9, 0.5, 0.4])
    assert legend_texts(display.ax_) == ["2 of 2", "1 of 2", "training images"]


def test_ridge_students_have_a_point_per_block(detector):
    display = TrainingDisplay.from_estimator(detector)
    (points,) = display.ax_.get_lines()
    np.testing.assert_array_equal(
        points.get_ydata(), detector.distillation_.history_[0]["train_loss"]
    )
    labels = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert labels == ["block1", "block2"]
    students = TrainingDisplay.from_estimator(detector.distillation_)
    np.testing.assert_array_equal(students.train_loss, display.train_loss)


def test_one_epoch_of_block_students_shows_both_losses():
    display = TrainingDisplay.from_history(HISTORY[:1])
    np.testing.assert_array_equal(line_of(display.ax_, "training images").get_ydata(), [0.9, 0.4])
    np.testing.assert_array_equal(line_of(display.ax_, "held-out images").get_ydata(), [0.8, 0.5])


def test_block_students_of_a_detector(make_detector, images):
    detector = make_detector(student="block").fit(images)
    display = TrainingDisplay.from_estimator(detector)
    history = detector.distillation_.history_
    assert display.train_loss.tolist() == [record["train_loss"] for record in history]
    assert display.valid_loss.tolist() == [record["valid_loss"] for record in history]
    assert display.train_loss.shape == (2, 2)


def test_tuned_features_begin_before_the_first_epoch(tiny, images):
    features = CompactFeatures(backbone=tiny, n_tuned_blocks=1, max_epochs=2, random_state=0).fit(
        images
    )
    display = TrainingDisplay.from_estimator(features)
    held_out = line_of(display.ax_, "held-out images")
    np.testing.assert_array_equal(held_out.get_xdata(), range(len(features.history_) + 1))
    assert held_out.get_ydata()[0] == features.initial_loss_
    train = line_of(display.ax_, "training images")
    np.testing.assert_array_equal(train.get_ydata(), [r["train_loss"] for r in features.history_])
    assert train.get_xdata()[0] == 1


def test_a_loss_of_zero_is_drawn():
    display = TrainingDisplay.from_history([{"train_loss": [0.0, 0.1]}])
    assert display.ax_.get_yscale() == "linear"


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([], "history is empty"),
        ([{"epoch": 1}], r"history\[0\] has no 'train_loss'"),
        ([HISTORY[0], {"train_loss": [1, 2]}], r"history\[1\] has no 'valid_loss'"),
        ([{"train_loss": [1, 2]}, {"train_loss": [1]}], r"history\[1\] .* of 1 blocks.* of 2"),
        ([{"train_loss": [1, 2], "valid_loss": [1]}], "1 blocks on held-out images, of 2"),
    ],
)
def test_histories_that_are_none_are_refused(history, message):
    with pytest.raises(ValueError, match=message):
        TrainingDisplay.from_history(history)


def test_names_of_blocks_have_to_fit_the_history():
    with pytest.raises(ValueError, match="block_names holds 1 names for 2 blocks"):
        TrainingDisplay.from_history(HISTORY, block_names=["a"])


# --- gallery


def test_images_go_from_most_normal_to_most_abnormal():
    display = GalleryDisplay.from_predictions(IMAGES, SCORES)
    order = [8, 1, 2, 4, 5, 7, 6, 0, 3]
    assert display.indices.tolist() == order
    for ax, index in zip(display.axes_, order, strict=True):
        np.testing.assert_array_equal(shown_pixels(ax), IMAGES[index])
    titles = [ax.get_title() for ax in display.axes_]
    assert titles == ["5", "4", "3", "2", "1", "0", "-1", "-5", "-60"]
    assert display.ax_.get_title() == "9 images by score, the most normal first"


def test_flagged_images_are_marked_by_more_than_color():
    display = GalleryDisplay.from_predictions(IMAGES, SCORES, offset=-1)
    marked = [ax.get_title().endswith("\nflagged") for ax in display.axes_]
    assert marked == [False] * 7 + [True] * 2  # -1 itself is not lower
    widths = [ax.spines["left"].get_linewidth() for ax in display.axes_]
    assert min(widths[7:]) > 2 * max(widths[:7])
    assert to_hex(display.axes_[8].spines["left"].get_edgecolor()) == "#d55e00"
    assert "wide frame: flagged, score below -1" in display.ax_.get_title()


def test_of_many_images_both_ends_and_evenly_spaced_ones_are_shown():
    scores = np.random.default_rng(0).permutation(101)
    images = np.zeros((101, 4, 4, 3), np.uint8)
    display = GalleryDisplay.from_predictions(images, scores, n_images=6)
    assert display.scores.tolist() == [100, 80, 60, 40, 20, 0]
    assert scores[display.indices].tolist() == display.scores.tolist()
    assert display.ax_.get_title() == (
        "6 of 101 images by score, the most normal first:\n"
        "both ends, and evenly spaced ranks between"
    )


def test_only_images_that_are_shown_are_decoded(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path, image in zip(paths, IMAGES, strict=False):
        Image.fromarray(image).save(path)
    paths[1].write_bytes(b"no image")
    display = GalleryDisplay.from_predictions(paths, [5, 4, 3, 2, 1], n_images=3, titles="abcde")
    assert [ax.get_title() for ax in display.axes_] == ["a\n5", "c\n3", "e\n1"]
    with pytest.raises(ValueError, match=r"sample 1 .*1\.png.* cannot be decoded"):
        GalleryDisplay.from_predictions(paths, [5, 4, 3, 2, 1])


def test_images_of_mixed_sizes_are_shown_in_their_shapes_and_large_ones_smaller():
    images = [np.zeros((1000, 500), np.uint8), np.zeros((8, 9, 1)), Image.new("L", (7, 5), 9)]
    display = GalleryDisplay.from_predictions(images, [3, 2, 1], n_columns=2)
    shapes = [shown_pixels(ax).shape for ax in display.axes_]
    assert shapes == [(320, 160, 3), (8, 9, 3), (5, 7, 3)]
    assert len(display.figure_.axes) == 4  # the third place of a row of two is not there


def test_a_row_holds_an_image_at_least():
    with pytest.raises(ValueError, match="n_columns=0 is not an int of at least 1"):
        GalleryDisplay.from_predictions(IMAGES, SCORES).plot(n_columns=0)


def test_a_torch_tensor_is_shown():
    display = GalleryDisplay.from_predictions(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), SCORES)
    np.testing.assert_array_equal(shown_pixels(display.axes_[0]), IMAGES[8])


def test_a_gallery_of_a_detector(detector, images, odd_images):
    X = np.concatenate([odd_images, images])
    display = GalleryDisplay.from_estimator(detector, X, n_images=26)
    assert set(display.indices[-6:]) == set(range(6))
    flagged = [ax.get_title().endswith("flagged") for ax in display.axes_]
    np.testing.assert_array_equal(flagged, detector.predict(X)[display.indices] == -1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": SCORES[:3]}, "scores holds 3 values for 9 images"),
        ({"scores": SCORES * np.nan}, "scores holds nan for sample 0"),
        ({"n_images": 1}, "n_images=1 is not an int of at least 2"),
        ({"n_images": 2.5}, r"n_images=2\.5 is not an int"),
        ({"n_columns": 0}, "n_columns=0 is not an int of at least 1"),
        ({"titles": ["a"]}, "titles holds 1 titles for 9 images"),
    ],
)
def test_a_gallery_that_cannot_be_drawn_is_refused(options, message):
    scores = options.pop("scores", SCORES)
    with pytest.raises(ValueError, match=message):
        GalleryDisplay.from_predictions(IMAGES, scores, **options)
    if "scores" not in message:
        with pytest.raises(ValueError, match=message):
            GalleryDisplay.from_estimator(Untouchable(), IMAGES, **options)


# --- evaluation


KINDS = ["good", "good", "crack", "crack", "stain", "good", "crack", "good", "stain"]
ODD = ["crack", "stain"]


def test_each_kind_has_a_row_with_a_point_for_each_image():
    display = EvaluationDisplay.from_predictions(SCORES, KINDS, offset=0.5, anomaly_label=ODD)
    assert {k: sorted(v) for k, v in display.scores.items()} == {
        "normal": [-5, 0, 1, 4], "crack": [-60, -1, 3], "stain": [2, 5]
    }  # fmt: skip
    assert display.flagged_ == {"normal": 2, "crack": 2, "stain": 0}
    texts = [tick.get_text() for tick in display.ax_.get_yticklabels()]
    assert texts == ["normal\n2 of 4 flagged", "crack\n2 of 3 found", "stain\n0 of 2 found"]
    points = np.concatenate([each.get_offsets() for each in display.ax_.collections])
    assert sorted(points[:, 0]) == sorted(SCORES)
    rows = {x: round(y) for x, y in points}
    assert (rows[4], rows[-60], rows[5]) == (0, 1, 2)
    filled = [each.get_offsets()[:, 0] for each in display.ax_.collections if len(
        each.get_facecolor())]  # fmt: skip
    assert sorted(np.concatenate(filled)) == [-60, -5, -1, 0]


def test_kinds_beside_labels_and_no_threshold():
    y = [1, 1, -1, -1, -1, 1, -1, 1, -1]
    display = EvaluationDisplay.from_predictions(SCORES, y)
    assert list(display.scores) == ["normal", "anomaly"]
    assert display.flagged_ == {}
    assert display.ax_.get_yticklabels()[1].get_text() == "anomaly\n5 images"
    kinds = ["-", "-", "normal", 3, 3, "-", 3, "-", 3]
    display = EvaluationDisplay.from_predictions(SCORES, y, kinds=kinds)
    assert list(display.scores) == ["normal", "3", "normal (defect)"]
    with pytest.raises(ValueError, match="kinds holds 1 labels for 9 images"):
        EvaluationDisplay.from_predictions(SCORES, y, kinds=["a"])


def test_an_evaluation_of_a_detector_has_its_threshold(detector):
    y = np.repeat([1, -1], [6, 3])
    display = EvaluationDisplay.from_estimator(detector, IMAGES, y)
    assert display.offset == detector.offset_
    np.testing.assert_array_equal(display.scores["normal"], detector.score_samples(IMAGES)[:6])


def test_pictures_of_files_are_named_after_them(tmp_path):
    names = ["a.png", "a-long-name-of-a-camera-and-a-lot-0001.png"]
    for name in names:
        Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / name)
    paths = [tmp_path / name for name in names]
    gallery = GalleryDisplay.from_predictions(paths, [2.0, 1.0])
    assert gallery.titles == ["a.png", "...ra-and-a-lot-0001.png"]
    assert max(map(len, gallery.titles)) == 24
    maps = AnomalyMapDisplay.from_predictions(paths, np.zeros((2, 20, 30)))
    assert maps.titles == gallery.titles
    assert AnomalyMapDisplay.from_predictions(paths, maps.maps, titles="xy").titles == ["x", "y"]
    arrays = [np.zeros((20, 30, 3), np.uint8)] * 2
    assert GalleryDisplay.from_predictions(arrays, [2.0, 1.0]).titles is None


# --- evidence


def test_the_evidence_is_drawn_up_to_the_alarm_and_beyond():
    monitor = changed_line()
    display = EvidenceDisplay.from_monitor(monitor)
    status = monitor.status()
    evidence = line_of(display.ax_, "evidence")
    np.testing.assert_array_equal(evidence.get_xdata(), np.arange(360))
    assert evidence.get_ydata()[-1] == status.log10_evidence
    alarm, level, since = display.ax_.get_lines()[3], *display.ax_.get_lines()[1:3]
    assert list(level.get_ydata()) == [2.0, 2.0]
    assert list(alarm.get_xdata()) == [status.alarm_at]
    assert list(since.get_xdata()) == [status.since, status.since]
    assert "in at most 1 % of lines without a change" in legend_texts(display.ax_)[1]


def test_the_evidence_of_a_group_is_its_own():
    monitor = changed_line()
    display = EvidenceDisplay.from_monitor(monitor, "left")
    np.testing.assert_array_equal(display.images, np.arange(0, 300, 2))
    assert display.since is display.alarm_at is None
    assert len(legend_texts(display.ax_)) == 2
    with pytest.raises(ValueError, match="no group 'top'"):
        EvidenceDisplay.from_monitor(monitor, "top")


def test_evidence_takes_an_image():
    with pytest.raises(ValueError, match="no image since its calibration"):
        EvidenceDisplay.from_monitor(LineMonitor(range(99)))


def test_a_gallery_of_a_calibrated_detector_shows_p_values():
    images = blobs(np.random.default_rng(0), 24)
    fitted = TransformalyDetector(image_size=56, n_blocks=1, contamination=0.2, random_state=0)
    display = GalleryDisplay.from_estimator(fitted.fit(images), images[:3])
    wanted = fitted.p_values(images[:3])[display.indices]
    np.testing.assert_array_equal(display.p_values, wanted)
    assert f", p {wanted[0]:.2g}" in display.axes_[0].get_title()
    with pytest.raises(ValueError, match="p_values holds 2 values for 3 images"):
        GalleryDisplay.from_predictions(images[:3], [1.0, 2.0, 3.0], p_values=[0.1, 0.2])
