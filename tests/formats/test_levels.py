"""What a user excludes: levels, and names of their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vmdump.errors import RequestError
from vmdump.formats.levels import parse_level


@pytest.mark.parametrize(
    ("exclude", "level"),
    [
        (0, 0),
        (31, 31),
        ("zero", 1),
        ("cache,cache-private, user", 14),
        (["free", "zero"], 17),
        ("free,free", 16),
        ([], 0),
        (np.int64(31), 31),
    ],
)
def test_levels(exclude: Any, level: int) -> None:
    assert parse_level(exclude) == level


@pytest.mark.parametrize("exclude", [-1, 32, "", "31", "caches", "free,", ["user,free"], [1, 2], b"free"])
def test_no_levels(exclude: Any) -> None:
    with pytest.raises(
        RequestError, match=r"^exclude: .*(from 0 to 31|zero, cache, cache-private, user, free)$"
    ):
        parse_level(exclude)


@pytest.mark.parametrize(("given", "name"), [("CACHE", "cache"), ("cache_private", "cache-private")])
def test_the_nearest_name_is_named(given: str, name: str) -> None:
    with pytest.raises(
        RequestError, match=rf"^exclude: '{given}' is not known \(is it {name}\?\); there are zero"
    ):
        parse_level(given)
