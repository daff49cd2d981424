"""Pieces of memory that keep their places in a file when others come to be beside them, or go."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vmdump.writers.places import Pieces, PlacedLane

MASKS = st.lists(st.booleans(), min_size=40, max_size=40).map(np.array)
UNIT = 4096
ROOM = 8


def ranges(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).astype(np.uint64).reshape(-1, 2)
    return edges[:, 0] * np.uint64(UNIT), (edges[:, 1] - edges[:, 0]) * np.uint64(UNIT)


def written(mask: np.ndarray) -> Pieces:
    starts, sizes = ranges(mask)
    return Pieces(starts, sizes, np.cumsum(sizes, dtype=np.uint64) - sizes + np.uint64(ROOM * UNIT))


def by_unit(pieces: Pieces) -> dict[int, int]:
    """Where each unit is."""
    return {
        (start + at) // UNIT: (offset + at) // UNIT
        for start, size, offset in zip(
            pieces.starts.tolist(), pieces.sizes.tolist(), pieces.offsets.tolist(), strict=True
        )
        for at in range(0, size, UNIT)
    }


class File:
    """A file of one byte for each unit, and its lanes, which only go forward."""

    def __init__(self, size: int) -> None:
        self.units = np.zeros(size, np.uint8)

    def lane(self, offset: int) -> Lane:
        return Lane(self, offset)


class Lane:
    def __init__(self, file: File, offset: int) -> None:
        self._file, self._at = file, offset

    def write(self, data: memoryview) -> None:
        units = np.frombuffer(data, np.uint8)[::UNIT]
        self._file.units[self._at // UNIT :][: units.size] = units
        self._at += len(data)

    def skip(self, size: int) -> None:
        assert size >= 0
        self._at += size

    def clear(self, size: int) -> None:
        self.write(memoryview(bytes(size)))

    def finish(self) -> None:
        pass


@given(before=MASKS, after=MASKS)
def test_what_has_a_place_keeps_it(before: np.ndarray, after: np.ndarray) -> None:
    old = written(before)
    new = old.placing(*ranges(after))
    places, places_before = by_unit(new), by_unit(old)
    assert sorted(places) == np.flatnonzero(after).tolist()
    assert len(set(places.values())) == len(places)
    both = places.keys() & places_before.keys()
    assert all(places[unit] == places_before[unit] for unit in both)
    end = (old.end or 0) // UNIT
    assert all(places[unit] >= end for unit in places.keys() - both)
    assert (np.diff(new.starts.astype(np.int64)) > 0).all()
    gone = {offset // UNIT + at for offset, size in old.without(new) for at in range(size // UNIT)}
    assert gone == {place for unit, place in places_before.items() if unit not in both}


@given(before=MASKS, after=MASKS, acts=st.lists(st.sampled_from(["write", "skip", "clear"]), min_size=40))
def test_a_lane_puts_each_byte_into_its_place(before: np.ndarray, after: np.ndarray, acts: list[str]) -> None:
    old = written(before)
    new = old.placing(*ranges(after))
    file = File(200)
    file.units[:] = 255
    lane = PlacedLane(file.lane, new, old.end)  # type: ignore[arg-type]
    wanted = file.units.copy()
    places = by_unit(new)
    for unit, act in zip(np.flatnonzero(after).tolist(), acts, strict=False):
        if act == "write":
            lane.write(bytes([unit]) * UNIT)
            wanted[places[unit]] = unit
        else:
            getattr(lane, act)(UNIT)
            wanted[places[unit]] = 0 if act == "clear" else 255
    lane.finish()
    assert np.array_equal(file.units, wanted)
