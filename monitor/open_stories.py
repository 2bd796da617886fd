"""The stories that a copy may still join, as small as they can be kept: hundreds of thousands are open at a time.

Of an open story only its id, its times and its signature are held, packed; all else is in the store. A key of few
stories compares with all of them at once: their signatures are one long integer, and a handful of operations on it
tell which of them share a band with another. A key of many stories (a topic) has an index of its bands.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np

from monitor.stories import BANDS, ROWS, SIGNATURE_BYTES, VALUES, similarity

__all__ = ["OpenStories", "OpenStory"]

# Up to so many stories looking at all is as fast as an index, which takes eight times the memory.
SCANNED: Final = 24

_BITS: Final = 8 * SIGNATURE_BYTES
_ONE: Final = (1 << _BITS) - 1
_PLACE = struct.Struct("<16sqq")
_bands_of = struct.Struct(f"{2 * ROWS}s" * BANDS).unpack
_integer = int.from_bytes
# For n stories: the lower 15 bits of every value; the highest bit of the first value of every band.
_LOWER: Final = [_integer(b"\xff\x7f" * VALUES * n, "little") for n in range(SCANNED + 1)]
_FIRST: Final = [_integer((b"\x00\x80" + b"\x00\x00" * (ROWS - 1)) * BANDS * n, "little") for n in range(SCANNED + 1)]
_GONE: Final = -1


class OpenStory(NamedTuple):
    """What is held of an open story. `id` has 32 hexadecimal digits; times in epoch milliseconds."""

    key: str
    id: str
    first_at: int
    last_at: int
    signature: bytes


class OpenStories:
    """The open stories of one key. They are numbered; a number holds until `expire`."""

    __slots__ = ("_bands", "_free", "_places", "_scan", "_sketches")

    def __init__(self) -> None:
        self._places = bytearray()
        self._scan = 0
        # Only of a key with many: signatures, numbers by band, numbers to be given away again.
        self._sketches: bytearray | None = None
        self._bands: dict[bytes, int | list[int]] = {}
        self._free: list[int] | None = None

    def __len__(self) -> int:
        return len(self._places) // _PLACE.size - len(self._free or ())

    def id(self, number: int) -> str:
        """The id of a story."""
        return bytes(self._places[number * _PLACE.size : number * _PLACE.size + 16]).hex()

    def add(self, story_id: str, first_at: int, last_at: int, sketch: bytes) -> None:
        """Open a story; its signature has `SIGNATURE_BYTES` bytes."""
        number = len(self._places) // _PLACE.size
        place = _PLACE.pack(bytes.fromhex(story_id), first_at, last_at)
        if self._sketches is None:
            if number < SCANNED:
                self._places += place
                self._scan |= _integer(sketch, "little") << (_BITS * number)
                return
            self._sketches = self._index(number)
        if self._free:
            number = self._free.pop()
            self._places[number * _PLACE.size : (number + 1) * _PLACE.size] = place
            self._sketches[number * SIGNATURE_BYTES : (number + 1) * SIGNATURE_BYTES] = sketch
        else:
            self._places += place
            self._sketches += sketch
        self._enter(number, sketch)

    def _index(self, count: int) -> bytearray:
        sketches = bytearray(self._scan.to_bytes(count * SIGNATURE_BYTES, "little"))
        self._scan, self._free = 0, []
        for number in range(count):
            self._enter(number, bytes(sketches[number * SIGNATURE_BYTES : (number + 1) * SIGNATURE_BYTES]))
        return sketches

    def _enter(self, number: int, sketch: bytes) -> None:
        bands = self._bands
        for band in _bands_of(sketch):
            there = bands.setdefault(band, number)
            if there is number:
                continue
            if not isinstance(there, list):
                if there != number:
                    bands[band] = [there, number]
            elif there[-1] != number:
                there.append(number)

    def find(self, sketch: bytes, at: int, window: int, threshold: float, open_from: int) -> int | None:
        """The open story most like `sketch`, at least `threshold`; of equals the earliest. None when there is none.

        A story takes items up to `window` ms after its last and before its first; one last seen before `open_from`
        has expired.
        """
        found = self._scanned(sketch) if self._sketches is None else self._indexed(sketch)
        best: int | None = None
        best_rank: tuple[float, int, bytes] = (0.0, 0, b"")
        for number in found:
            story_id, first_at, last_at = _PLACE.unpack_from(self._places, number * _PLACE.size)
            if last_at < open_from or not first_at - window <= at <= last_at + window:
                continue
            alike = similarity(sketch, self._sketch(number))
            if alike < threshold:
                continue
            rank = (-alike, first_at, story_id)
            if best is None or rank < best_rank:
                best, best_rank = number, rank
        return best

    def _scanned(self, sketch: bytes) -> list[int]:
        """Numbers of the stories that share a band with `sketch`, of a key with few."""
        count = len(self._places) // _PLACE.size
        lower, first = _LOWER[count], _FIRST[count]
        differ = self._scan ^ _integer(sketch * count, "little")
        # The highest bit of every value that is not 0; the sum of two lower parts does not reach the next value.
        unequal = ((differ & lower) + lower) | differ
        shared = ((unequal | unequal >> 16 | unequal >> 32) & first) ^ first
        found: list[int] = []
        passed = 0
        while shared:
            number = (shared & -shared).bit_length() // _BITS
            found.append(passed + number)
            shared >>= _BITS * (number + 1)
            passed += number + 1
        return found

    def _indexed(self, sketch: bytes) -> set[int]:
        """Numbers of the stories that share a band with `sketch`, of a key with many."""
        found: set[int] = set()
        get = self._bands.get
        for band in _bands_of(sketch):
            there = get(band)
            if there is None:
                continue
            if isinstance(there, list):
                found.update(there)
            else:
                found.add(there)
        return found

    def _sketch(self, number: int) -> bytes:
        if self._sketches is None:
            return (self._scan >> (_BITS * number) & _ONE).to_bytes(SIGNATURE_BYTES, "little")
        return bytes(self._sketches[number * SIGNATURE_BYTES : (number + 1) * SIGNATURE_BYTES])

    def see(self, number: int, at: int) -> None:
        """A copy of this story was seen at `at` (epoch ms)."""
        story_id, first_at, last_at = _PLACE.unpack_from(self._places, number * _PLACE.size)
        if at > last_at:
            _PLACE.pack_into(self._places, number * _PLACE.size, story_id, first_at, at)

    def expire(self, open_from: int) -> None:
        """Forget the stories last seen before `open_from` (epoch ms)."""
        times = np.frombuffer(bytes(self._places), dtype="<i8").reshape(-1, 4)[:, 3]
        expired = np.flatnonzero((times != _GONE) & (times < open_from)).tolist()
        if not expired:
            return
        if len(expired) == len(self):
            self._places, self._scan = bytearray(), 0
            self._sketches, self._free = None, None
            self._bands = {}
        elif self._sketches is None:
            self._drop(set(expired))
        else:
            for number in expired:
                self._leave(number)

    def _drop(self, expired: set[int]) -> None:
        count = len(self._places) // _PLACE.size
        rest = [number for number in range(count) if number not in expired]
        size = _PLACE.size
        scan = b"".join(self._sketch(number) for number in rest)
        self._places = bytearray().join(self._places[number * size : (number + 1) * size] for number in rest)
        self._scan = _integer(scan, "little")

    def _leave(self, number: int) -> None:
        for band in set(_bands_of(self._sketch(number))):
            there = self._bands[band]
            rest = [one for one in there if one != number] if isinstance(there, list) else []
            if rest:
                self._bands[band] = rest if len(rest) > 1 else rest[0]
            else:
                del self._bands[band]
        _PLACE.pack_into(self._places, number * _PLACE.size, b"", 0, _GONE)
        if self._free is not None:
            self._free.append(number)
