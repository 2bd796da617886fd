"""The stories that surges of a replay are made of, as they were at every step of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import msgspec

from monitor.stories import Copies, Story, add_copies
from monitor.surges.counting import Changes
from monitor.surges.keys import MARKET, TOPIC
from monitor.surges.sorts import NEGATIVE, VOLUME

__all__ = ["Evidence"]


class Evidence:
    """Stories by key. A *step* is one call of `remember`: what joins a story later is not told of an earlier one.

    Parameters
    ----------
    surges : the sorts of surge that are looked for; stories of no such surge are passed over.
    """

    def __init__(self, surges: Sequence[str]) -> None:
        self.steps = 0
        self._surges = tuple(surges)
        self._stories: dict[str, dict[str, Story]] = {}
        self._kept: dict[str, dict[str, Story]] = {}
        # By the story's id, with the step that they joined it in.
        self._copies: dict[str, list[tuple[int, Copies]]] = {}

    def remember(self, changes: Changes) -> None:
        """Take up what was counted."""
        self.steps += 1
        for story in changes.stories.values():
            if any(_is_of(story, surge) for surge in self._surges):
                self._stories.setdefault(story.key, {})[story.id] = story
        for id_, copies in changes.copies.items():
            if id_ in self._stories.get(copies.key, ()):
                self._copies.setdefault(id_, []).append((self.steps, copies))

    def of(self, key: str, surge: str, begin: int, end: int, step: int) -> list[Story]:
        """The stories of the sort that surges that were counted under `key` in the epoch minutes from `begin` to before
        `end`, as of `step`, the latest first."""
        found = [
            self._as_of(story, step)
            for story in self._under(key)
            if begin <= story.minute < end and _is_of(story, surge)
        ]
        return sorted(found, key=lambda story: (-story.first.at, story.id))

    def _under(self, key: str) -> Iterator[Story]:
        for held in (self._stories, self._kept):
            keys = [topic for topic in held if topic.startswith(TOPIC)] if key == MARKET else [key]
            for one in keys:
                yield from held.get(one, {}).values()

    def _as_of(self, story: Story, step: int) -> Story:
        joined = [copies for at, copies in self._copies.get(story.id, ()) if at <= step]
        if joined:
            story = msgspec.structs.replace(story)
            for copies in joined:
                add_copies(story, copies)
        return story

    def forget(self, before: int, wanted: Collection[str] = ()) -> None:
        """Forget the stories of minutes before `before`, but keep for good those of the keys that are `wanted`."""
        topics = MARKET in wanted
        for key in list(self._stories):
            stories = self._stories[key]
            old = [id_ for id_, story in stories.items() if story.minute < before]
            keep = key in wanted or (topics and key.startswith(TOPIC))
            for id_ in old:
                story = stories.pop(id_)
                if keep:
                    self._kept.setdefault(key, {})[id_] = story
                else:
                    self._copies.pop(id_, None)
            if not stories:
                del self._stories[key]


def _is_of(story: Story, surge: str) -> bool:
    """Whether a surge of this sort is made of such stories."""
    return surge == VOLUME or (story.first.negative if surge == NEGATIVE else story.first.positive)
