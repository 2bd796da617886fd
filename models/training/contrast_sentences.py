"""Made-up headlines in which one word turns the sentiment: burdens, denials, figures that
are told without a verb, and two companies that fare differently.

None of them nearly repeats a text of the behaviour tests (`models/data/robustness.toml`): their content words differ.
"""

from __future__ import annotations

from models.training.report_grammar import (
    BURDENS,
    CLIMBS,
    DROPS,
    GAINS,
    LOSSES,
    NEGATIVE,
    PLACES,
    POSITIVE,
    THINGS,
    Grammar,
)

__all__ = ["burden", "figures_alone", "good_denied", "harm_denied", "rivals"]


def burden(g: Grammar, name: str) -> tuple[str, int]:
    """What is bad news when it rises, as a headline."""
    up = g.random.random() < 0.5
    load = g.one(BURDENS)
    size = g.one(("a higher", "a bigger") if up else ("a lower", "a smaller"))
    does = g.one(("struggles with rising", "hit by higher") if up else ("works off its", "halves its"))
    verb = g.one(("grows", "rises", "swells", "mounts", "climbs") if up else ("shrinks", "eases", "falls", "declines"))
    text = g.one(
        (
            f"{name} 's {load} {verb}{g.period()}",
            f"{load.capitalize()} at {name} {verb} by {g.percent()}",
            f"{name} reports {size} {load}{g.period()}",
            f"{name} {does} {load}",
        )
    )
    return text, NEGATIVE if up else POSITIVE


def figures_alone(g: Grammar, name: str) -> tuple[str, int]:
    """A figure beside the one before it, and no word that says which is larger."""
    up, loss = g.random.random() < 0.5, g.random.random() < 0.15
    metric = g.one(LOSSES if loss else GAINS)
    small, large = g.apart()
    new, old = (large, small) if up else (small, large)
    quarter = g.one(("first", "second", "third", "fourth"))
    text = g.one(
        (
            f"{name} {metric} {new} vs {old}{g.before()}",
            f"{name} Q{g.random.randint(1, 4)} {metric} {new} vs {old}",
            f"{name} {metric} of {new} compares to {old}{g.before()}",
            f"{metric} at {name} : {new} , last year : {old}",
            f"{metric} for the {quarter} quarter {new} , after {old} in the one before , {name} says",
            f"{name} moves from {metric} of {old} to {new}{g.period()}",
            f"{name} 's {metric} {new} , against {old} in the same quarter of last year",
            f"{name} , {quarter}-quarter {metric} : {new} ( {old} )",
            f"{metric} at {name} {g.one(('went', 'moved', 'came'))} from {old} to {new}{g.period()} .",
            f"{name} had {metric} of {old}{g.before()} ; now it is {new} .",
            f"At {new} , {metric} of {name} compares with {old}{g.before()} .",
        )
    )
    return text, POSITIVE if up != loss else NEGATIVE


def harm_denied(g: Grammar, name: str) -> tuple[str, int]:
    """Something bad that does not happen."""
    thing, place = g.one(THINGS), g.one(PLACES)
    step = g.one(("layoffs", "a profit warning", "plant closures", "a capital increase"))
    cut = g.one(("layoffs", "closures", "redundancies", "writedowns"))
    trouble = g.one(("losing customers", "short of cash", "cutting staff", "in breach of its covenants"))
    blow = g.one(("fine", "downgrade", "lawsuit", "recall"))
    lowers, aim = g.one(("lowering", "cutting", "reviewing")), g.one(("guidance", "targets", "payout"))
    slump = g.one(("a decline in", "pressure on", "a slump in"))
    text = g.one(
        (
            f"{name} rules out {step}{g.period()}",
            f"No {cut} planned at {name} , chief executive says",
            f"{name} will not {g.one(('close', 'sell', 'shut'))} its {thing} plant in {place} .",
            f"{name} denies it is {trouble}",
            f"{name} {g.one(('escapes', 'dodges', 'is spared'))} a {blow} over {thing}",
            f"{name} isn't {lowers} its {aim}",
            f"{name} stock {g.one(('did not drop', 'held its ground', 'refused to fall'))} with the market",
            f"{name} no longer sees {slump} {g.one(GAINS)}{g.period()} .",
            f"Probe into {name} 's {thing} business dropped without charges",
            f"{name} has not had to {g.one(('shut any lines', 'let anyone go', 'write anything off'))}{g.period()} .",
        )
    )
    return text, POSITIVE


def good_denied(g: Grammar, name: str) -> tuple[str, int]:
    """Something good that does not happen."""
    thing, place = g.one(THINGS), g.one(PLACES)
    size, prize = g.one(("a big", "a major", "the")), g.one(("order", "deal", "tender"))
    aim = g.one(("pay a dividend", "meet its targets", "break even", "hit its guidance"))
    text = g.one(
        (
            f"{name} does not see its {g.one(GAINS)} recovering{g.period()} .",
            f"No {g.one(('upturn', 'rebound', 'improvement'))} in sight for {name} 's {thing} business",
            f"{name} misses out on {size} {thing} {prize} in {place}",
            f"{name} won't {aim}{g.period()}",
            f"{name} {g.one(('abandons', 'shelves', 'drops'))} plans to expand its {thing} plant in {place}",
            f"{name} did not {g.one(('win', 'get', 'secure'))} approval for its {thing} .",
            f"{name} is not {g.one(('growing', 'making money', 'gaining share'))} in {thing}",
            f"{name} no longer {g.one(('sees', 'forecasts', 'counts on'))} higher {g.one(GAINS)}{g.period()} .",
            f"{name} stock fails to {g.one(('rally', 'recover', 'join the rebound'))}",
            f"Hopes of a takeover of {name} fade",
        )
    )
    return text, NEGATIVE


def rivals(g: Grammar, name: str) -> tuple[str, int]:
    """Two companies that fare differently; asked is the one called `name`."""
    rise = g.random.random() < 0.5
    other = g.name()
    up, down = (name, other) if rise else (other, name)
    climbs, drops = g.one(CLIMBS), g.one(DROPS)
    text = g.one(
        (
            f"{up} {climbs} , {down} {drops}",
            f"{down} {drops} , {up} {climbs}",
            f"{up} {climbs} while {down} {drops}{g.period()}",
            f"{down} {drops} as {up} {climbs}",
            f"{up} takes market share from {down} in {g.one(THINGS)}",
            f"{down} loses a {g.one(THINGS)} order to {up}",
            f"Analysts like {up} , turn away from {down}",
            f"Buy {up} , sell {down} , says broker",
            f"{down} struggles and {up} prospers in {g.one(PLACES)}",
            f"{up} to rescue ailing {down}" if not rise else f"{up} outdoes {down} with record {g.one(GAINS)}",
        )
    )
    return text, POSITIVE if rise else NEGATIVE
