"""Parameters of one name: one text in all public estimators, but for those that differ in fact."""

from __future__ import annotations

import inspect
from collections import defaultdict
from importlib import import_module

import pytest
from numpydoc.docscrape import ClassDoc
from sklearn.base import BaseEstimator
from test_docstrings import public_modules

TUNED = ("CompactFeatures", "MeanShiftedFeatures")

#: Parameter -> estimators whose text differs from that of the others, and from each other's.
OTHERS = {
    "backbone": {"TransformalyDetector"},  # names the paper's
    "batch_size": {"MeanShiftedFeatures", "ViTFeatures"},  # pairs of views; no training
    "learning_rate": {"BlockStudent", *TUNED},  # of other optimizers
    "max_epochs": {"BlockStudent"},  # exact, where tuning may end before
    "memory": {"ViTFeatures", *TUNED},  # keeps other things
    "max_samples": {"WhitenedKNNDensity"},  # whitens by all
    "n_jobs": {"KNNDensity", "WhitenedKNNDensity"},  # of a search, not of reading
    "n_neighbors": {"KNNDensity", "NeighborDistance", "WhitenedKNNDensity"},  # a rank, and a number
    "n_blocks": {"TransformalyDetector"},  # has "auto"
    "patience": {"BlockStudent"},  # of each student
    "random_state": {  # draws other things
        "BlockDistillation", "GaussianMixtureDensity", "KNNDensity", "TransformalyDetector",
        "ViTFeatures", *TUNED,
    },
    "pooling": {"TransformalyDetector"},  # has "auto"
    "regularization": {  # of a matrix, of variances
        "GaussianDensity", "GaussianMixtureDensity", "WhitenedKNNDensity",
    },
    "shrinkage": {"WhitenedKNNDensity"},  # refers to the other
    "store_backbone": set(TUNED),  # beside what was tuned
    "student": {"TransformalyDetector"},  # has "auto"
    "subsampling": {"WhitenedKNNDensity"},  # by distances in the whitened space
    "validation_fraction": {"BlockDistillation", "TransformalyDetector", *TUNED},  # other uses
    "views": {"TransformalyDetector"},  # has "auto", and a density for each
}  # fmt: skip


def texts() -> dict[str, dict[str, str]]:
    """Parameter -> estimator -> type and text, without the default."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for module in map(import_module, public_modules()):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) and issubclass(thing, BaseEstimator):
                for parameter in ClassDoc(thing)["Parameters"]:
                    kind = parameter.type.partition(", default=")[0]
                    found[parameter.name][name] = " ".join([kind, *parameter.desc])
    return found


TEXTS = texts()


@pytest.mark.parametrize("name", [name for name, of in TEXTS.items() if len(of) > 1])
def test_parameters_of_one_name_have_one_text(name):
    others = OTHERS.get(name, set())
    assert len({text for owner, text in TEXTS[name].items() if owner not in others}) <= 1


@pytest.mark.parametrize("name", OTHERS)
def test_those_that_differ_do(name):
    """So that the list above does not outlive its reasons."""
    plain = {text for owner, text in TEXTS[name].items() if owner not in OTHERS[name]}
    assert OTHERS[name] <= set(TEXTS[name])
    assert all(TEXTS[name][owner] not in plain for owner in OTHERS[name])
    assert len({*TEXTS[name].values()}) > 1
