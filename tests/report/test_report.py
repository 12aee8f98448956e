"""HTML reports: content, self-containment, and names that stay text."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import sys
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from reports import HOSTILE, Brightness, Page
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from skanomaly_vit import KNNDensity, ViTFeatures
from skanomaly_vit.calibration import conformal_p_values, false_alarm_bound
from skanomaly_vit.evaluation import NeighborDistance
from skanomaly_vit.report import write_report
from skanomaly_vit.report._histogram import Axis


def write(*args, path, **options):
    assert write_report(*args, path=path, **options).path == path
    return Page(path.read_text(encoding="utf-8"))


def test_says_the_scores_and_flags_of_a_real_detector(fitted, mixed, y, target):
    page = write(fitted, mixed, y, path=target, n_maps=3)
    scores, flags = fitted.score_samples(mixed), fitted.predict(mixed) == -1
    order = np.argsort(scores, kind="stable")
    assert [image["score"] for image in page.images] == scores[order].tolist()
    assert page.data["threshold"] == fitted.offset_
    assert [image["path"] for image in page.images] == [f"image {i}" for i in order]
    labels = np.where(y == 1, "normal", "anomaly")[order].tolist()
    assert [image["label"] for image in page.images] == labels
    words = np.where(flags, "flagged", "passed")[order].tolist()
    assert [row[-2:] for row in page.rows] == [list(row) for row in zip(words, labels, strict=True)]
    p_values = [f"{p:.2g}" for p in fitted.p_values(mixed)[order]]
    assert [row[3] for row in page.rows] == p_values
    assert [image["p"] for image in page.images] == fitted.p_values(mixed)[order].tolist()
    assert page.statistics["Images"] == "26"
    assert page.statistics["Flagged"] == str(flags.sum())
    assert page.statistics["Anomalies flagged"] == str(flags[y == -1].sum())
    assert page.statistics["Normal flagged"] == str(flags[y == 1].sum())
    assert page.statistics["AUROC"] == f"{roc_auc_score(y, scores):.3f}"
    assert {"Threshold", "Average precision", "FPR at 95 % TPR"} <= set(page.statistics)
    assert fitted.features_.backbone_fingerprint_ in page.text


def test_metrics_point_the_right_way(detector, mixed, y, target):
    detector.mean_ = 255.0  # what is dark is abnormal now, and these are all far from white
    turned = write(detector, mixed, -y, path=target).statistics
    straight = write(detector, mixed, y, path=target).statistics
    area = roc_auc_score(y, detector.score_samples(mixed))
    assert straight["AUROC"] == f"{area:.3f}"
    assert turned["AUROC"] == f"{1 - area:.3f}"
    assert straight["FPR at 95 % TPR"] != turned["FPR at 95 % TPR"]


def test_without_labels_there_is_nothing_about_them(detector, mixed, target):
    page = write(detector, mixed, path=target)
    assert list(page.statistics) == ["Images", "Flagged", "Threshold"]
    assert not any(attrs.get("id") == "filter-label" for attrs in page.all("select"))
    assert "AUROC" not in page.text


@pytest.mark.parametrize(("label", "kind"), [(1, "normal images"), (-1, "anomalies")])
def test_labels_of_one_kind_give_no_auroc_and_it_says_so(detector, images, target, label, kind):
    page = write(detector, images, np.full(len(images), label), path=target)
    assert f"By their labels all are {kind}" in page.text
    assert "AUROC" not in page.statistics


def test_takes_labels_of_any_kind(detector, mixed, y, target):
    labels = np.where(y == 1, "good", "<crack>")
    page = write(detector, mixed, labels, path=target, anomaly_label="<crack>")
    assert {image["label"] for image in page.images} == {"good", "<crack>"}
    values = [attrs["value"] for attrs in page.all("option") if "=" in attrs.get("value", "")]
    assert values == ["=<crack>", "=good"]
    assert "Anomalies are those labelled <crack> ." in page.text
    assert page.statistics["Anomalies flagged"] == "6"


def test_needs_nothing_but_itself(detector, mixed, y, target):
    page = write(detector, mixed, y, path=target)
    assert not page.all("link")
    assert not page.all("iframe")
    for tag, attrs in page.tags:
        assert "style" not in attrs
        assert not [name for name in attrs if name.startswith("on")]
        assert attrs.get("src", "data:image/").startswith("data:image/")
        assert attrs.get("href", "#").startswith("#")
        if tag == "img":  # without a source it waits for the script
            assert attrs["alt"] or "src" not in attrs
    assert "://" not in page.html
    anchors = {attrs["href"][1:] for attrs in page.all("a")}
    assert anchors <= {attrs.get("id") for _, attrs in page.tags}


def test_runs_only_the_script_and_the_style_that_it_was_written_with(detector, mixed, target):
    page = write(detector, mixed, path=target)
    (policy,) = [a["content"] for a in page.all("meta") if "Content-Security" in str(a)]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    scripts = [attrs for attrs in page.all("script") if attrs.get("type") != "application/json"]
    assert len(scripts) == len(page.all("style")) == 1
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page.html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def decode(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_pictures_are_small_and_as_large_as_they_say(detector, target):
    rng = np.random.default_rng(0)
    shapes = [(500, 900, 3), (40, 30), (700, 700, 1), (1, 300, 3)]
    X = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    page = write(detector, X, path=target, n_maps=4)
    large = [attrs for attrs in page.all("img") if "src" in attrs]
    assert len(large) == 2 * 4 * 2 + 2
    assert {attrs["loading"] for attrs in large} == {"lazy"}
    pictures = [(attrs["src"], int(attrs["width"]), int(attrs["height"])) for attrs in large]
    pictures += [image["thumbnail"] for image in page.images]
    sizes = set()
    for uri, *size in pictures:
        assert [*decode(uri).size] == size
        sizes.add(tuple(size))
    assert {(96, 53), (30, 40), (96, 96), (96, 1), (360, 200), (360, 360), (300, 1)} <= sizes
    assert {(120, 67), (120, 120)} <= sizes  # maps


def test_the_same_picture_of_any_type_gives_the_same_thumbnail(detector, images, target):
    kinds = [images[:1], images[:1].astype(np.uint16) * 257, images[:1] / 255.0]
    pages = [write(detector, [*kind], path=target, n_maps=0) for kind in kinds]
    sources = {page.images[0]["thumbnail"][0] for page in pages}
    assert len(sources) == 1


def test_a_map_is_red_where_an_image_is_abnormal(detector, target):
    image = np.full((64, 64, 3), int(detector.mean_), np.uint8)
    image[:32, :32] = 255
    page = write(detector, [image, image], path=target, n_maps=1)
    (layer, *_) = [a for a in page.all("img") if a["alt"].startswith("Anomaly map of image 0")]
    pixels = np.asarray(decode(layer["src"]).convert("RGBA"), dtype=float)
    abnormal, normal = pixels[4:28, 4:28], pixels[36:60, 36:60]
    assert (abnormal[..., :3] == (255, 0, 0)).all()
    assert (normal[..., :3] == (255, 255, 0)).all()  # yellow, if it could be seen
    assert abnormal[..., 3].min() == 255
    assert normal[..., 3].max() == 0  # the image shows through
    assert f"highest value {(255 - detector.mean_) / 10:.1f}" in layer["alt"]


def range_of(page):
    """Ends of the color scale, as the page says them, and what they hold for."""
    low, high, said = re.search(
        r"up to ([-\d.]+)\s+([-\d.]+) and above\s+red = abnormal; ([\w ]+)", page.text
    ).groups()
    return float(low), float(high), said.startswith("maps of reports with the same range compare")


def test_maps_of_several_reports_have_one_range(fitted, images, odd_images, target):
    for X in (images[:2], odd_images[:2]):
        assert range_of(write(fitted, X, path=target, n_maps=1)) == (2, 8, True)


def test_maps_of_another_kind_of_detector_have_the_range_of_the_page(detector, images, target):
    low, high, compares = range_of(write(detector, images, path=target, n_maps=2))
    assert (low, high) != (2, 8)
    assert not compares
    page = write(detector, images, path=target, n_maps=2, map_range=(1, 2.5))
    assert range_of(page) == (1, 2.5, True)


def test_a_histogram_stacks_the_images_of_each_kind(detector, mixed, y, target):
    page = write(detector, mixed, y, path=target, n_maps=0)
    bars = [attrs for attrs in page.all("rect") if "bar" in attrs.get("class", "") and "y" in attrs]
    places = {}
    for kind in ("normal", "anomaly"):
        lefts = [float(bar["x"][:-1]) for bar in bars if bar["class"] == f"bar {kind}"]
        places[kind] = np.array(lefts)
    share = axis_of(page)
    for kind, label in (("normal", 1), ("anomaly", -1)):
        wanted = 100 * share(detector.score_samples(np.array(mixed)[y == label]))
        width = 100 / 60
        inside = (places[kind][:, None] <= wanted + 1e-2) & (wanted < places[kind][:, None] + width)
        assert inside.any(axis=0).all()
        assert inside.any(axis=1).all()
    (line,) = [attrs for attrs in page.all("line") if attrs.get("id") == "threshold-line"]
    assert float(line["x1"][:-1]) == pytest.approx(100 * share(detector.offset_), abs=0.1)


def axis_of(page):
    """Scores to shares of the axis, as the script of a page computes them."""
    axis = page.data["axis"]
    span = axis["high"] - axis["low"]
    return lambda scores: (
        (np.arcsinh((scores - axis["center"]) / axis["width"]) - axis["low"]) / span
    )


@pytest.mark.parametrize(
    ("scores", "ticks"),
    [
        (np.arange(11.0), [0, 2, 4, 6, 8, 10]),
        (np.arange(11.0) / 1000 - 0.004, [-0.004, -0.002, 0, 0.002, 0.004, 0.006]),
        (np.full(3, 7.0), [6, 6.5, 7, 7.5, 8]),
        ([*np.arange(11.0), -1e6], [-500_000, -100_000, -10_000, -1000, -200, -10, 5]),
    ],
)
def test_an_axis_has_round_ticks_and_bends_for_far_scores(scores, ticks):
    axis = Axis.of(np.asarray(scores))
    assert axis.ticks() == ticks
    places = axis.places(np.sort(scores))
    assert (places > 0).all()
    assert (places < 1).all()
    np.testing.assert_allclose(axis.scores(places), np.sort(scores), atol=1e-9)


def test_maps_are_made_of_the_shown_images_only(detector, mixed, target):
    page = write(detector, mixed, path=target, n_maps=3)
    assert detector.mapped_ == [1] * 6
    large = [a["alt"] for a in page.all("img") if a["alt"].startswith("Anomaly map of")]
    decision = detector.decision_function(mixed)
    shown = [*np.argsort(decision)[:3], *np.argsort(np.abs(decision))[:3]]
    assert [int(re.search(r"image (\d+)", alt)[1]) for alt in large] == [*map(int, shown)]


def test_an_image_in_both_galleries_is_mapped_once(detector, images, target):
    page = write(detector, images[:2], path=target, n_maps=5)
    assert detector.mapped_ == [1, 1]
    assert sum(a["alt"].startswith("Anomaly map of") for a in page.all("img")) == 4


def test_without_large_images_there_are_no_galleries(detector, images, target):
    page = write(detector, images, path=target, n_maps=0)
    assert "Most abnormal" not in page.text
    assert detector.mapped_ == []


def test_a_pipeline_has_a_report_without_maps(tiny, mixed, y, target):
    parts = ViTFeatures(backbone=tiny), IsolationForest(random_state=0)
    model = make_pipeline(*parts).fit(mixed[:20])
    page = write(model, mixed, y, path=target, n_maps=2)
    assert "Pipeline gives no anomaly maps" in page.text
    assert not [a for a in page.all("img") if a["alt"].startswith("Anomaly map")]
    assert page.statistics["Flagged"] == str((model.predict(mixed) == -1).sum())
    assert model[0].backbone_fingerprint_ in page.text
    changed, everything = page.tables[-2:]
    assert ["isolationforest__random_state", "0", "None"] in changed
    assert ["isolationforest__n_estimators", "100"] in everything


def test_says_which_parameters_differ_from_the_defaults(images, target):
    model = Brightness(contamination=0.2, unused=KNNDensity(n_neighbors=7)).fit(images)
    page = write(model, images, path=target)
    changed, everything = page.tables[-2:]
    assert changed == [
        ["contamination", "0.2", "0.1"],
        ["unused", "KNNDensity", "None"],
        ["unused__n_neighbors", "7", "5"],
    ]
    assert [name for name, *_ in everything] == sorted(model.get_params())


def test_takes_a_score_that_is_the_same_for_all(detector, images, target):
    page = write(detector, np.stack([images[0]] * 3), path=target)
    assert len(page.rows) == 3


@pytest.mark.parametrize("form", ["tensor", "frame", "paths", "rows", "pil"])
def test_takes_images_of_any_form(make_detector, images, target, tmp_path, form):
    model = make_detector(feature_spaces="pretrained")
    X = images
    if form == "tensor":
        torch = pytest.importorskip("torch")
        X = torch.from_numpy(images).permute(0, 3, 1, 2)
    elif form in ("paths", "frame"):
        X = [tmp_path / f"{i}.png" for i in range(len(images))]
        for path, image in zip(X, images, strict=True):
            Image.fromarray(image).save(path)
        if form == "frame":
            pandas = pytest.importorskip("pandas")
            X = pandas.DataFrame({"path": X}, index=range(50, 50 + len(images)))
    elif form == "rows":
        model.set_params(image_shape=(32, 32, 3))
        X = images.reshape(len(images), -1)
    else:
        X = [Image.fromarray(image) for image in images]
    page = write(model.fit(X), X, path=target, n_maps=1)
    scores = np.sort(model.score_samples(X))
    np.testing.assert_allclose([image["score"] for image in page.images], scores)


# Names


def test_names_are_paths_below_the_folder_of_all(detector, images, tmp_path, target):
    paths = [tmp_path / "in" / name for name in ("a/1.png", "a/2.png", "b/c/1.png")]
    for path, image in zip(paths, images[:3], strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    page = write(detector, paths, path=target)
    assert {*page.names} == {os.path.join("a", "1.png"), os.path.join("a", "2.png"), "b/c/1.png"}
    assert str(tmp_path / "in") in page.text


def harmless(page):
    """The page without its names: tags and the names of their attributes."""
    return [(tag, tuple(attrs)) for tag, attrs in page.tags]


def test_hostile_names_and_titles_are_text(detector, images, target):
    X, n = images[: len(HOSTILE)], len(HOSTILE)
    plain = write(detector, X, path=target, title="a", names=["a"] * n)
    page = write(detector, X, path=target, title="".join(HOSTILE), names=HOSTILE)
    assert harmless(page) == harmless(plain)
    assert {*page.names} == {
        *HOSTILE[:5],
        "two\\nlines\\tand\\x00null",
        "gnp.\\u202eexe\\u200f\\u2066",
        "no utf-8: \\udcff",
        *HOSTILE[8:],
    }
    assert [row[1] for row in page.rows] == page.names


@pytest.fixture
def plain(detector, images, tmp_path):
    names = ["a"] * len(images)
    return harmless(write(detector, images, path=tmp_path / "plain.html", names=names, n_maps=0))


TRAPS = st.sampled_from("<>&\"'`=/\\{}%#\n\r\0\u202e\udc80")


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=st.lists(st.text(st.one_of(st.characters(), TRAPS)), min_size=20, max_size=20))
def test_any_name_is_text(detector, images, target, plain, names):
    page = write(detector, images, path=target, names=names, n_maps=0)
    assert harmless(page) == plain
    escaped = [
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
        for name in names
    ]
    order = np.argsort(detector.score_samples(images), kind="stable")
    assert page.names == [escaped[i] for i in order]
    assert [row[1] for row in page.rows] == page.names


@pytest.mark.skipif(sys.platform != "linux", reason="file names are not bytes elsewhere")
def test_files_of_any_name_are_text(detector, images, target, tmp_path):
    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    names = [b"script>.png", b'"><img src=x onerror=alert(1)>.png', b"\xff\xfe.png", b"a\nb.png"]
    paths = [os.fsdecode(os.path.join(os.fsencode(folder), name)) for name in names]
    for path, image in zip(paths, images[:4], strict=True):
        with open(path, "wb") as file:
            Image.fromarray(image).save(file, "PNG")
    page = write(detector, paths, path=target)
    shown = {*page.names}
    assert shown == {os.fsdecode(n) for n in names[:2]} | {"\\udcff\\udcfe.png", "a\\nb.png"}
    assert len(page.all("script")) == 2
    assert {image["path"] for image in page.images} == {os.fsdecode(name) for name in names}


def test_paths_of_marks_are_below_the_folder_whatever_the_names(detector, images, tmp_path, target):
    paths = [tmp_path / name for name in ("a.png", "b/=c.png")]
    for path, image in zip(paths, images[:2], strict=True):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    page = write(detector, paths, path=target, names=["first", "second"])
    assert {image["path"]: image["name"] for image in page.images} == {
        "a.png": "first",
        os.path.join("b", "=c.png"): "second",
    }
    assert {image["folder"] for image in page.images} == {"", "b"}
    assert page.data["root"] == str(tmp_path)
    assert f"paths are relative to {tmp_path}" in page.text
    given = write(detector, images[:1], path=target, names=["shelf/7"])
    assert given.images[0] | {"thumbnail": 0} == {
        "path": "shelf/7", "folder": "shelf", "thumbnail": 0, "score": given.images[0]["score"]
    }  # fmt: skip
    assert given.data["root"] == ""


def test_a_page_of_the_same_images_has_the_same_marks(detector, images, target):
    first = write(detector, images, path=target).data["id"]
    assert write(detector, images, path=target, folder=True).data["id"] == first
    detector.mean_ += 50
    assert write(detector, images[::-1], path=target, names=first_names(images)).data["id"] == first
    assert write(detector, images[1:], path=target).data["id"] != first
    assert write(detector, images ^ 1, path=target).data["id"] != first


def first_names(images):
    return [f"image {i}" for i in range(len(images))][::-1]


# Calibration


def test_says_how_many_false_alarms_every_threshold_is_expected_to_give(calibrated, images, target):
    known = calibrated.calibration_scores_
    page = write(calibrated, images, path=target)
    found, curve = page.data["calibration"], false_alarm_bound(known)
    assert found["scores"] == sorted(known)
    rates = conformal_p_values(known, [-np.inf, *sorted(known)])
    np.testing.assert_allclose(found["rates"], rates, atol=1e-6)
    np.testing.assert_allclose(found["rates"][:-1], curve.estimate, atol=1e-6)
    np.testing.assert_allclose(found["bounds"], curve.bound, atol=1e-6)
    assert found["limits"] == curve.threshold.tolist()
    assert (found["units"], found["byGroup"], found["confidence"]) == (40, False, 0.95)
    n_below = int((known < calibrated.offset_).sum())
    assert page.statistics["False alarms expected"] == f"{100 * curve.estimate[n_below]:.1f}\xa0%"
    assert f"at most {100 * curve.bound[n_below]:.1f}\xa0% of normal images" in page.html
    p_values = conformal_p_values(known, calibrated.score_samples(images))
    assert [image["p"] for image in page.images] == sorted(p_values.tolist())


def test_groups_are_the_units_of_rates_and_bounds(calibrated, images, target):
    known, groups = calibrated.calibration_scores_, np.arange(40) % 8
    calibrated.calibrate(known, groups)
    page = write(calibrated, images, path=target)
    found = page.data["calibration"]
    curve = false_alarm_bound(known, groups=groups)
    assert (found["units"], found["byGroup"]) == (8, True)
    expected = conformal_p_values(known, [-np.inf, *sorted(known)], groups=groups)
    np.testing.assert_allclose(found["rates"], expected, atol=1e-6)
    assert found["limits"] == curve.threshold.tolist()
    assert "of new groups, in 95 % of deployments" in page.text


def test_scores_of_several_models_bound_nothing(make_detector, images, target):
    page = write(make_detector(calibration="cross").fit(images), images, path=target, n_maps=0)
    assert page.data["calibration"]["bounds"] is None
    assert "of normal images, on average" in page.text


def test_without_held_out_images_there_are_no_p_values_and_it_says_so(detector, images, target):
    page = write(detector, images, path=target)
    assert page.data["calibration"] is None
    assert "p" not in page.images[0]
    assert "Brightness has no scores of held-out normal images" in page.text
    assert "p-value</th>" not in page.html


def test_counts_the_flagged_images_of_each_label(detector, mixed, y, target):
    labels = np.where(y == 1, "good", "crack").astype(object)
    labels[-2:] = "dent"
    page = write(detector, mixed, labels, path=target, anomaly_label=["crack", "dent"])
    flagged = detector.score_samples(mixed) < detector.offset_
    rows = [[cell.strip() for cell in row[:3]] for row in page.tables[0]]
    assert rows == [
        [name, str((labels == label).sum()), str(flagged[labels == label].sum())]
        for name, label in (("crack", "crack"), ("dent", "dent"), ("good normal", "good"))
    ]


# Pictures beside the page


def test_a_folder_holds_the_pictures_of_a_page(detector, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "a b.html"
    page = write(detector, images, path=target, n_maps=2, folder=True)
    files = {*(tmp_path / "a b_files").iterdir()}
    uris = [image[kind] for image in page.images for kind in ("thumbnail", "large")]
    uris += [(a["src"], a["width"], a["height"]) for a in page.all("img") if "src" in a]
    named = {uri for uri, *_ in uris if not uri.startswith("data:")}
    assert {tmp_path / unquote(uri) for uri in named} == files
    for uri, *size in uris[:40]:
        with Image.open(unquote(uri)) as image:
            assert [*image.size] == size
    (policy,) = [a["content"] for a in page.all("meta") if "Content-Security" in str(a)]
    assert "img-src data: 'self' file:;" in policy


def test_a_newer_report_takes_the_older_ones_pictures_away(detector, images, tmp_path, target):
    write(detector, images, path=target, folder=True)
    folder = tmp_path / "report_files"
    (folder / "mine.txt").write_text("kept")
    write(detector, images[:2], path=target, n_maps=0, folder=True)
    kinds = sorted(file.suffix for file in folder.iterdir())
    assert kinds == [".jpeg", ".jpeg", ".txt"]  # images of 32 pixels: large and small are one


def test_a_report_that_fails_takes_its_pictures_away(images, tmp_path, target):
    class Broken(Brightness):
        def score_samples(self, X):
            return np.full(len(X), np.nan)

    with pytest.raises(ValueError, match="not finite"):
        write_report(Broken().fit(images), images, path=target, folder=True)
    assert [*tmp_path.iterdir()] == []
    write(Brightness().fit(images), images[:3], path=target, folder=True)
    before = {*(tmp_path / "report_files").iterdir()}
    with pytest.raises(ValueError, match="not finite"):
        write_report(Broken().fit(images), images, path=target, folder=True)
    assert {*(tmp_path / "report_files").iterdir()} == before


def test_refuses_a_file_where_the_folder_belongs(images, tmp_path, target):
    (tmp_path / "report_files").write_text("a file")
    with pytest.raises(FileExistsError, match="report_files' is a file, and the pictures of"):
        write_report(Untouchable().fit(images), images, path=target, folder=True)


# Invalid arguments raise before anything is written


class Untouchable(Brightness):
    def score_samples(self, X):
        raise AssertionError("scored before all was checked")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "."}, IsADirectoryError, r"is a directory; pass a file in it, such as '.*html'"),
        ({"path": "no/such/report.html"}, FileNotFoundError, "there is no folder '.*no/such'"),
        ({"y": [1, -1]}, ValueError, "y holds 2 labels and X 20 images"),
        ({"y": ["good"] * 20}, ValueError, r"'auto' knows \+1 \(normal\)"),
        ({"names": ["a"]}, ValueError, "names holds 1, X holds 20 images"),
        ({"names": "a" * 20}, ValueError, "names is the text 'aaa"),
        ({"n_maps": -1}, ValueError, "n_maps=-1 is not an integer"),
        ({"n_maps": 1.5}, ValueError, r"n_maps=1\.5 is not an integer"),
        ({"map_range": (3, 1)}, ValueError, r"map_range=\(3, 1\) has to be finite, with low"),
        ({"X": "folder"}, ValueError, "X is a single path"),
    ],
)
def test_refuses_before_any_work(images, tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    done = []
    arguments = {"X": images, "callback": lambda *step: done.append(step)} | options
    with pytest.raises(error, match=message):
        write_report(Untouchable().fit(images), **arguments)
    assert done == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_refuses_a_folder_that_cannot_be_written_to(detector, images, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written to"):
        write_report(detector, images, path=tmp_path / "report.html")


def test_refuses_what_gives_no_score_or_has_no_threshold(tiny, images, target):
    with pytest.raises(NotFittedError):
        write_report(Brightness(), images, path=target)
    with pytest.raises(ValueError, match="det is the class Brightness; pass a fitted instance"):
        write_report(Brightness, images, path=target)
    features = ViTFeatures(backbone=tiny).fit(images)
    with pytest.raises(ValueError, match="ViTFeatures has no score_samples"):
        write_report(features, images, path=target)
    ranks_only = make_pipeline(ViTFeatures(backbone=tiny), NeighborDistance()).fit(images)
    with pytest.raises(ValueError, match="Pipeline has neither offset_ nor decision_function"):
        write_report(ranks_only, images, path=target)
    assert not target.exists()


def test_refuses_a_decision_that_has_no_threshold_among_scores(detector, images, target):
    class Halved(Brightness):
        def decision_function(self, X):
            return self.score_samples(X) / 2 + 1

    halved = Halved().fit(images)
    del halved.offset_
    with pytest.raises(ValueError, match="decision_function is not score_samples minus a const"):
        write_report(halved, images, path=target)


def test_an_unreadable_image_leaves_the_older_report(detector, images, tmp_path, target):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(images[0]).save(good)
    bad.write_bytes(good.read_bytes()[:60])
    target.write_text("older")
    with pytest.raises(ValueError, match=r"sample 2 \('.*bad.png'\): the image cannot be decoded"):
        write_report(Untouchable().fit(images), [good, good, bad], path=target)
    assert target.read_text() == "older"
    assert {path.name for path in tmp_path.iterdir()} == {"good.png", "bad.png", "report.html"}


def test_a_disk_that_is_full_leaves_the_older_report(detector, images, target, monkeypatch):
    def fail(*args):
        raise OSError("no space left")

    target.write_text("older")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_report(detector, images, path=target)
    assert target.read_text() == "older"
    assert list(target.parent.iterdir()) == [target]


def test_a_link_stays_one(detector, images, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, real = tmp_path / "report.html", tmp_path / "elsewhere" / "real.html"
    link.symlink_to(real)
    assert write_report(detector, images, path=link).path == real.resolve()
    assert link.is_symlink()
    assert real.read_bytes().startswith(b"<!DOCTYPE html>")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_refuses_scores_that_are_not_finite(images, target, value):
    class Broken(Brightness):
        def score_samples(self, X):
            return np.where(np.arange(len(X)) == 3, value, 0.0)

    with pytest.raises(ValueError, match=r"gave 1 of 20 images scores .* sample 3: (nan|-inf)"):
        write_report(Broken().fit(images), images, path=target)
    assert not target.exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(np.zeros((1, 3, 3)), "another size"), (np.full((1, 32, 32), np.nan), "not finite")],
)
def test_refuses_maps_that_do_not_fit(images, target, wrong, message):
    class Broken(Brightness):
        def anomaly_map(self, X):
            return wrong

    with pytest.raises(ValueError, match=rf"for sample \d+ of shape \(32, 32\): .*{message}"):
        write_report(Broken().fit(images), images, path=target)
    assert not target.exists()


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_says_what_to_install(detector, images, target, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"write_report needs {package}: pip install 'skanomaly-vit\[report\]'"
    with pytest.raises(ImportError, match=message):
        write_report(Untouchable().fit(images), images, path=target)


def test_a_callback_sees_all_steps(detector, mixed, target):
    steps = []
    write(detector, mixed, path=target, n_maps=4, callback=lambda *step: steps.append(step))
    done, total = zip(*steps, strict=True)
    assert list(done) == sorted(done)
    assert set(total) == {done[-1]} == {2 * 26 + 8}
