"""Consumer groups: the classic group protocol (join, sync, heartbeat, leave) and committed offsets.

A group goes Empty -> PreparingRebalance (members join) -> CompletingRebalance (the leader assigns) -> Stable, and back
to PreparingRebalance when a member comes, leaves or falls silent. Everything runs on one event loop; members that wait
for others wait on futures. Committed offsets are stored, memberships are not: after a restart members join again.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeVar

from consumers.broker.store import CommittedOffset, MetadataStore, TopicPartition
from consumers.broker.wire import ErrorCode

__all__ = ["Group", "GroupState", "Groups", "JoinRequest", "Joined", "Member"]

# The first members of a group come one after the other: a short wait saves a rebalance for each.
INITIAL_DELAY_S: Final = 0.1
MAX_SESSION_S: Final = 1800.0

_T = TypeVar("_T")


class GroupState(StrEnum):
    """States under the names that Kafka gives them."""

    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"
    COMPLETING = "CompletingRebalance"
    STABLE = "Stable"
    DEAD = "Dead"


@dataclass(frozen=True)
class JoinRequest:
    """What a member says when it joins; times in seconds, protocols in its order of preference."""

    group: str
    member_id: str
    client_id: str
    client_host: str
    session_timeout_s: float
    rebalance_timeout_s: float
    protocol_type: str
    protocols: Mapping[str, bytes]
    needs_known_id: bool


@dataclass(frozen=True)
class Joined:
    """The answer to a join. `members` (id -> metadata) goes to the leader alone."""

    error: ErrorCode
    member_id: str
    generation: int = -1
    protocol: str = ""
    leader: str = ""
    members: Mapping[str, bytes] = field(default_factory=dict)


@dataclass
class Member:
    """One consumer of a group. `seen` is the monotonic time of its last sign of life."""

    id: str
    request: JoinRequest
    seen: float
    assignment: bytes = b""
    joining: asyncio.Future[Joined] | None = None
    syncing: asyncio.Future[ErrorCode] | None = None

    @property
    def waiting(self) -> bool:
        """It waits for an answer of ours, and so cannot send heartbeats."""
        return any(future is not None and not future.done() for future in (self.joining, self.syncing))


class Group:
    """One consumer group."""

    def __init__(self, group_id: str) -> None:
        self.id = group_id
        self.state = GroupState.EMPTY
        self.generation = 0
        self.protocol_type = ""
        self.protocol = ""
        self.leader = ""
        self.members: dict[str, Member] = {}
        self.offsets: dict[TopicPartition, CommittedOffset] = {}
        self._promised: dict[str, float] = {}
        self._rebalance_began = 0.0

    # Joining

    async def join(self, request: JoinRequest) -> Joined:
        """Wait until the group is complete. A member without an id gets one and has to come back with it, so that
        one whose connection breaks meanwhile leaves no ghost behind."""
        if not request.group:
            return Joined(ErrorCode.INVALID_GROUP_ID, request.member_id)
        if not 0 < request.session_timeout_s <= MAX_SESSION_S:
            return Joined(ErrorCode.INVALID_SESSION_TIMEOUT, request.member_id)
        if not self._fits(request):
            return Joined(ErrorCode.INCONSISTENT_GROUP_PROTOCOL, request.member_id)
        now, member_id = time.monotonic(), request.member_id
        if not member_id:
            member_id = f"{request.client_id}-{uuid.uuid4()}"
            if request.needs_known_id:
                self._promised[member_id] = now + request.session_timeout_s
                return Joined(ErrorCode.MEMBER_ID_REQUIRED, member_id)
        elif member_id not in self.members and self._promised.pop(member_id, None) is None:
            return Joined(ErrorCode.UNKNOWN_MEMBER_ID, member_id)
        member = self.members.get(member_id)
        if member is None:
            member = self.members[member_id] = Member(member_id, request, now)
        elif member.request.protocols == request.protocols and (
            self.state is GroupState.COMPLETING or (self.state is GroupState.STABLE and member_id != self.leader)
        ):
            # It has not seen the last answer: tell it again instead of starting all over for everybody.
            member.seen = now
            return self._joined(member)
        member.request, member.seen = request, now
        self.protocol_type = request.protocol_type
        _resolve(member.joining, Joined(ErrorCode.REBALANCE_IN_PROGRESS, member_id))
        answer: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
        member.joining = answer
        if self.state is not GroupState.PREPARING:
            self._begin_rebalance(INITIAL_DELAY_S if self.state is GroupState.EMPTY else 0.0)
        self._complete_join()
        try:
            return await answer
        except asyncio.CancelledError:
            if member.joining is answer:
                member.joining = None  # its connection broke: the session time-out decides
            raise

    def _fits(self, request: JoinRequest) -> bool:
        others = [member for member in self.members.values() if member.id != request.member_id]
        if not request.protocols or (others and request.protocol_type != self.protocol_type):
            return False
        return bool(set(request.protocols).intersection(*(other.request.protocols for other in others)))

    def _begin_rebalance(self, delay_s: float) -> None:
        self.state = GroupState.PREPARING
        self._rebalance_began = time.monotonic()
        for member in self.members.values():
            _resolve(member.syncing, ErrorCode.REBALANCE_IN_PROGRESS)
            member.syncing = None
        if delay_s:
            self._rebalance_began += delay_s
            asyncio.get_running_loop().call_later(delay_s, self._complete_join)

    def _complete_join(self) -> None:
        now = time.monotonic()
        if self.state is not GroupState.PREPARING or now < self._rebalance_began:
            return
        missing = [member for member in self.members.values() if member.joining is None]
        patience = max((member.request.rebalance_timeout_s for member in self.members.values()), default=0.0)
        if missing and now < self._rebalance_began + patience:
            return
        for member in missing:
            del self.members[member.id]
        self.generation += 1
        if not self.members:
            self.state = GroupState.EMPTY
            return
        if self.leader not in self.members:
            self.leader = next(iter(self.members))
        self.protocol = self._vote()
        self.state = GroupState.COMPLETING
        for member in self.members.values():
            _resolve(member.joining, self._joined(member))
            member.joining = None
            member.seen = now

    def _joined(self, member: Member) -> Joined:
        leads = member.id == self.leader
        others = {one.id: one.request.protocols[self.protocol] for one in self.members.values()} if leads else {}
        return Joined(ErrorCode.NONE, member.id, self.generation, self.protocol, self.leader, others)

    def _vote(self) -> str:
        """The protocol that all members know and that the leader likes best."""
        common = set.intersection(*(set(member.request.protocols) for member in self.members.values()))
        return next(name for name in self.members[self.leader].request.protocols if name in common)

    # Being a member

    def check(self, member_id: str, generation: int) -> ErrorCode:
        """Whether this is a member of this generation; a sign of life if it is."""
        member = self.members.get(member_id)
        if member is None:
            return ErrorCode.UNKNOWN_MEMBER_ID
        if generation != self.generation:
            return ErrorCode.ILLEGAL_GENERATION
        member.seen = time.monotonic()
        return ErrorCode.NONE

    async def sync(self, member_id: str, generation: int, assignments: Mapping[str, bytes]) -> tuple[ErrorCode, bytes]:
        """The member's assignment, once the leader has sent all of them."""
        error = self.check(member_id, generation)
        if not error and self.state is GroupState.PREPARING:
            error = ErrorCode.REBALANCE_IN_PROGRESS
        if error:
            return error, b""
        member = self.members[member_id]
        if self.state is GroupState.COMPLETING:
            if member_id != self.leader:
                _resolve(member.syncing, ErrorCode.REBALANCE_IN_PROGRESS)
                member.syncing = asyncio.get_running_loop().create_future()
                error = await member.syncing
                return error, b"" if error else member.assignment
            self.state = GroupState.STABLE
            for other in self.members.values():
                other.assignment = assignments.get(other.id, b"")
                other.seen = time.monotonic()
                _resolve(other.syncing, ErrorCode.NONE)
                other.syncing = None
        return ErrorCode.NONE, member.assignment

    def heartbeat(self, member_id: str, generation: int) -> ErrorCode:
        """A sign of life; tells the member when it has to join again."""
        error = self.check(member_id, generation)
        return ErrorCode.REBALANCE_IN_PROGRESS if not error and self.state is GroupState.PREPARING else error

    def leave(self, member_id: str) -> ErrorCode:
        """The member goes; the others share its partitions."""
        self._promised.pop(member_id, None)
        return self._remove([member_id]) if member_id in self.members else ErrorCode.UNKNOWN_MEMBER_ID

    def _remove(self, member_ids: list[str]) -> ErrorCode:
        for member_id in member_ids:
            member = self.members.pop(member_id)
            _resolve(member.joining, Joined(ErrorCode.UNKNOWN_MEMBER_ID, member_id))
            _resolve(member.syncing, ErrorCode.UNKNOWN_MEMBER_ID)
        if self.state is not GroupState.PREPARING:
            self._begin_rebalance(0.0)
        self._complete_join()
        return ErrorCode.NONE

    def expire(self, now: float, pause: float) -> None:
        """Remove members that have been silent too long. `pause` is time during which the broker itself slept, and
        which nobody could have sent anything in."""
        for member in self.members.values():
            member.seen += pause
        self._promised = {name: until + pause for name, until in self._promised.items() if until + pause > now}
        silent = [
            member.id
            for member in self.members.values()
            if not member.waiting and now - member.seen > member.request.session_timeout_s
        ]
        if silent:
            self._remove(silent)
        self._complete_join()

    def check_commit(self, member_id: str, generation: int) -> ErrorCode:
        """Whether offsets may be committed: by a member of this generation, or by anybody when there is none."""
        if generation < 0 and not self.members:
            return ErrorCode.NONE
        error = self.check(member_id, generation)
        return ErrorCode.REBALANCE_IN_PROGRESS if not error and self.state is GroupState.COMPLETING else error


def _resolve(future: asyncio.Future[_T] | None, value: _T) -> None:
    if future is not None and not future.done():
        future.set_result(value)


class Groups:
    """All groups and their committed offsets. Methods that commit raise `sqlite3.Error` when the disk is full."""

    def __init__(self, store: MetadataStore) -> None:
        self._store = store
        self._groups: dict[str, Group] = {}
        for group_id, offsets in store.offsets().items():
            self.get_or_create(group_id).offsets.update(offsets)

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def get(self, group_id: str) -> Group | None:
        """A group that has, or had, members or committed offsets."""
        return self._groups.get(group_id)

    def get_or_create(self, group_id: str) -> Group:
        """A group, made when it is named for the first time."""
        return self._groups.setdefault(group_id, Group(group_id))

    def commit(self, group_id: str, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Store how far a group has come."""
        self._store.save_offsets(group_id, offsets)
        self.get_or_create(group_id).offsets.update(offsets)

    def forget_offsets(self, group_id: str, places: Iterable[TopicPartition]) -> None:
        """Forget how far a group has come in some partitions."""
        group, gone = self.get_or_create(group_id), list(places)
        self._store.delete_offsets(group_id, gone)
        for place in gone:
            group.offsets.pop(place, None)

    def forget_topic(self, topic: str) -> None:
        """A topic is gone: so are the places in it (the store forgets them with the topic)."""
        for group in self:
            group.offsets = {place: at for place, at in group.offsets.items() if place.topic != topic}

    def delete(self, group_id: str) -> ErrorCode:
        """Delete a group without members, with its offsets."""
        group = self._groups.get(group_id)
        if group is None:
            return ErrorCode.GROUP_ID_NOT_FOUND
        if group.members:
            return ErrorCode.NON_EMPTY_GROUP
        self._store.delete_offsets(group_id, group.offsets)
        del self._groups[group_id]
        return ErrorCode.NONE

    def expire(self, now: float, pause: float) -> None:
        """Let every group look for silent members."""
        for group in tuple(self):
            group.expire(now, pause)
