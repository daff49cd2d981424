"""Excluded pages, seen in pages of other sizes than the guest's."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.excluding import ExcludingSource

from vmdump.guest.excluded import partly_excluded

PAGE = 4096


@pytest.mark.parametrize("theirs", [PAGE, 4 * PAGE])
@pytest.mark.parametrize("mine", [PAGE, 2 * PAGE, 8 * PAGE])
def test_pages_of_other_sizes(theirs: int, mine: int) -> None:
    pfns = {1, 6, 7}
    source = ExcludingSource([(0, np.zeros(64 * PAGE, np.uint8))], theirs, pfns)
    addresses = {pfn * theirs + at for pfn in pfns for at in range(0, theirs, PAGE)}
    for first in range(4):
        expected = [
            any((first + page) * mine <= address < (first + page + 1) * mine for address in addresses)
            for page in range(3)
        ]
        assert partly_excluded(source, first, 3, mine).tolist() == expected
