"""Model selection: folds and scorers for detectors that learn from normal samples only.

scikit-learn's own tools hold two traps for outlier detectors. The first: a detector gives normal
samples high scores, so with ``y = 1`` for anomalies ``scoring="roc_auc"`` gives 1 - AUROC,
silently. The detector seems to miss ten samples far off all others:

>>> import numpy as np
>>> from sklearn.covariance import EllipticEnvelope
>>> from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
>>> X = np.random.RandomState(0).normal(size=(50, 2))
>>> X[40:] += 9
>>> y = np.repeat([0, 1], [40, 10])
>>> envelope = EllipticEnvelope(random_state=0)
>>> cross_val_score(envelope, X, y, cv=StratifiedKFold(2), scoring="roc_auc")
array([0., 0.])

The second: a detector is no classifier, so an integer ``cv`` cuts `y` into runs. If `y` is
sorted, folds train on anomalies (the first count) or have none to test (the second count), and the
AUROC is NaN:

>>> [(int(y[train].sum()), int(y[test].sum())) for train, test in KFold(5).split(X)]
[(10, 0), (10, 0), (10, 0), (10, 0), (0, 10)]

`NormalOnlyKFold` and `anomaly_scorer` do neither:

>>> from skanomaly_vit.model_selection import NormalOnlyKFold, anomaly_scorer
>>> folds = NormalOnlyKFold(2, anomaly_label=1, random_state=0)
>>> cross_val_score(envelope, X, y, cv=folds, scoring=anomaly_scorer(anomaly_label=1))
array([1., 1.])

A third: in the end a search fits on all samples, including the anomalies. Pass ``refit=False``,
and fit ``best_params_`` on the normal samples. Without any labelled anomaly,
`pseudo_anomaly_scorer` makes some.
"""

from skanomaly_vit.model_selection._scorers import anomaly_scorer, pseudo_anomaly_scorer
from skanomaly_vit.model_selection._split import NormalOnlyKFold

__all__ = ["NormalOnlyKFold", "anomaly_scorer", "pseudo_anomaly_scorer"]
