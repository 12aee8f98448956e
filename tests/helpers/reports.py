"""Reports: detectors that are quick, names that attack, and a parser of pages."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin

from skanomaly_vit._images.opening import open_images

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


class Calibrated(Brightness):
    """The same, with scores of held-out images."""

    calibration_units_ = None

    def calibrate(self, scores, groups=None):
        self.calibration_scores_ = np.asarray(scores, dtype=float)
        self.calibration_units_ = groups
        return self


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
    def data(self):
        """What the script of the page reads."""
        (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', self.html)
        return json.loads(text)

    @property
    def images(self):
        return self.data["images"]

    @property
    def names(self):
        """Shown names, the most abnormal first."""
        return [image.get("name", image["path"]) for image in self.images]

    @property
    def rows(self):
        """Cells of the table for browsers without scripts."""
        ranks = [str(rank) for rank in range(1, 1 + len(self.images))]
        (rows,) = [table for table in self.tables if [row[0] for row in table] == ranks]
        return rows

    @property
    def statistics(self):
        """Name -> value of the summary."""
        found = re.findall(r"<dt>([^<]*)</dt>\s*<dd><strong>([^<]*)</strong>", self.html)
        return dict(found)
