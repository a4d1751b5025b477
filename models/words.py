"""Numbers as people read them."""

from __future__ import annotations

import numpy as np


def number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """So many significant digits, whole from 1,000 on, and never an exponent.

    >>> [number(x) for x in (123456.7, 999.7, 0.12345, 0.0000123)], number(2.0, signed=True)
    (['123,457', '1,000', '0.123', '0.0000123'], '+2')
    """
    rounded = float(f"{value:.{digits}g}") + 0.0  # -0.0 is 0
    if abs(rounded) >= 1000:
        return f"{value:{'+' if signed else ''},.0f}"
    return np.format_float_positional(rounded, trim="-", sign=signed)
