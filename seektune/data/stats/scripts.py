"""Letters of texts by script (Latin, Han, ...), as Unicode assigns them."""

from collections import Counter

import numpy as np
from fontTools.unicodedata import Scripts

SHARED = ("Zyyy", "Zinh", "Zzzz")
"""Codes of what no single script owns: digits, punctuation, marks, unassigned."""
_STARTS = np.array(Scripts.RANGES)


def count_scripts(text: str) -> Counter[str]:
    """Number of characters of each script in a text; digits, punctuation and spaces are not counted."""
    points = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)
    ranges = np.bincount(np.searchsorted(_STARTS, points, side="right") - 1, minlength=len(_STARTS))
    counts: Counter[str] = Counter()
    for place in np.flatnonzero(ranges).tolist():
        code = Scripts.VALUES[place]
        if code not in SHARED:
            counts[Scripts.NAMES[code].replace("_", " ")] += int(ranges[place])
    return counts
