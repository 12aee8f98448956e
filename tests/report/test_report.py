"""HTML reports: content, self-containment, and names that stay text."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from skanomaly_vit import KNNDensity, ViTFeatures
from skanomaly_vit._images.source import open_images
from skanomaly_vit.evaluation import NeighborDistance
from skanomaly_vit.report import write_report

HOSTILE = [
    "<script>window.hacked = 1</script>.png",
    '"><img src=x onerror="window.hacked = 1">.png',
    "' onmouseover='window.hacked = 1' x='",
    "</style></title></table><h1>gone</h1>",
    "{{ 7 * 7 }}{% raw %}&lt;&amp;",
    "two\nlines\tand\0null",
    "gnp.\u202eexe\u200f\u2066",
    "no utf-8: \udcff",
    "javascript:window.hacked=1",
    "\u05e9\u05dc\u05d5\u05dd 12 \u0645\u0631\u062d\u0628\u0627",
]


class Brightness(OutlierMixin, BaseEstimator):
    """Scores and maps by the distance to the mean brightness of the training images."""

    def __init__(self, *, contamination=0.1, unused=None):
        self.contamination = contamination
        self.unused = unused

    def fit(self, X, y=None):
        means = self._means(X)
        self.mean_ = means.mean()
        self.offset_ = float(np.quantile(-np.abs(means - self.mean_), self.contamination))
        self.mapped_ = []
        return self

    @staticmethod
    def _means(X):
        source = open_images(X)
        return np.array([source[i].mean() for i in range(len(source))])

    def score_samples(self, X):
        return -np.abs(self._means(X) - self.mean_)

    def decision_function(self, X):
        return self.score_samples(X) - self.offset_

    def anomaly_map(self, X):
        source = open_images(X)
        self.mapped_.append(len(source))
        return [np.abs(source[i].mean(-1) - self.mean_) / 10 for i in range(len(source))]


class Page(HTMLParser):
    """Content of a report: tags, texts, and the cells of its tables."""

    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.texts, self.tables = html, [], [], []
        self._open = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("tbody", "tr", "td", "th"):
            self._open.append(tag)
        if tag == "tbody":
            self.tables.append([])
        elif tag == "tr" and "tbody" in self._open:
            self.tables[-1].append([])
        elif tag in ("td", "th") and "tbody" in self._open:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if tag in self._open:
            self._open.remove(tag)

    def handle_data(self, data):
        self.texts.append(data)
        if "tbody" in self._open and ("td" in self._open or "th" in self._open):
            self.tables[-1][-1][-1] += data.strip("\n")

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attrs for each, attrs in self.tags if each == tag]

    @property
    def rows(self):
        """Attributes of the rows of the table of images."""
        return [attrs for attrs in self.all("tr") if "data-score" in attrs]

    @property
    def statistics(self):
        """Name -> value of the summary."""
        found = re.findall(r"<dt>([^<]*)</dt>\s*<dd><strong>([^<]*)</strong>", self.html)
        return dict(found)


@pytest.fixture
def detector(images):
    return Brightness().fit(images)


@pytest.fixture
def mixed(images, odd_images):
    return [*images, *odd_images]


@pytest.fixture
def y(images, odd_images):
    return np.repeat([1, -1], [len(images), len(odd_images)])


@pytest.fixture
def target(tmp_path):
    return tmp_path / "report.html"


def write(*args, path, **options):
    assert write_report(*args, path=path, **options) == path
    return Page(path.read_text(encoding="utf-8"))


def test_says_the_scores_and_flags_of_a_real_detector(fitted, mixed, y, target):
    page = write(fitted, mixed, y, path=target, n_maps=3)
    scores, flags = fitted.score_samples(mixed), fitted.predict(mixed) == -1
    order = np.argsort(scores)
    np.testing.assert_allclose([float(row["data-score"]) for row in page.rows], scores[order])
    decision = [float(row["data-decision"]) for row in page.rows]
    np.testing.assert_allclose(decision, fitted.decision_function(mixed)[order], atol=1e-9)
    assert [row["data-flag"] == "1" for row in page.rows] == flags[order].tolist()
    assert [row["data-name"] for row in page.rows] == [f"image {i}" for i in order]
    labels = np.where(y == 1, "normal", "anomaly")[order]
    assert [row["data-label"] for row in page.rows] == labels.tolist()
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
    assert {row["data-label"] for row in page.rows} == {"good", "<crack>"}
    values = [attrs["value"] for attrs in page.all("option")]
    assert values == ["", "1", "0", "", "=<crack>", "=good"]
    assert "Anomalies are those labelled <crack> ." in page.text
    assert page.statistics["Anomalies flagged"] == "6"


def test_needs_nothing_but_itself(detector, mixed, y, target):
    page = write(detector, mixed, y, path=target)
    assert not page.all("link")
    assert not page.all("iframe")
    for tag, attrs in page.tags:
        assert "style" not in attrs
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "srcset"):
            assert attrs.get(name, "data:image/").startswith("data:image/")
        assert attrs.get("href", "#").startswith("#")
        if tag == "img":
            assert attrs["alt"]
    anchors = {attrs["href"][1:] for attrs in page.all("a")}
    assert anchors <= {attrs.get("id") for _, attrs in page.tags}


def test_runs_only_the_script_and_the_style_that_it_was_written_with(detector, mixed, target):
    page = write(detector, mixed, path=target)
    (policy,) = [a["content"] for a in page.all("meta") if "Content-Security" in str(a)]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
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
    pictures = [attrs for attrs in page.all("img") if "jpeg" in attrs["src"] and attrs["alt"]]
    assert len(pictures) == 4 + 2 * (4 * 2 + 1)
    sizes = set()
    for attrs in pictures:
        size = int(attrs["width"]), int(attrs["height"])
        assert decode(attrs["src"]).size == size
        assert attrs["loading"] == "lazy"
        sizes.add(size)
    assert {(96, 53), (30, 40), (96, 96), (96, 1), (360, 200), (360, 360), (300, 1)} <= sizes


def test_the_same_picture_of_any_type_gives_the_same_thumbnail(detector, images, target):
    kinds = [images[:1], images[:1].astype(np.uint16) * 257, images[:1] / 255.0]
    pages = [write(detector, [*kind], path=target, n_maps=0) for kind in kinds]
    sources = {page.all("img")[-1]["src"] for page in pages}
    assert len(sources) == 1


def test_a_map_is_bright_where_an_image_is_abnormal(detector, target):
    image = np.full((64, 64, 3), int(detector.mean_), np.uint8)
    image[:32, :32] = 255
    page = write(detector, [image, image], path=target, n_maps=1)
    (overlay, *_) = [a for a in page.all("img") if a["alt"].startswith("Anomaly map of image 0")]
    gray = np.asarray(decode(overlay["src"]).convert("L"), dtype=float)
    assert gray[4:28, 4:28].mean() > 2 * gray[36:60, 36:60].mean()
    assert f"highest value {(255 - detector.mean_) / 10:.1f}" in overlay["alt"]


def test_the_histogram_is_a_score_display_in_two_widths_and_themes(detector, mixed, y, target):
    page = write(detector, mixed, y, path=target, n_maps=0)
    sources = [*(a["srcset"] for a in page.all("source")), page.all("img")[0]["src"]]
    drawings = [base64.b64decode(uri.partition(",")[2]).decode() for uri in sources]
    flagged = f"{np.mean(detector.decision_function(mixed[:20]) < 0):.1%} flagged"
    assert all(f"new, normal: 20, {flagged}" in drawing for drawing in drawings)
    assert ["#14181d" in drawing for drawing in drawings] == [True, False, True, False]
    again = write(detector, mixed, y, path=target, n_maps=0)
    assert again.all("img")[0]["src"] == sources[-1]


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
    changed, everything = page.tables[1:]
    assert ["isolationforest__random_state", "0", "None"] in changed
    assert ["isolationforest__n_estimators", "100"] in everything


def test_says_which_parameters_differ_from_the_defaults(images, target):
    model = Brightness(contamination=0.2, unused=KNNDensity(n_neighbors=7)).fit(images)
    page = write(model, images, path=target)
    changed, everything = page.tables[1:]
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
    np.testing.assert_allclose([float(row["data-score"]) for row in page.rows], scores)


# Names


def test_names_are_paths_below_the_folder_of_all(detector, images, tmp_path, target):
    paths = [tmp_path / "in" / name for name in ("a/1.png", "a/2.png", "b/c/1.png")]
    for path, image in zip(paths, images[:3], strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    page = write(detector, paths, path=target)
    names = {row["data-name"] for row in page.rows}
    assert names == {os.path.join("a", "1.png"), os.path.join("a", "2.png"), "b/c/1.png"}
    assert str(tmp_path / "in") in page.text


def harmless(page):
    """The page without its names: tags and the names of their attributes."""
    return [(tag, tuple(attrs)) for tag, attrs in page.tags]


def test_hostile_names_and_titles_are_text(detector, images, target):
    X, n = images[: len(HOSTILE)], len(HOSTILE)
    plain = write(detector, X, path=target, title="a", names=["a"] * n)
    page = write(detector, X, path=target, title="".join(HOSTILE), names=HOSTILE)
    assert harmless(page) == harmless(plain)
    assert {row["data-name"] for row in page.rows} == {
        *HOSTILE[:5],
        "two\\nlines\\tand\\x00null",
        "gnp.\\u202eexe\\u200f\\u2066",
        "no utf-8: \\udcff",
        *HOSTILE[8:],
    }
    assert {row[2] for row in page.tables[0]} == {row["data-name"] for row in page.rows}


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
    assert [row["data-name"] for row in page.rows] == [escaped[i] for i in order]
    assert [row[2] for row in page.tables[0]] == [escaped[i] for i in order]


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
    shown = {row["data-name"] for row in page.rows}
    assert shown == {os.fsdecode(n) for n in names[:2]} | {"\\udcff\\udcfe.png", "a\\nb.png"}
    assert len(page.all("script")) == 1


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
    assert write_report(detector, images, path=link) == real.resolve()
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


# In a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SWITCHES = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, detector, mixed, y, target):
    """Open a report; complaints of the browser and its requests fail the test."""
    contexts, complaints, requests = [], [], []

    def visit(*, names=None, title=None, **options):
        write_report(detector, mixed, y, target, names=names, title=title, n_maps=4)
        contexts.append(browser.new_context(**options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append(dialog.message))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(target.as_uri())
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def column(tab, name):
    """Values of one column in the visible rows."""
    script = f"rows => rows.filter(r => !r.hidden).map(r => r.dataset.{name})"
    return tab.eval_on_selector_all("#images tbody tr", script)


def test_sorts_by_any_column(visit, detector, mixed):
    tab = visit(names=[f"cell {i}" for i in range(26)])
    scores = [*map(float, column(tab, "score"))]
    assert scores == sorted(scores)
    tab.click("button[data-key=score]")
    assert [*map(float, column(tab, "score"))] == scores
    tab.click("button[data-key=score]")
    assert [*map(float, column(tab, "score"))] == scores[::-1]
    sorts = "cells => cells.map(c => [c.textContent, c.getAttribute('aria-sort')])"
    state = dict(tab.eval_on_selector_all("#images thead th", sorts))
    assert [text for text, value in state.items() if value] == ["Score"]
    assert state["Score"] == "descending"
    tab.focus("button[data-key=name]")
    tab.keyboard.press("Enter")
    assert column(tab, "name") == [f"cell {i}" for i in range(26)]  # 2 before 10
    tab.click("button[data-key=label]")
    labels = column(tab, "label")
    assert labels == sorted(labels)
    tab.click("button[data-key=flag]")
    assert column(tab, "flag") == sorted(column(tab, "flag"))


def test_filters_by_name_score_flag_and_label(visit):
    tab = visit(names=[f"Cell {i}" for i in range(26)])
    tab.fill("#filter-name", "cELL 1")
    assert set(column(tab, "name")) == {f"Cell {i}" for i in [1, *range(10, 20)]}
    assert tab.text_content("#count") == "11 of 26 images"
    tab.click("#reset")
    scores = sorted(map(float, column(tab, "score")))
    tab.fill("#filter-low", str(scores[3]))
    tab.fill("#filter-high", str(scores[8]))
    assert [*map(float, column(tab, "score"))] == scores[3:9]
    tab.click("#reset")
    tab.select_option("#filter-flag", "1")
    assert set(column(tab, "flag")) == {"1"}
    tab.select_option("#filter-label", "=normal")
    assert set(zip(column(tab, "flag"), column(tab, "label"), strict=True)) == {("1", "normal")}
    tab.fill("#filter-name", "nothing is called so")
    assert column(tab, "name") == []
    assert tab.is_visible("#none")
    tab.keyboard.press("Enter")  # there is no form to send
    tab.click("#reset")
    assert len(column(tab, "name")) == 26
    assert not tab.is_visible("#none")


def test_hostile_names_stay_text_in_a_browser(visit):
    names = (HOSTILE * 3)[:26]
    tab = visit(names=names, title=HOSTILE[0])
    assert tab.title() == HOSTILE[0]
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("h1").all_text_contents() == [HOSTILE[0]]
    assert tab.locator("script").count() == 1
    cells = tab.locator("#images tbody th").all_text_contents()
    assert set(HOSTILE[:5]) <= set(cells)
    assert len(cells) == 26
    tab.fill("#filter-name", "<script>")
    assert set(column(tab, "name")) == {HOSTILE[0]}


def test_all_pictures_can_be_seen(visit):
    tab = visit()
    broken = """async images => {
        for (const image of images) {
            image.loading = "eager";
            await image.decode();
        }
        return images.filter(image => !image.naturalWidth).length;
    }"""
    assert tab.eval_on_selector_all("img", broken) == 0
    assert tab.locator("img").count() > 26


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_narrow_screen(visit, scheme):
    tab = visit(
        names=["x" * 300] * 26,
        title="y" * 300,
        viewport={"width": 400, "height": 800},
        color_scheme=scheme,
    )
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400


def test_can_be_read_without_scripts(visit):
    tab = visit(java_script_enabled=False)
    assert tab.locator("#images tbody tr").count() == 26
    assert tab.is_visible("noscript p")
    assert not tab.is_visible("#filters")
