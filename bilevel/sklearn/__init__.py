"""Estimators for scikit-learn: linear models with many penalties, and a cleaner of labels.

    from bilevel.sklearn import BilevelRidge

    make_pipeline(StandardScaler(), BilevelRidge()).fit(X, y)

`BilevelRidge`, `BilevelElasticNet` and `BilevelLogisticRegression` choose one penalty for each
feature or group of features by cross-validation, as `bilevel.apps.tuning` does. `LabelCleaner`
learns a weight for each training row, as `bilevel.apps.cleaning` does, and fits any classifier
that takes `sample_weight` with them.

scikit-learn is not installed with bilevel: `pip install 'bilevel[sklearn]'`.
"""

from bilevel.files import needs

needs("sklearn", extra="sklearn", what="the estimators of bilevel.sklearn")

from bilevel.sklearn.cleaner import LabelCleaner  # noqa: E402
from bilevel.sklearn.linear import (  # noqa: E402
    BilevelElasticNet,
    BilevelLogisticRegression,
    BilevelRidge,
)

__all__ = ["BilevelElasticNet", "BilevelLogisticRegression", "BilevelRidge", "LabelCleaner"]
