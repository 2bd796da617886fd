"""What waits to be scored, and how it is cut into batches: by items, tokens and images, long texts apart.

A batch is stored as a whole. A headline that shares one with articles would wait until these are scored.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from consumers.intake import Origin, weight
from models.engine.items import MAX_ENTITIES
from models.tokens import ENTITY_TOKENS, MAX_TOKENS
from monitor.pairing import Group
from monitor.settings import Settings

__all__ = ["Backlog", "tokens_of"]

# About so many characters make a token.
TOKEN_CHARS: Final = 4
# A headline names one company; every so many characters there is one more.
COMPANY_CHARS: Final = 200
# Of a text that names several one sentence each is read.
SENTENCE_TOKENS: Final = 32
# A picture takes about as long as a text of so many tokens.
IMAGE_TOKENS: Final = 128
# Longer ones take more than one pass of the model even by themselves.
LONG_TOKENS: Final = 256


def tokens_of(group: Group[Origin]) -> int:
    """About how much work a group is, before it is split into tokens."""
    found = IMAGE_TOKENS * len(group.charts)
    if group.item is not None:
        chars = len(group.item.title) + len(group.item.body)
        read = min(chars // TOKEN_CHARS + 1, MAX_TOKENS)
        companies = min(max(len(group.item.tickers), 1 + chars // COMPANY_CHARS), MAX_ENTITIES)
        found += read + companies * min(read, SENTENCE_TOKENS if companies > 1 else ENTITY_TOKENS)
    return found


class Backlog:
    """Groups in the order of their coming, long ones apart.

    A batch has at most the items that the settings say, twice the tokens of one pass and twice its images; but a group
    that exceeds them alone.

    Parameters
    ----------
    token_budget : tokens of one pass, on the device that scores (`Scoring.token_budget`).
    """

    def __init__(self, settings: Settings, token_budget: int) -> None:
        self._items = settings.worker_batch_items
        self._tokens = 2 * token_budget
        self._images = 2 * settings.worker_image_budget
        self._waiting: dict[bool, deque[tuple[Group[Origin], int]]] = {False: deque(), True: deque()}
        self._sums = {False: 0, True: 0}
        # Where groups of an item wait, and how many: a later version must not be scored before an earlier one.
        self._places: dict[str, tuple[bool, int]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        """Groups that wait."""
        return sum(map(len, self._waiting.values()))

    def add(self, group: Group[Origin]) -> None:
        """One more at the end, behind what else waits of the same item."""
        tokens = tokens_of(group)
        long, others = self._places.get(group.key, (tokens > LONG_TOKENS, 0))
        self._places[group.key] = long, others + 1
        self._waiting[long].append((group, tokens))
        self._sums[long] += tokens
        self.bytes += weight(group)

    def clear(self) -> None:
        """Forget everything: it will be read again."""
        self._places.clear()
        for long, waiting in self._waiting.items():
            waiting.clear()
            self._sums[long] = 0
        self.bytes = 0

    def waits(self, *, long: bool) -> bool:
        """There is something."""
        return bool(self._waiting[long])

    def full(self, *, long: bool) -> bool:
        """There is enough for a whole batch."""
        return len(self._waiting[long]) >= self._items or self._sums[long] >= self._tokens

    def take(self, *, long: bool) -> list[Group[Origin]]:
        """The next batch."""
        waiting = self._waiting[long]
        found: list[Group[Origin]] = []
        tokens = images = 0
        while waiting and len(found) < self._items:
            group, more = waiting[0]
            tokens += more
            images += len(group.charts)
            if found and (tokens > self._tokens or images > self._images):
                break
            waiting.popleft()
            found.append(group)
            _, others = self._places.pop(group.key)
            if others > 1:
                self._places[group.key] = long, others - 1
            self._sums[long] -= more
            self.bytes -= weight(group)
        return found
