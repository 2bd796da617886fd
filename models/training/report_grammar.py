"""Words, invented names and drawn figures for made-up sentences about companies."""

from __future__ import annotations

import random

__all__ = [
    "BURDENS",
    "CLIMBS",
    "DOWN",
    "DROPS",
    "GAINS",
    "IS",
    "LOSSES",
    "NARROWER",
    "NEGATIVE",
    "NEUTRAL",
    "PLACES",
    "POSITIVE",
    "THINGS",
    "UP",
    "WIDER",
    "Grammar",
]

NEGATIVE, NEUTRAL, POSITIVE = 0, 1, 2

_SYLLABLES = "al ban cor da el fin gra hel in jo kar lun mar nor ol pa que ras sam tel un va west yl zen".split()  # noqa: SIM905
_KINDS = ("Oyj", "Corp", "Group", "Ltd", "Inc", "plc", "AB", "Bank", "Steel", "Motors", "Foods", "Telecom", "", "", "")
GAINS = (
    "operating profit",
    "net profit",
    "net sales",
    "sales",
    "revenue",
    "turnover",
    "pre-tax profit",
    "profit before tax",
    "profit",
    "net income",
    "earnings per share",
    "EPS",
    "EBITDA",
    "EBIT",
    "order intake",
    "order book",
    "gross margin",
    "operating income",
    "cash flow from operations",
    "comparable sales",
    "passenger numbers",
    "cargo traffic",
    "market share",
    "net interest income",
    "production",
    "deliveries",
    "exports",
    "advertising sales",
)
LOSSES = (
    "net loss",
    "operating loss",
    "loss",
    "pre-tax loss",
    "loss before tax",
    "loss per share",
    "bad loans",
    "net debt",
)
BURDENS = (
    "debt",
    "cost base",
    "tax bill",
    "backlog of complaints",
    "quarterly loss",
    "share of bad loans",
    "staff turnover",
    "interest bill",
    "energy bill",
    "net loss",
)
CLIMBS = (
    "climbs",
    "rallies",
    "soars",
    "advances",
    "jumps",
    "beats forecasts",
    "is upgraded",
    "shines",
    "surges",
    "up",
)
DROPS = ("drops", "tumbles", "sinks", "retreats", "slumps", "misses forecasts", "is downgraded", "stumbles", "down")
UP = ("rose", "increased", "grew", "climbed", "went up", "jumped", "improved", "surged", "was up", "advanced")
DOWN = ("fell", "decreased", "dropped", "declined", "went down", "slipped", "slumped", "plunged", "was down", "shrank")
WIDER = ("widened", "grew", "increased", "rose", "deepened")
NARROWER = ("narrowed", "shrank", "decreased", "fell", "was cut", "declined")
IS = ("was", "totalled", "amounted to", "came to", "reached", "stood at", "came in at")
PLACES = ("Finland", "Espoo", "Mumbai", "Ohio", "Sweden", "Estonia", "China", "Texas", "Poland", "Brazil", "Germany")
THINGS = (
    "packaging",
    "mobile networks",
    "steel",
    "software",
    "paper machines",
    "elevators",
    "tyres",
    "medicines",
    "loans",
    "retail space",
    "wind turbines",
    "fertilisers",
    "machinery",
    "chips",
    "aircraft parts",
    "food",
    "insurance",
)


class Grammar:
    """Draws names, periods and amounts. The same seed gives the same sentences."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - made-up figures, no secrets

    def one(self, choices: tuple[str, ...]) -> str:
        """One of the choices."""
        return self.random.choice(choices)

    def name(self) -> str:
        """An invented company."""
        stem = "".join(self.random.sample(_SYLLABLES, self.random.choice((2, 2, 3)))).capitalize()
        return f"{stem} {self.one(_KINDS)}".strip()

    def period(self) -> str:
        """When, or nothing."""
        year = self.random.randint(2004, 2024)
        quarter = self.one(("first", "second", "third", "fourth"))
        return self.one(
            (
                f" in {year}",
                f" in the {quarter} quarter",
                f" in the {quarter} quarter of {year}",
                f" for Q{self.random.randint(1, 4)}",
                " in January-September",
                " in the period under review",
                " in the financial year",
                f" for the full year {year}",
                "",
                "",
            )
        )

    def before(self) -> str:
        """When before."""
        year = self.random.randint(2003, 2023)
        return self.one(
            (
                " a year earlier",
                " a year ago",
                f" in {year}",
                " in the corresponding period of the previous year",
                " in the same period last year",
                " the year before",
                " in the year-ago quarter",
                " previously",
                " from the previous year",
            )
        ).replace(" from the", " in the")

    def amounts(self, up: bool) -> tuple[str, str]:
        """Now and before, in one currency and unit; now is larger if `up`."""
        scale = self.random.choice((1.0, 10.0, 100.0, 1000.0))
        old = self.random.uniform(1.0, 10.0) * scale
        change = self.random.choice((self.random.uniform(0.02, 0.2), self.random.uniform(0.1, 0.9)))
        new = old * (1 + change if up else 1 - change)
        digits = 1 if scale < 100 else self.random.choice((0, 1))
        if f"{new:.{digits}f}" == f"{old:.{digits}f}":
            new = old * (2.0 if up else 0.5)
        shape = self.one(
            (
                "EUR {} mn",
                "EUR{} m",
                "EUR {} million",
                "{} million euros",
                "${} million",
                "${}m",
                "USD {} mln",
                "Rs {} crore",
                "SEK {} mn",
                "GBP {} million",
                "{} billion yen",
                "${} billion",
                "{} mln euro",
            )
        )
        return shape.format(f"{new:,.{digits}f}"), shape.format(f"{old:,.{digits}f}")

    def apart(self) -> tuple[str, str]:
        """A smaller and a larger amount of one currency and unit, a fifth apart or more, as short as in a headline."""
        scale, digits = self.random.choice(((1.0, 1), (1.0, 2), (10.0, 0), (10.0, 1), (100.0, 0)))
        small = self.random.uniform(1.0, 8.0) * scale
        large = small * self.random.uniform(1.2, 2.5)
        shape = self.one(
            (
                "EUR {}m",
                "EUR {} mln",
                "{} million euros",
                "${}m",
                "${} mln",
                "$ {} million",
                "USD {} bn",
                "Rs {} cr",
                "{}",
            )
        )
        return shape.format(f"{small:.{digits}f}"), shape.format(f"{large:.{digits}f}")

    def percent(self) -> str:
        """A percentage."""
        return self.one(("{}%", "{} %", "{} percent", "{} per cent", "{} pct")).format(
            f"{self.random.uniform(0.5, 70):.{self.random.choice((0, 1))}f}"
        )
