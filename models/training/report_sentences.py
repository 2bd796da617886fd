"""Made-up sentences about company results, whose sentiment follows from what they say.

Whether a result is good hangs on which way a figure went ("10.1 from 12.3") and on what kind of figure it is (a loss
that narrows is good news). Headlines and tweets say it in words; company reports leave it to the figures. A grammar
writes such sentences with the label worked out, so that a model learns to compare. Nothing is taken from anywhere:
the names are invented, the figures drawn.
"""

from __future__ import annotations

from collections.abc import Callable

from models.training.contrast_sentences import burden, figures_alone, good_denied, harm_denied, rivals
from models.training.datasets import Example
from models.training.report_grammar import (
    DOWN,
    GAINS,
    IS,
    LOSSES,
    NARROWER,
    NEGATIVE,
    NEUTRAL,
    PLACES,
    POSITIVE,
    THINGS,
    UP,
    WIDER,
    Grammar,
)

__all__ = ["MADE_UP", "report_sentences"]

# Origin of these sentences.
MADE_UP = "report_sentences"


def _change(g: Grammar, name: str) -> tuple[str, int]:
    """A figure that moved, in words, in figures, or in both."""
    up = g.random.random() < 0.5
    loss = g.random.random() < 0.25
    metric = g.one(LOSSES if loss else GAINS)
    verb = g.one((WIDER if up else NARROWER) if loss else (UP if up else DOWN))
    new, old = g.amounts(up)
    whose = g.one(
        (
            f"{name} 's {metric}",
            f"{name}'s {metric}",
            f"The company 's {metric}",
            metric.capitalize(),
            f"The group's {metric}",
        )
    )
    period, before = g.period(), g.before()
    versus = g.one(("compared to", "compared with", "against", "versus", "as against"))
    direction = "up" if up else "down"
    text = g.one(
        (
            f"{whose} {verb} to {new} from {old}{before} .",
            f"{whose} {verb} from {old} to {new}{period} .",
            f"{whose}{period} {verb} by {g.percent()} year-on-year to {new} .",
            f"{whose} {verb} {g.percent()}{period}",
            f"{whose}{period} {g.one(IS)} {new} , {direction} from {old}{before} .",
            f"{whose}{period} {g.one(IS)} {new} , {versus} {old}{before} .",
            f"{whose} {g.one(IS)} {new} , {versus} {old}{before} .",
            f"{whose}{period} {g.one(IS)} {new} ( {old} ) .",
            f"{whose} {direction} {g.percent()} at {new}{period}",
            f"{name} said its {metric} {verb} to {new}{period} from {old}{before} .",
            f"{name} posts {metric} of {new}{period} vs {old}{before}",
            f"{name} reported {metric} of {new}{period} , {direction} from {old}{before} .",
        )
    )
    return text, POSITIVE if up != loss else NEGATIVE


def _turn(g: Grammar, name: str) -> tuple[str, int]:
    """From profit to loss or back."""
    up = g.random.random() < 0.5
    new, old = g.amounts(g.random.random() < 0.5)
    kind = g.one(("net", "operating", "pre-tax", "quarterly"))
    now, then = ("profit", "loss") if up else ("loss", "profit")
    text = g.one(
        (
            (
                f"{name} {g.one(('swung to', 'posted', 'reported', 'turned to', 'booked'))} "
                f"a {kind} {now} of {new}{g.period()} , compared to a {then} of {old}{g.before()} ."
            ),
            f"{name} 's {kind} {now} was {new} against a {kind} {then} of {old}{g.before()} .",
            (
                f"{name} "
                f"{g.one(('swings to', 'returns to' if up else 'slips into', 'turns to'))} "
                f"{kind} {now}{g.period()}"
            ),
            f"{kind.capitalize()} {now} totalled {new} , compared to a {then} of {old}{g.before()} .",
            f"{name} made a {kind} {now} of {new}{g.period()} after a {then} of {old}{g.before()} .",
        )
    )
    return text, POSITIVE if up else NEGATIVE


def _level(g: Grammar, name: str) -> tuple[str, int]:
    """A figure with nothing to compare it to, or one that did not move."""
    new, _ = g.amounts(True)
    metric = g.one(GAINS)
    text = g.one(
        (
            f"{name} 's {metric} {g.one(IS)} {new}{g.period()} .",
            f"The group had {metric} of {new}{g.period()} and about {g.random.randint(2, 90) * 100} employees .",
            f"{metric.capitalize()} remained unchanged at {new}{g.period()} .",
            f"{name} , which had {metric} of {new}{g.period()} , is based in {g.one(PLACES)} .",
            f"The value of the {g.one(('deal', 'contract', 'transaction', 'acquisition'))} is {new} .",
            f"{name} will publish its {metric} figures{g.period()} .",
            f"{name} has annual {metric} of about {new} .",
        )
    )
    return text, NEUTRAL


def _fact(g: Grammar, name: str) -> tuple[str, int]:
    """A plain fact."""
    thing, place, other = g.one(THINGS), g.one(PLACES), g.name()
    text = g.one(
        (
            f"{name} is a {place}-based maker of {thing} .",
            (
                f"{name} , headquartered in {place} , provides {thing} "
                f"and employs {g.random.randint(2, 90) * 100} people ."
            ),
            "Financial details of the transaction were not disclosed .",
            f"The company 's shares are listed on the stock exchange under the symbol {name[:3].upper()} .",
            f"{name} will hold its annual general meeting in {place} .",
            f"{name} 's holding in {other} is {g.percent()} of the shares and votes .",
            (
                f"The acquisition of {other} is expected "
                f"to be completed in the {g.one(('first', 'second', 'third'))} quarter ."
            ),
            f"{name} has appointed a new head of its {thing} business in {place} .",
            f"The plant in {place} makes {thing} .",
            f"{name} plans to issue new shares to {other} .",
            f"{name} to present its {thing} strategy in {place}",
            (
                f"The total number of shares in {name} is "
                f"{g.random.randint(1, 900)},{g.random.randint(100, 999)},{g.random.randint(100, 999)} ."
            ),
        )
    )
    return text, NEUTRAL


def _good(g: Grammar, name: str) -> tuple[str, int]:
    """Orders won, outlooks raised, things that get better."""
    thing, place, other = g.one(THINGS), g.one(PLACES), g.name()
    new, _ = g.amounts(True)
    text = g.one(
        (
            f"{name} has won an order worth {new} to supply {thing} to {other} .",
            f"{name} signed a {g.random.randint(2, 9)}-year contract with {other} to deliver {thing} in {place} .",
            f"{name} raised its full-year outlook for {g.one(GAINS)} .",
            f"{name} expects its {g.one(GAINS)} to {g.one(('improve', 'increase', 'grow', 'rise'))}{g.period()} .",
            f"{name} is no longer making a loss .",
            f"{name} does not expect a loss{g.period()} .",
            f"The new plant will strengthen {name} 's position in {place} .",
            f"{name} to hire {g.random.randint(2, 90) * 10} people as demand for {thing} grows",
            f"The agreement will improve the efficiency of {name} 's {thing} production and lower costs .",
            f"{name} will pay a dividend of {g.random.randint(1, 300) / 100} per share , more than last year .",
            f"{name} expects to grow faster than the market .",
            f"{name} has received an order for {thing} from {other} in {place} .",
            f"{name} and {other} have agreed to develop {thing} together .",
            f"{name} will expand its {thing} plant in {place} to meet growing demand .",
            f"{name} is opening a new {thing} unit in {place} and will recruit {g.random.randint(2, 90) * 10} people .",
            f"{name} was chosen as the supplier of {thing} for {other} .",
            f"{name} launches a new generation of {thing} that cuts energy use by {g.percent()} .",
            f"{name} has strengthened its position as the leading maker of {thing} in {place} .",
            f"The order , worth {new} , is one of the largest in the history of {name} .",
            f"Cost savings at {name} will have a positive effect on its {g.one(GAINS)} .",
            f"{name} sees strong demand for {thing} in {place} to continue .",
            f"{name} extends its contract with {other} on {thing} .",
            f"{name} has started to buy back its own shares .",
            f"Our {thing} business developed well and the market situation is good , says {name} .",
        )
    )
    return text, POSITIVE


def _bad(g: Grammar, name: str) -> tuple[str, int]:
    """Warnings, cuts, things that get worse."""
    thing, place = g.one(THINGS), g.one(PLACES)
    jobs = g.random.randint(2, 200) * 10
    text = g.one(
        (
            (
                f"{name} will {g.one(('cut', 'lay off', 'shed', 'reduce its workforce by'))} "
                f"{jobs} {g.one(('jobs', 'employees', 'people'))} in {place} ."
            ),
            f"{name} issued a profit warning and lowered its outlook for {g.one(GAINS)} .",
            (
                f"{name} expects its {g.one(GAINS)} "
                f"to {g.one(('fall', 'decline', 'decrease', 'weaken', 'remain below last year'))}{g.period()} ."
            ),
            f"{name} will close its {thing} plant in {place} .",
            f"Demand for {thing} in {place} has {g.one(('weakened', 'fallen', 'slowed'))} , {name} said .",
            f"{name} did not make a profit{g.period()} .",
            f"{name} failed to raise its {g.one(GAINS)}{g.period()} .",
            f"{name} lost a contract to supply {thing} in {place} .",
            f"The {g.one(GAINS)} of {name} was hurt by higher raw material costs .",
            f"{name} starts talks with staff in {place} on temporary layoffs affecting {jobs} people .",
            f"{name} will pay no dividend because of its losses .",
            f"The market for {thing} in {place} remains difficult , says {name} .",
            f"{name} has cancelled its order for {thing} .",
            f"{name} is being investigated over its {thing} business in {place} .",
            f"A strike halted production of {thing} at {name} in {place} .",
            f"{name} writes down the value of its {thing} unit .",
            f"{name} recalls {thing} because of a fault .",
        )
    )
    return text, NEGATIVE


_RULES: tuple[tuple[Callable[[Grammar, str], tuple[str, int]], int], ...] = (
    (_change, 34),
    (_turn, 5),
    (_level, 22),
    (_fact, 26),
    (_good, 18),
    (_bad, 11),
    (burden, 8),
    (figures_alone, 50),
    (harm_denied, 14),
    (good_denied, 11),
    (rivals, 14),
)


def report_sentences(count: int, *, seed: int = 0) -> list[Example]:
    """`count` sentences with their sentiment; a third asks about the company named in them."""
    grammar = Grammar(seed)
    rules = [rule for rule, _ in _RULES]
    weights = [weight for _, weight in _RULES]
    found: list[Example] = []
    for _ in range(count):
        name = grammar.name()
        (rule,) = grammar.random.choices(rules, weights)
        text, sentiment = rule(grammar, name)
        text = text[0].upper() + text[1:]
        if grammar.random.random() < 0.4:
            text = text.replace(" .", ".").replace(" ,", ",").replace(" 's", "'s").replace("( ", "(").replace(" )", ")")
        at = text.find(name)
        # Of two companies that fare differently the text as a whole says nothing.
        asked = at >= 0 and (grammar.random.random() < 0.5 or rule is rivals)
        found.append(
            Example(
                text=text,
                entity=(at, at + len(name)) if asked else None,
                sentiment=sentiment,
                origin=MADE_UP,
            )
        )
    return found
