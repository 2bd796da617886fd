"""Progress of input partitions: positions never pass what is not done, watermarks never run ahead of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.progress import PartitionProgress, Sources
from monitor.records import SourceWatermark


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[int]]:
    """Records (offset, time) with gaps in their offsets, and an order in which some of them get done."""
    gaps = draw(st.lists(st.integers(1, 3), min_size=1, max_size=40))
    times = draw(st.lists(st.integers(0, 1000), min_size=len(gaps), max_size=len(gaps)))
    offsets = [sum(gaps[: i + 1]) + 100 for i in range(len(gaps))]
    order = draw(st.permutations(range(len(gaps))))
    return list(zip(offsets, times, strict=True)), list(order)[: draw(st.integers(0, len(gaps)))]


@given(runs())
def test_position_is_the_first_record_that_is_not_done(run: tuple[list[tuple[int, int]], list[int]]) -> None:
    records, order = run
    progress = PartitionProgress()
    for offset, at in records:
        progress.read(offset, at)
    done: set[int] = set()
    for place in order:
        progress.done(records[place][0])
        done.add(place)
        open_places = [p for p in range(len(records)) if p not in done]
        first = open_places[0] if open_places else len(records)
        expected = records[first][0] if first < len(records) else records[-1][0] + 1
        assert progress.position == expected
        assert progress.at == max((at for _, at in records[:first]), default=0)
        assert progress.pending == len(records) - first


def test_a_held_record_keeps_the_position_however_much_follows() -> None:
    progress = PartitionProgress(at=5, position=7)
    assert progress.position == 7
    for offset in range(7, 500):
        progress.read(offset, offset)
        if offset != 7:
            progress.done(offset)
    assert (progress.position, progress.at) == (7, 5)
    progress.done(7)
    assert (progress.position, progress.at) == (500, 499)


def test_reading_twice_is_an_error_but_a_log_made_anew_is_followed() -> None:
    progress = PartitionProgress(position=50)
    progress.read(3, 1)
    with pytest.raises(ValueError, match="read already"):
        progress.read(3, 1)
    progress.done(3)
    assert progress.position == 4


def test_skipping_never_jumps_over_an_open_record() -> None:
    progress = PartitionProgress(position=1)
    progress.read(1, 1)
    progress.skip_to(9)
    assert progress.position == 1
    progress.done(1)
    progress.skip_to(9)
    assert progress.position == 9
    progress.skip_to(4)
    assert progress.position == 9


def test_a_partition_is_idle_only_at_its_end_with_nothing_open_and_after_quiet() -> None:
    sources = Sources(idle_after_s=3.0, ended_after_s=120.0)
    progress = sources.assign("news:0", 0, now=0.0)
    sources.assign("charts:0", 40, now=0.0)
    assert sources.watermarks({"news:0"}, 1.0) == (SourceWatermark("charts:0", 40, False),)
    assert sources.watermarks({"news:0"}, 3.0)[1] == SourceWatermark("news:0", 0, True)
    progress.read(0, 10)
    assert SourceWatermark("news:0", 0, True) not in sources.watermarks({"news:0"}, 9.0)
    progress.done(0)
    sources.active("news:0", 9.0)
    assert sources.watermarks({"news:0"}, 10.0)[1] == SourceWatermark("news:0", 10, False)
    assert sources.watermarks({"news:0"}, 12.0)[1] == SourceWatermark("news:0", 10, True)
    assert sources.watermarks(set(), 12.0)[1] == SourceWatermark("news:0", 10, False)
    assert sources.watermarks({"news:0"}, 128.9)[1] == SourceWatermark("news:0", 10, True, False)
    assert sources.watermarks({"news:0"}, 129.0)[1] == SourceWatermark("news:0", 10, True, True)
    sources.clear()
    assert sources.watermarks({"news:0"}, 99.0) == ()
