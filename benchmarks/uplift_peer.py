"""Fit one learner of EconML or causalml and score new users; run by a Python that has the library.

    python benchmarks/uplift_peer.py TRAIN.parquet TEST.parquet "econml forest" OUT.npz

TRAIN has feature columns, `arm` (0 or 1) and `value`; OUT gets `score` (n,) and `cpu`, seconds of the fit.
"""

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from lightgbm import LGBMRegressor
from sklearn.dummy import DummyClassifier

LEAF = {"econml forest": 200, "causalml forest": 50}  # of 20, 50, 200 (seed 0, smooth, 20,000 users)
TREES = 200


def trees() -> LGBMRegressor:
    """The outcome model of every learner that needs one.

    150 trees of 4 leaves rather than of 7, or 400 of 4: chosen on seed 0, 40,000 users. The X- and R-learner gain 2-3
    points by it, the DR-learner loses .2.
    """
    return LGBMRegressor(
        n_estimators=150, num_leaves=4, learning_rate=0.05, min_child_samples=100, n_jobs=1, verbose=-1
    )


def econml_x(x: np.ndarray, arm: np.ndarray, y: np.ndarray) -> Callable:
    """X-learner of boosted trees."""
    from econml.metalearners import XLearner

    return XLearner(models=trees(), cate_models=trees(), propensity_model=DummyClassifier()).fit(y, arm, X=x).effect


def econml_linear_dr(x: np.ndarray, arm: np.ndarray, y: np.ndarray) -> Callable:
    """Doubly robust learner with a linear last stage."""
    from econml.dr import LinearDRLearner

    return LinearDRLearner(model_propensity=DummyClassifier(), model_regression=trees(), cv=3).fit(y, arm, X=x).effect


def econml_forest(x: np.ndarray, arm: np.ndarray, y: np.ndarray) -> Callable:
    """Causal forest on residuals."""
    from econml.dml import CausalForestDML

    forest = CausalForestDML(
        model_y=trees(),
        model_t=DummyClassifier(),
        discrete_treatment=True,
        n_estimators=TREES,
        min_samples_leaf=LEAF["econml forest"],
        cv=3,
        n_jobs=1,
        random_state=0,
    )
    return forest.fit(y, arm, X=x).effect


def causalml_r(x: np.ndarray, arm: np.ndarray, y: np.ndarray) -> Callable:
    """R-learner of boosted trees."""
    from causalml.inference.meta import BaseRRegressor

    model = BaseRRegressor(learner=trees(), random_state=0)
    model.fit(x, arm, y, p=np.full(len(y), (arm == 1).mean()))
    return model.predict


def causalml_forest(x: np.ndarray, arm: np.ndarray, y: np.ndarray) -> Callable:
    """Causal forest."""
    from causalml.inference.tree import CausalRandomForestRegressor

    forest = CausalRandomForestRegressor(
        n_estimators=TREES, min_samples_leaf=LEAF["causalml forest"], control_name=0, n_jobs=1, random_state=0
    )
    forest.fit(X=x, treatment=arm, y=y)
    return forest.predict


LEARNERS = {
    "econml x": econml_x,
    "econml dr": econml_linear_dr,
    "econml forest": econml_forest,
    "causalml r": causalml_r,
    "causalml forest": causalml_forest,
}


def main() -> None:
    """Read, fit, score, write."""
    warnings.filterwarnings("ignore")
    train, test, learner, out = sys.argv[1:]
    old, new = pd.read_parquet(train), pd.read_parquet(test)
    names = [c for c in old.columns if c not in ("arm", "value")]
    start = time.process_time()
    effect = LEARNERS[learner](old[names].to_numpy(), old["arm"].to_numpy(), old["value"].to_numpy())
    score = np.ravel(effect(new[names].to_numpy()))
    np.savez(Path(out), score=score, cpu=time.process_time() - start)


if __name__ == "__main__":
    main()
