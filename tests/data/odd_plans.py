"""Plans of rows of odd lengths, from sources of very different sizes and ratios."""

from typing import Any

import numpy as np

from janus_hf.data.planning.plan import PackPlan, make_plan


def odd_lengths() -> dict[str, np.ndarray]:
    """Source name -> lengths of its rows: 997 rows of up to 199 ids, 313 of up to 499 and one of 500."""
    return {
        "a": np.random.default_rng(1).integers(1, 200, 997),
        "b": np.random.default_rng(2).integers(1, 500, 313),
        "c": np.array([500]),
    }


def odd_plan(**options: Any) -> PackPlan:
    """Return a plan of `odd_lengths`; `options` are further arguments of `make_plan`."""
    return make_plan(odd_lengths(), max_length=512, ratios={"b": 0.3, "a": 1.7, "c": 0.01}, pool_size=33, **options)
