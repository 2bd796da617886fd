"""The stories that a copy may still join: hundreds of thousands are open at a time, and many items come at once.

Of an open story only its id, key, times and signature are held, in columns. An index finds those that share a band
with an item: sorted arrays of a band's hash and a row, a small one for what came last and ever larger ones before it
(a log-structured merge tree, O'Neil et al. 1996), so that a thousand items are looked up in a few array operations.
Items that could be copies of nothing, most of them, begin their stories all at once; only the others are looked at
one by one, because whether the second copy finds a story hangs on what became of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor.records import Contribution
from monitor.stories import BANDS, ROWS, SIGNATURE_BYTES, VALUES, similarity, story_id

__all__ = ["Joined", "OpenRows", "OpenStories"]

MINUTE_MS: Final = 60_000
ID_BYTES: Final = 16
BAND_BYTES: Final = 2 * ROWS
# An index is merged with the one before it unless that is so many times as large.
GROWTH: Final = 4
# Columns grow by this share: what is kept free must not outweigh what is held.
SPARE: Final = 1 / 8
# Pairs of an item and a story that are compared at once: a bound on memory where very many share a band.
COMPARED: Final = 1 << 18

_LOW: Final = np.uint64((1 << 32) - 1)
_HIGH: Final = ~_LOW
_HALF: Final = np.uint64(32)
# Odd numbers without a pattern (of the golden ratio, and of splitmix64), one for each band.
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = np.uint64(0xBF58476D1CE4E5B9)
_SALTS: Final = np.arange(1, BANDS + 1, dtype=np.uint64) * np.uint64(0x94D049BB133111EB)

_Ints = NDArray[np.int64]
_Words = NDArray[np.uint64]


class OpenRows(msgspec.Struct, frozen=True, array_like=True):
    """Open stories packed for the store: of each its key, id (`ID_BYTES` bytes), first and last event time (epoch ms,
    eight bytes, little end first) and signature."""

    keys: list[str]
    ids: bytes
    first_at: bytes
    last_at: bytes
    signatures: bytes

    @property
    def newest(self) -> int:
        """The latest event time among them, epoch ms; 0 of none."""
        return int(np.frombuffer(self.last_at, "<i8").max(initial=0))


class Joined(NamedTuple):
    """For each item the id of its story and whether it begins it; and what is now open that was not, or not yet so
    long."""

    ids: list[str]
    begins: list[bool]
    opened: OpenRows


class _Batch(NamedTuple):
    """Items with signatures, what is computed of all of them at once, and which are the same: of each (n) the key's
    number, the values (`VALUES`) and the hashes of its bands (`BANDS`), and the place of the first item with the same
    key and values."""

    items: Sequence[Contribution]
    minutes: Sequence[int]
    numbers: NDArray[np.uint32]
    values: NDArray[np.uint16]
    hashes: _Words
    same_as: _Ints


class _Story(msgspec.Struct, gc=False):
    """A story that items may join: `place` is that of the item that begins it, `row` that of one begun before; -1."""

    id: str
    first_at: int
    last_at: int
    place: int
    row: int


def _hashes(values: NDArray[np.uint16], numbers: NDArray[np.uint32]) -> _Words:
    """For each row's bands a hash of key, band and its place in the signature, (n, `BANDS`)."""
    parts = values.reshape(-1, BANDS, ROWS).astype(np.uint64)
    words: _Words = parts[..., 0] | parts[..., 1] << np.uint64(16) | parts[..., 2] << _HALF
    words ^= _SALTS
    words ^= (numbers.astype(np.uint64) * _GOLDEN)[:, None]
    words ^= words >> np.uint64(30)
    words *= _MIX
    words ^= words >> np.uint64(29)
    words *= _GOLDEN
    return words


def _entries(hashes: _Words, rows: _Ints) -> _Words:
    """Entries of the index, sorted: the higher half of a hash, and a row."""
    entries: _Words = (hashes & _HIGH | rows.astype(np.uint64)[:, None]).ravel()
    entries.sort()
    return entries


def _same_as(values: NDArray[np.uint16], numbers: NDArray[np.uint32], hashes: _Words) -> _Ints:
    """The place of the first row with the same values and number, (n)."""
    places = np.arange(len(values))
    sums = hashes.sum(axis=1)
    if len(set(sums.tolist())) == len(sums):
        return places
    _, first, of = np.unique(sums, return_index=True, return_inverse=True)
    same_as = first[of]
    really = (numbers == numbers[same_as]) & (values == values[same_as]).all(axis=1)
    return np.where(really, same_as, places)


def _shared(entries: _Words) -> dict[int, list[int]]:
    """For each row that shares a hash with another the numbers of the hashes that it shares."""
    hashes = entries >> _HALF
    as_before = hashes[1:] == hashes[:-1]
    if not as_before.any():
        return {}
    grouped = np.concatenate((as_before, [False]))
    grouped[1:] |= as_before
    numbers = np.cumsum(np.concatenate(([True], ~as_before)))
    found: dict[int, list[int]] = {}
    for row, number in zip((entries[grouped] & _LOW).tolist(), numbers[grouped].tolist(), strict=True):
        found.setdefault(row, []).append(number)
    return found


def _similar(story: Contribution, item: Contribution) -> float:
    """How similar two items are if they share key and band, else less than any two."""
    one, other = story.signature, item.signature
    if story.key != item.key:
        return -1.0
    bands = range(0, SIGNATURE_BYTES, BAND_BYTES)
    if not any(one[band : band + BAND_BYTES] == other[band : band + BAND_BYTES] for band in bands):
        return -1.0
    return similarity(one, other)


def _kept(column: NDArray[Any], stay: NDArray[np.bool_]) -> NDArray[Any]:
    return column[stay]


def _grown(column: NDArray[Any], count: int, room: int) -> NDArray[Any]:
    """A column of `room` rows with the first `count` of another."""
    grown = np.empty((room, *column.shape[1:]), column.dtype)
    grown[:count] = column[:count]
    return grown


class OpenStories:
    """The open stories of many keys.

    Parameters
    ----------
    window : a story takes items up to so many ms after its last and before its first.
    threshold : the least similarity (`monitor.stories.similarity`) of a copy and a story's first item.
    stored : what `Joined.opened` told, in that order: of a story that was told of twice the later counts.
    """

    def __init__(self, window: int, threshold: float, stored: Iterable[OpenRows] = ()) -> None:
        self._window, self._threshold = window, threshold
        self._count = 0
        self._ids = np.empty((0, ID_BYTES), np.uint8)
        self._keys = np.empty(0, np.uint32)
        self._first = np.empty(0, "<i8")
        self._last = np.empty(0, "<i8")
        self._values = np.empty((0, VALUES), "<u2")
        # Keys are numbered as they come; a number is not given away twice.
        self._numbers: dict[str, int] = {}
        self._next_number = 0
        self._levels: list[_Words] = []
        self._restore(list(stored))

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> int:
        """How many keys have open stories, those included whose last has expired and is not yet forgotten."""
        return len(self._numbers)

    def _reserve(self, room: int) -> None:
        """Give the columns room for so many rows."""
        count = self._count
        columns = (self._ids, self._keys, self._first, self._last, self._values)
        self._ids, self._keys, self._first, self._last, self._values = (_grown(old, count, room) for old in columns)

    def _restore(self, stored: list[OpenRows]) -> None:
        ids = np.frombuffer(b"".join(rows.ids for rows in stored), np.uint8).reshape(-1, ID_BYTES)
        if not len(ids):
            return
        # The last of each id; as rows lie, so they are entered.
        _, newest = np.unique(np.ascontiguousarray(ids[::-1]).view(f"V{ID_BYTES}").ravel(), return_index=True)
        kept = np.sort(len(ids) - 1 - newest)
        keys = [key for rows in stored for key in rows.keys]
        numbers = self._numbered([keys[row] for row in kept.tolist()])

        def column(parts: Iterable[bytes], kind: str, width: int) -> NDArray[Any]:
            return np.frombuffer(b"".join(parts), kind).reshape(-1, width)[kept]

        values = column((rows.signatures for rows in stored), "<u2", VALUES)
        first = column((rows.first_at for rows in stored), "<i8", 1).ravel()
        last = column((rows.last_at for rows in stored), "<i8", 1).ravel()
        self._reserve(len(kept))
        self._append(ids[kept], numbers, first, last, values)
        self._enter(_entries(_hashes(values, numbers), np.arange(len(kept))))

    def _numbered(self, keys: Sequence[str]) -> NDArray[np.uint32]:
        numbers = self._numbers
        for key in keys:
            if key not in numbers:
                numbers[key] = self._next_number
                self._next_number += 1
        return np.fromiter(map(numbers.__getitem__, keys), np.uint32, len(keys))

    def _append(self, ids: NDArray[np.uint8], *columns: NDArray[np.generic]) -> None:
        rows = slice(self._count, self._count + len(ids))
        if rows.stop > len(self._keys):
            self._reserve(rows.stop + int(rows.stop * SPARE))
        self._ids[rows] = ids
        self._keys[rows], self._first[rows], self._last[rows], self._values[rows] = columns
        self._count = rows.stop

    def _enter(self, entries: _Words) -> None:
        """Add sorted entries to the index."""
        levels = self._levels
        levels.append(entries)
        while len(levels) > 1 and len(levels[-2]) < GROWTH * len(levels[-1]):
            merged = np.concatenate((levels[-2], levels[-1]))
            # Two sorted runs: stable sorting merges them.
            merged.sort(kind="stable")
            levels[-2:] = [merged]

    def join(self, items: Sequence[Contribution], minutes: Sequence[int]) -> Joined:
        """Find each item's story, in the order given, or open one.

        `minutes` (epoch minutes, ascending) are those that the items are counted in: a story last seen more than the
        window before its beginning has expired. Of several stories the most alike is joined, of equals the earliest.
        An item without a signature begins a story that no other can join.
        """
        signed = [len(item.signature) == SIGNATURE_BYTES for item in items]
        some = [place for place, has in enumerate(signed) if has]
        if not some:
            ids = [story_id(c.key, c.item_id, minute) for c, minute in zip(items, minutes, strict=True)]
            return Joined(ids, [True] * len(items), OpenRows([], b"", b"", b"", b""))
        if len(some) == len(items):
            return self._join(items, minutes)
        found = self._join([items[place] for place in some], [minutes[place] for place in some])
        joined, begins = iter(found.ids), iter(found.begins)
        return Joined(
            [
                next(joined) if has else story_id(c.key, c.item_id, minute)
                for c, minute, has in zip(items, minutes, signed, strict=True)
            ],
            [next(begins) if has else True for has in signed],
            found.opened,
        )

    def _join(self, items: Sequence[Contribution], minutes: Sequence[int]) -> Joined:
        values = np.frombuffer(b"".join([item.signature for item in items]), "<u2").reshape(-1, VALUES)
        numbers = self._numbered([item.key for item in items])
        hashes = _hashes(values, numbers)
        batch = _Batch(items, minutes, numbers, values, hashes, _same_as(values, numbers, hashes))
        return self._keep(batch, self._settle(batch))

    def _settle(self, batch: _Batch) -> dict[int, _Story]:
        """The stories of those items that may be copies, by place: one begun before, by one of these items, or by this
        one. Items with the same key and values are told apart by time alone: the first stands for all of them."""
        same_as = batch.same_as
        firsts = np.flatnonzero(same_as == np.arange(len(same_as)))
        entries = _entries(batch.hashes[firsts], firsts)
        near, shared = self._near(batch, entries), _shared(entries)
        # The stories that the items have begun, by the first of the same, and by the number of a shared hash.
        begun: dict[int, list[_Story]] = {}
        sharing: dict[int, list[_Story]] = {}
        if len(firsts) == len(same_as) and not near and not shared:
            return {}
        doubtful = np.bincount(same_as, minlength=len(same_as)) > 1
        doubtful[[*near, *shared]] = True
        settled: dict[int, _Story] = {}
        places = np.flatnonzero(doubtful[same_as])
        for place, first in zip(places.tolist(), same_as[places].tolist(), strict=True):
            item, minute = batch.items[place], batch.minutes[place]
            candidates = [(1.0, story) for story in begun.get(first, ())]
            if first in near:
                candidates += near[first]
            groups = shared.get(first, ())
            if groups:
                others = {story.place: story for group in groups for story in sharing.get(group, ())}
                candidates += [(_similar(batch.items[story.place], item), story) for story in others.values()]
            found = self._best(candidates, item.at, minute * MINUTE_MS - self._window) if candidates else None
            if found is None:
                found = _Story(story_id(item.key, item.item_id, minute), item.at, item.at, place, -1)
                begun.setdefault(first, []).append(found)
                for group in groups:
                    sharing.setdefault(group, []).append(found)
            elif item.at > found.last_at:
                found.last_at = item.at
            settled[place] = found
        return settled

    def _best(self, candidates: list[tuple[float, _Story]], at: int, open_from: int) -> _Story | None:
        best: _Story | None = None
        best_rank: tuple[float, int, str] = (0.0, 0, "")
        for alike, story in candidates:
            if (
                alike < self._threshold
                or story.last_at < open_from
                or not story.first_at - self._window <= at <= story.last_at + self._window
            ):
                continue
            rank = (-alike, story.first_at, story.id)
            if best is None or rank < best_rank:
                best, best_rank = story, rank
        return best

    def _near(self, batch: _Batch, entries: _Words) -> dict[int, list[tuple[float, _Story]]]:
        """The stories begun before that share the key and a band with an item and are similar enough, and how similar,
        by the item's place."""
        kept: list[tuple[_Ints, _Ints, NDArray[np.float64]]] = []
        pending: list[_Words] = []
        for level in self._levels:
            places, hashes = entries & _LOW, entries & _HIGH
            at = np.searchsorted(level, hashes)
            # One story after the other of those under the same hash, until no item has another.
            while len(at):
                there = level.take(at, mode="clip")
                same = ((there & _HIGH) == hashes) & (at < len(level))
                if not same.any():
                    break
                places, hashes, at = places[same], hashes[same], at[same] + 1
                pending.append(places << _HALF | there[same] & _LOW)
                if sum(map(len, pending)) > COMPARED:
                    kept.append(self._compared(batch, pending))
                    pending = []
        if pending:
            kept.append(self._compared(batch, pending))
        if not kept:
            return {}
        near: dict[int, list[tuple[float, _Story]]] = {}
        rows = np.concatenate([rows for _, rows, _ in kept])
        stored = self._stored(rows)
        for pairs in kept:
            for place, row, how in zip(*(column.tolist() for column in pairs), strict=True):
                near.setdefault(place, []).append((how, stored[row]))
        return near

    def _stored(self, rows: _Ints) -> dict[int, _Story]:
        rows = np.unique(rows)
        names = self._ids[rows].tobytes().hex()
        size = 2 * ID_BYTES
        ids = [names[begin : begin + size] for begin in range(0, len(names), size)]
        first, last = self._first[rows].tolist(), self._last[rows].tolist()
        return {
            row: _Story(id_, first_at, last_at, -1, row)
            for row, id_, first_at, last_at in zip(rows.tolist(), ids, first, last, strict=True)
        }

    def _compared(self, batch: _Batch, pending: list[_Words]) -> tuple[_Ints, _Ints, NDArray[np.float64]]:
        pairs = np.unique(np.concatenate(pending))
        places, rows = (pairs >> _HALF).astype(np.int64), (pairs & _LOW).astype(np.int64)
        of_key = self._keys[rows] == batch.numbers[places]
        places, rows = places[of_key], rows[of_key]
        equal = self._values[rows] == batch.values[places]
        alike = equal.sum(axis=1) / VALUES
        good = equal.reshape(-1, BANDS, ROWS).all(axis=2).any(axis=1) & (alike >= self._threshold)
        return places[good], rows[good], alike[good]

    def _keep(self, batch: _Batch, settled: dict[int, _Story]) -> Joined:
        """Hold what was begun, and what was seen of what was begun before."""
        items, before = batch.items, self._count
        ids = [
            settled[place].id if place in settled else story_id(item.key, item.item_id, minute)
            for place, (item, minute) in enumerate(zip(items, batch.minutes, strict=True))
        ]
        begins = np.ones(len(items), np.bool_)
        begins[[place for place, story in settled.items() if story.place != place] or slice(0)] = False
        begun = np.flatnonzero(begins)
        places = begun.tolist()
        first = np.array([items[place].at for place in places], np.int64)
        last = [settled[place].last_at if place in settled else items[place].at for place in places]
        packed = np.frombuffer(bytes.fromhex("".join([ids[place] for place in places])), np.uint8)
        self._append(
            packed.reshape(-1, ID_BYTES), batch.numbers[begun], first, np.array(last, np.int64), batch.values[begun]
        )
        if places:
            self._enter(_entries(batch.hashes[begun], np.arange(before, self._count)))
        seen = {story.row: (story.last_at, items[place].key) for place, story in settled.items() if story.row >= 0}
        if seen:
            self._last[list(seen)] = [last_at for last_at, _ in seen.values()]
        rows = np.array([*seen, *range(before, self._count)], np.int64)
        return Joined(
            ids,
            begins.tolist(),
            OpenRows(
                [*(key for _, key in seen.values()), *(items[place].key for place in places)],
                self._ids[rows].tobytes(),
                self._first[rows].tobytes(),
                self._last[rows].tobytes(),
                self._values[rows].tobytes(),
            ),
        )

    def expire(self, open_from: int) -> None:
        """Forget the stories last seen before `open_from` (epoch ms)."""
        held = slice(0, self._count)
        stay = self._last[held] >= open_from
        if stay.all():
            return
        columns = (self._ids, self._keys, self._first, self._last, self._values)
        self._ids, self._keys, self._first, self._last, self._values = (_kept(column[held], stay) for column in columns)
        row_of = np.cumsum(stay, dtype=np.uint64) - np.uint64(1)
        levels, self._levels = self._levels, []
        for level in levels:
            rows = (level & _LOW).astype(np.int64)
            left = stay[rows]
            if left.any():
                self._enter(level[left] & _HIGH | row_of[rows[left]])
        self._count = len(self._ids)
        # A key's number is part of the hashes, so that those in use stay as they are.
        used = set(np.unique(self._keys).tolist())
        self._numbers = {key: number for key, number in self._numbers.items() if number in used}
