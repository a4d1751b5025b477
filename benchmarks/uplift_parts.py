"""What each part of the default network is worth: the same network with one part taken out, as benchmark methods.

A part is taken out where it is made (the function or constant below is replaced while one network is fitted), so that
everything else is what ships.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.uplift_methods import Method, spec_of, uplift_score
from benchmarks.worlds import World
from models import losses, network, optimise, train

Change = tuple[Any, str, Any]  # module, name, what stands there instead


def _every_row_alike(rows: optimise.TrainingRows, *rest: Any) -> Iterator[Any]:
    """Batches whose rows weigh the same in every arm."""
    n_arms = rest[1]
    return _shuffled(rows._replace(propensity=np.full(len(rows.arm), 1 / n_arms)), *rest)


_shuffled = optimise.shuffled


@contextmanager
def _replaced(changes: tuple[Change, ...]) -> Iterator[None]:
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    for change in changes:
        setattr(*change)
    try:
        yield
    finally:
        for change in before:
            setattr(*change)


def without(*changes: Change, **settings: int) -> Method:
    """The default network with these replaced, and these settings of `FitSpec`."""

    def method(training: World, test: World) -> np.ndarray:
        with _replaced(changes):
            return uplift_score(train.fit(training.frame, spec_of(training, **settings)).predict(test.frame))

    return method


def _share(value: float) -> Callable[..., float]:
    return lambda *_: value


REDUCED: dict[str, Method] = {
    "rules of boosted trees": without(rules=0),
    "linear part": without((train, "linear_share", _share(0.0))),
    "network (linear part alone)": without((train, "linear_share", _share(1.0)), rules=0, epochs=1),
    "trunk (one unit a layer)": without((network, "TRUNK", (1, 1))),
    "weights of rows by arm": without((optimise, "shuffled", _every_row_alike)),
    "L1 on differences of arms": without(*((losses, name, 0.0) for name in ("L1_SKIP", "L1_RULES", "L1_HEAD"))),
    "penalty on their spread": without((losses, "SPREAD", 0.0)),
    "three of five members": without(members=2),
}
