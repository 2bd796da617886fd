"""The charts. Times are UTC; one colour for one meaning on all of them, told apart by colour-blind people too."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import altair as alt

from dashboard.markup import at_minute, clock, signed
from monitor.alerts.records import Alert, expectation
from monitor.storage.trends import Bucket, TickSums
from monitor.surges.sorts import NEGATIVE as NEGATIVE_SURGE
from monitor.surges.sorts import POSITIVE as POSITIVE_SURGE
from monitor.surges.sorts import VOLUME as VOLUME_SURGE
from monitor.surges.sorts import counted, stories_of

__all__ = ["probability_chart", "sentiment_chart", "volume_chart", "window_chart"]

# After Okabe and Ito: told apart with any colour vision, and in the middle between black and white.
NEGATIVE: Final = "#d9651e"
NEUTRAL: Final = "#8c95a0"
POSITIVE: Final = "#2f86cf"
# What surged: negative stories, positive ones, or their number.
SURGE_COLOURS: Final = {NEGATIVE_SURGE: "#e0a03c", POSITIVE_SURGE: POSITIVE, VOLUME_SURGE: "#b279a2"}
LINE_COLOURS: Final = {NEGATIVE_SURGE: NEGATIVE, POSITIVE_SURGE: POSITIVE, VOLUME_SURGE: SURGE_COLOURS[VOLUME_SURGE]}

_MINUTE_MS: Final = 60_000
# The day at midnight, the time at other ticks, on a clock of 24 hours.
_LABEL: Final = (
    "utchours(datum.value) == 0 && utcminutes(datum.value) == 0"
    " ? utcFormat(datum.value, '%b %d') : utcFormat(datum.value, '%H:%M')"
)


def _ms(at: Any) -> int:
    return int(at.timestamp() * 1000)


def _frame(start: int, end: int) -> alt.Chart:
    """Nothing to see: two points that hold the time axis open from start to end, whatever there is in between."""
    ends = [{"t": start * _MINUTE_MS}, {"t": end * _MINUTE_MS}]
    frame: alt.Chart = (
        alt.Chart(alt.InlineData(values=ends)).mark_point(opacity=0).encode(x=_time_axis(title=None), y=alt.value(0))
    )
    return frame


def _time_axis(*, title: str | None, field: str = "t") -> alt.X:
    return alt.X(
        field=field,
        type="temporal",
        title=title,
        scale=alt.Scale(type="utc", nice=False),
        axis=alt.Axis(grid=False, labelExpr=_LABEL, labelOverlap=True, labelFlush=True, tickCount=12),
    )


def _rows(buckets: Sequence[Bucket], step: int) -> list[dict[str, Any]]:
    return [
        {
            "t": bucket.minute * _MINUTE_MS,
            "middle": int((bucket.minute + step / 2) * _MINUTE_MS),
            "t2": int((bucket.minute + step * 0.92) * _MINUTE_MS),
            "when": clock(at_minute(bucket.minute)),
            "mean": bucket.sums.mean_score,
            "stories": bucket.sums.stories,
            "negative": bucket.sums.negative_stories,
            "positive": bucket.sums.positive_stories,
            "share": bucket.sums.negative_share,
            "items": bucket.sums.items,
        }
        for bucket in buckets
    ]


def _surges(alerts: Iterable[Alert], start: int, end: int) -> list[dict[str, Any]]:
    low, high = start * _MINUTE_MS, end * _MINUTE_MS
    found = []
    for alert in alerts:
        begin = _ms(alert.started_at)
        until = _ms(alert.resolved_at) if alert.resolved_at else high
        if begin >= high or until < low:
            continue
        # A short surge in a long range is still seen: a band is at least a two-hundredth of the range wide.
        least = (high - low) // 200
        found.append(
            {
                "t": max(low, begin),
                "t2": min(high, max(until, begin + least)),
                "fired": min(high, max(low, _ms(alert.fired_at))),
                "sort": alert.surge,
                "surge": f"{stories_of(alert.surge)}: {alert.severity}, {alert.state.value}",
                "fired at": clock(alert.fired_at),
                "stories": f"{counted(alert.surge, alert.observed)} in {alert.window.minutes} min, "
                f"{expectation(alert.expected)} expected",
            }
        )
    return found


def _surge_layers(surges: list[dict[str, Any]]) -> list[alt.Chart]:
    tooltip = [alt.Tooltip(f"{name}:N") for name in ("surge", "fired at", "stories")]
    layers = []
    for sort, colour in SURGE_COLOURS.items():
        mine = [surge for surge in surges if surge["sort"] == sort]
        if not mine:
            continue
        data = alt.InlineData(values=mine)
        band = (
            alt.Chart(data)
            .mark_rect(color=colour, opacity=0.25)
            .encode(x=_time_axis(title=None), x2="t2:T", tooltip=tooltip)
        )
        mark = (
            alt.Chart(data)
            .mark_point(shape="triangle-down", filled=True, size=110, color=colour, opacity=1, yOffset=2)
            .encode(x=_time_axis(title=None, field="fired"), y=alt.value(4), tooltip=tooltip)
        )
        layers += [band, mark]
    return layers


def _framed(layers: Sequence[alt.Chart], height: int) -> alt.LayerChart:
    return alt.LayerChart(layer=list(layers), height=height, width="container")


def sentiment_chart(
    buckets: Sequence[Bucket], alerts: Iterable[Alert], start: int, end: int, step: int
) -> alt.LayerChart:
    """Mean sentiment of the items over the epoch minutes [start, end), in steps of `step` minutes, surges behind."""
    rows = [row for row in _rows(buckets, step) if row["mean"] is not None]
    for row in rows:
        row["t"] = row["middle"]
        row["told"] = signed(row["mean"])
        row["low"], row["high"] = min(row["mean"], 0), max(row["mean"], 0)
    base = alt.Chart(alt.InlineData(values=rows))

    def y(field: str) -> alt.Y:
        return alt.Y(
            field=field,
            type="quantitative",
            title="mean sentiment",
            scale=alt.Scale(domain=[-1, 1]),
            axis=alt.Axis(values=[-1, -0.5, 0, 0.5, 1], format="+.1f", minExtent=44),
        )

    def x() -> alt.X:
        return _time_axis(title=None)

    tooltip = [
        alt.Tooltip("when:N", title="from (UTC)"),
        alt.Tooltip("told:N", title="mean sentiment"),
        alt.Tooltip("items:Q", title="items"),
        alt.Tooltip("stories:Q", title="stories"),
    ]
    below = base.mark_area(color=NEGATIVE, opacity=0.35).encode(x=x(), y=y("low"))
    above = base.mark_area(color=POSITIVE, opacity=0.35).encode(x=x(), y=y("high"))
    line = base.mark_line(color=NEUTRAL, strokeWidth=1.5).encode(x=x(), y=y("mean"))
    points = base.mark_circle(size=40, opacity=0 if len(rows) > 120 else 0.9, color=NEUTRAL).encode(
        x=x(), y=y("mean"), tooltip=tooltip
    )
    zero = (
        alt.Chart(alt.InlineData(values=[{"zero": 0}])).mark_rule(color=NEUTRAL, strokeDash=[3, 3]).encode(y="zero:Q")
    )
    return _framed(
        [_frame(start, end), *_surge_layers(_surges(alerts, start, end)), zero, below, above, line, points], 240
    )


def _of_sort(sums: TickSums, surge: str) -> int:
    return {NEGATIVE_SURGE: sums.negative_stories, POSITIVE_SURGE: sums.positive_stories}.get(surge, sums.stories)


def _in_window(
    buckets: Sequence[Bucket], surge: str, width: int, start: int, end: int, step: int
) -> list[dict[str, Any]]:
    """Stories of the sort that surges in the `width` minutes up to every `step`-th minute; `buckets` are of one
    minute."""
    at = [bucket.minute for bucket in buckets]
    sums = [0, *accumulate(_of_sort(bucket.sums, surge) for bucket in buckets)]
    return [
        {
            "t": minute * _MINUTE_MS,
            "when": clock(at_minute(minute)),
            "observed": sums[bisect_left(at, minute)] - sums[bisect_left(at, minute - width)],
        }
        for minute in range(start, end + 1, step)
    ]


def window_chart(buckets: Sequence[Bucket], alert: Alert, start: int, end: int, step: int) -> alt.LayerChart:
    """What alerted: stories of the sort that surges in the alert's window as it slides over the epoch minutes
    [start, end], and what was to be expected in the window that alerted. `buckets` are of one minute, from a window
    before `start` on."""
    rows = _in_window(buckets, alert.surge, alert.window.minutes, start, end, step)
    colour, words = LINE_COLOURS[alert.surge], stories_of(alert.surge)
    base = alt.Chart(alt.InlineData(values=rows))

    def y(field: str) -> alt.Y:
        return alt.Y(
            field=field,
            type="quantitative",
            title=f"{words.removesuffix(' stories')} in {alert.window.minutes} min",
            scale=alt.Scale(domainMin=0, nice=True),
            axis=alt.Axis(minExtent=44, tickMinStep=1, format="d"),
        )

    tooltip = [
        alt.Tooltip("when:N", title="up to (UTC)"),
        alt.Tooltip("observed:Q", title=f"{words} in {alert.window.minutes} min"),
    ]
    area = base.mark_area(color=colour, opacity=0.2, interpolate="step-after").encode(
        x=_time_axis(title=None), y=y("observed")
    )
    line = base.mark_line(color=colour, strokeWidth=2, interpolate="step-after").encode(
        x=_time_axis(title=None), y=y("observed"), tooltip=tooltip
    )
    said = f"{alert.observed} observed, {expectation(alert.expected)} expected"
    expected = {"t": start * _MINUTE_MS, "t2": end * _MINUTE_MS, "level": alert.expected}
    rule = (
        alt.Chart(alt.InlineData(values=[expected]))
        .mark_rule(color=NEUTRAL if alert.surge == POSITIVE_SURGE else POSITIVE, strokeWidth=2, strokeDash=[6, 4])
        .encode(x=_time_axis(title=None), x2="t2:T", y=y("level"))
    )
    told = alt.Chart(alt.InlineData(values=[{"t": _ms(alert.window.end), "observed": alert.observed, "words": said}]))
    point = told.mark_point(color=colour, filled=True, size=90, opacity=1).encode(
        x=_time_axis(title=None), y=y("observed"), tooltip=alt.Tooltip("words:N", title="the window that alerted")
    )
    # In the empty time before the surge, where nothing lies under it.
    text = told.mark_text(align="right", dx=-8, dy=-2, color=NEUTRAL, fontWeight="bold").encode(
        x=_time_axis(title=None), y=y("observed"), text="words:N"
    )
    return _framed(
        [_frame(start, end), *_surge_layers(_surges([alert], start, end)), area, line, rule, point, text], 220
    )


def volume_chart(
    buckets: Sequence[Bucket],
    alerts: Iterable[Alert],
    start: int,
    end: int,
    step: int,
    *,
    positive: bool = False,
) -> alt.LayerChart:
    """Stories in each step, the negative ones at the bottom (the positive ones if so asked), surges behind."""
    sort = "positive" if positive else "negative"
    rows: list[dict[str, Any]] = []
    for row in _rows(buckets, step):
        rows.append(row | {"kind": f"{sort} stories", "low": 0, "high": row[sort]})
        rows.append(row | {"kind": "other stories", "low": row[sort], "high": row["stories"]})
    bars = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_rect()
        .encode(
            x=_time_axis(title="UTC"),
            x2="t2:T",
            y=alt.Y(
                "low:Q",
                title="stories",
                scale=alt.Scale(domainMin=0, nice=True),
                axis=alt.Axis(minExtent=44, tickMinStep=1, format="d"),
            ),
            y2="high:Q",
            color=alt.Color(
                "kind:N",
                title=None,
                scale=alt.Scale(
                    domain=[f"{sort} stories", "other stories"], range=[POSITIVE if positive else NEGATIVE, NEUTRAL]
                ),
                legend=alt.Legend(orient="top", direction="horizontal", offset=2),
            ),
            tooltip=[
                alt.Tooltip("when:N", title="from (UTC)"),
                alt.Tooltip("stories:Q", title="stories"),
                alt.Tooltip("negative:Q", title="negative"),
                alt.Tooltip("positive:Q", title="positive"),
                alt.Tooltip("share:Q", title="negative share", format=".0%"),
            ],
        )
    )
    return _framed([_frame(start, end), *_surge_layers(_surges(alerts, start, end)), bars], 200)


def probability_chart(
    probabilities: Mapping[str, float], *, colours: Mapping[str, str] | None = None
) -> alt.LayerChart:
    """Bars of probabilities in the given order, with the figure at the end of each."""
    names = list(probabilities)
    data = alt.InlineData(values=[{"name": name, "p": value} for name, value in probabilities.items()])
    y = alt.Y(
        "name:N", sort=names, title=None, axis=alt.Axis(labelLimit=220, labelOverlap=False, ticks=False, domain=False)
    )
    x = alt.X("p:Q", title=None, scale=alt.Scale(domain=[0, 1.35]), axis=None)
    bars = alt.Chart(data).mark_bar(height=16, color=POSITIVE).encode(x=x, y=y)
    if colours:
        bars = bars.encode(
            color=alt.Color(
                "name:N", scale=alt.Scale(domain=names, range=[colours[name] for name in names]), legend=None
            )
        )
    figures = (
        alt.Chart(data)
        .mark_text(align="left", dx=4, color=NEUTRAL)
        .encode(x=x, y=y, text=alt.Text("p:Q", format=".1%"))
    )
    return _framed([bars, figures], 32 * len(names))
