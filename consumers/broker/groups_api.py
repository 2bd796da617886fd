"""Requests of consumer groups and of transactional producers."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from consumers.broker.groups import Group, Groups, GroupState, JoinRequest
from consumers.broker.store import CommittedOffset, TopicPartition
from consumers.broker.topics import Topics
from consumers.broker.transactions import Transactions
from consumers.broker.wire import ErrorCode

__all__ = ["GroupsApi"]

_NO_OFFSET = CommittedOffset(-1, "")


class GroupsApi:
    """Handlers of the group and transaction requests; each takes a request and its response class."""

    def __init__(
        self,
        groups: Groups,
        transactions: Transactions,
        topics: Topics,
        storage_failed: Callable[[Exception], None],
    ) -> None:
        self._groups = groups
        self._transactions = transactions
        self._topics = topics
        self._storage_failed = storage_failed

    def _attempt(self, action: Callable[[], ErrorCode | None]) -> ErrorCode:
        """Run something that stores; a full disk is an error that the client tries again after."""
        try:
            return action() or ErrorCode.NONE
        except (OSError, sqlite3.Error) as failure:
            self._storage_failed(failure)
            return ErrorCode.COORDINATOR_NOT_AVAILABLE

    # Membership

    async def join_group(self, request: Any, response: Any, host: str) -> Any:
        """Wait for the group to gather."""
        group = self._groups.get_or_create(request.group_id)
        rebalance_ms = request.rebalance_timeout_ms
        joined = await group.join(
            JoinRequest(
                group=request.group_id,
                member_id=request.member_id,
                client_id=request.header.client_id or "",
                client_host=host,
                session_timeout_s=request.session_timeout_ms / 1000,
                rebalance_timeout_s=(rebalance_ms if rebalance_ms > 0 else request.session_timeout_ms) / 1000,
                protocol_type=request.protocol_type,
                protocols={protocol.name: bytes(protocol.metadata) for protocol in request.protocols},
                needs_known_id=request.version >= 4,
            )
        )
        return response(
            throttle_time_ms=0,
            error_code=joined.error,
            generation_id=joined.generation,
            protocol_name=joined.protocol,
            leader=joined.leader,
            member_id=joined.member_id,
            members=[
                response.JoinGroupResponseMember(member_id=member_id, group_instance_id=None, metadata=metadata)
                for member_id, metadata in joined.members.items()
            ],
        )

    async def sync_group(self, request: Any, response: Any) -> Any:
        """Wait for the leader's assignment."""
        error, assignment = await self._groups.get_or_create(request.group_id).sync(
            request.member_id,
            request.generation_id,
            {one.member_id: bytes(one.assignment) for one in request.assignments},
        )
        return response(throttle_time_ms=0, error_code=error, assignment=assignment)

    def heartbeat(self, request: Any, response: Any) -> Any:
        """A sign of life."""
        group = self._groups.get(request.group_id)
        error = group.heartbeat(request.member_id, request.generation_id) if group else ErrorCode.UNKNOWN_MEMBER_ID
        return response(throttle_time_ms=0, error_code=error)

    def leave_group(self, request: Any, response: Any) -> Any:
        """Members go."""
        group = self._groups.get_or_create(request.group_id)
        if not request.members:
            return response(throttle_time_ms=0, error_code=group.leave(request.member_id), members=[])
        return response(
            throttle_time_ms=0,
            error_code=ErrorCode.NONE,
            members=[
                response.MemberResponse(
                    member_id=member.member_id, group_instance_id=None, error_code=group.leave(member.member_id)
                )
                for member in request.members
            ],
        )

    # Committed offsets

    def _commit_answer(self, request: Any, topic_response: Any, partition_response: Any, error: ErrorCode) -> list[Any]:
        """One error for all partitions that exist."""
        return [
            topic_response(
                name=topic.name,
                partitions=[
                    partition_response(
                        partition_index=one.partition_index,
                        error_code=error
                        if self._topics.log(topic.name, one.partition_index) is not None
                        else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
                    )
                    for one in topic.partitions
                ],
            )
            for topic in request.topics
        ]

    def _commits(self, request: Any) -> dict[TopicPartition, CommittedOffset]:
        return {
            TopicPartition(topic.name, one.partition_index): CommittedOffset(
                one.committed_offset, one.committed_metadata
            )
            for topic in request.topics
            for one in topic.partitions
            if self._topics.log(topic.name, one.partition_index) is not None
        }

    def offset_commit(self, request: Any, response: Any) -> Any:
        """Store how far a group has come."""
        group = self._groups.get_or_create(request.group_id)
        error = group.check_commit(request.member_id, request.generation_id_or_member_epoch)
        if not error:
            error = self._attempt(lambda: self._groups.commit(request.group_id, self._commits(request)))
        topic_response = response.OffsetCommitResponseTopic
        return response(
            throttle_time_ms=0,
            topics=self._commit_answer(request, topic_response, topic_response.OffsetCommitResponsePartition, error),
        )

    def offset_fetch(self, request: Any, response: Any) -> Any:
        """How far a group has come; of every partition when none is named."""
        group = self._groups.get(request.group_id)
        offsets = group.offsets if group else {}
        if request.topics is None:
            places = sorted(offsets)
        else:
            places = [
                TopicPartition(topic.name, index) for topic in request.topics for index in topic.partition_indexes
            ]
        topic_response = response.OffsetFetchResponseTopic
        answers: dict[str, list[Any]] = {}
        for place in places:
            committed = offsets.get(place, _NO_OFFSET)
            unstable = request.require_stable and self._transactions.has_pending_offsets(request.group_id, place)
            answers.setdefault(place.topic, []).append(
                topic_response.OffsetFetchResponsePartition(
                    partition_index=place.partition,
                    committed_offset=-1 if unstable else committed.offset,
                    committed_leader_epoch=-1,
                    metadata=committed.metadata,
                    error_code=ErrorCode.UNSTABLE_OFFSET_COMMIT if unstable else ErrorCode.NONE,
                )
            )
        return response(
            throttle_time_ms=0,
            error_code=ErrorCode.NONE,
            topics=[topic_response(name=name, partitions=parts) for name, parts in answers.items()],
        )

    def offset_delete(self, request: Any, response: Any) -> Any:
        """Forget how far a group without members has come in some partitions."""
        group = self._groups.get(request.group_id)
        places = [
            TopicPartition(topic.name, one.partition_index) for topic in request.topics for one in topic.partitions
        ]
        if group is None:
            error = ErrorCode.GROUP_ID_NOT_FOUND
        elif group.members:
            error = ErrorCode.NON_EMPTY_GROUP
        else:
            error = self._attempt(lambda: self._groups.forget_offsets(request.group_id, places))
        topic_response = response.OffsetDeleteResponseTopic
        return response(
            throttle_time_ms=0,
            error_code=error,
            topics=[]
            if error
            else self._commit_answer(request, topic_response, topic_response.OffsetDeleteResponsePartition, error),
        )

    # Administration

    def list_groups(self, _request: Any, response: Any) -> Any:
        """All groups."""
        groups = [response.ListedGroup(group_id=group.id, protocol_type=group.protocol_type) for group in self._groups]
        return response(throttle_time_ms=0, error_code=ErrorCode.NONE, groups=groups)

    def describe_groups(self, request: Any, response: Any) -> Any:
        """Members, state and assignments."""
        return response(
            throttle_time_ms=0,
            groups=[self._describe(response, name, self._groups.get(name)) for name in request.groups],
        )

    @staticmethod
    def _describe(response: Any, name: str, group: Group | None) -> Any:
        described = response.DescribedGroup
        return described(
            error_code=ErrorCode.NONE,
            group_id=name,
            group_state=group.state if group else GroupState.DEAD,
            protocol_type=group.protocol_type if group else "",
            protocol_data=group.protocol if group and group.members else "",
            authorized_operations=set(),
            members=[
                described.DescribedGroupMember(
                    member_id=member.id,
                    group_instance_id=None,
                    client_id=member.request.client_id,
                    client_host=member.request.client_host,
                    member_metadata=member.request.protocols.get(group.protocol, b""),
                    member_assignment=member.assignment,
                )
                for member in (group.members.values() if group else ())
            ]
            if group
            else [],
        )

    def delete_groups(self, request: Any, response: Any) -> Any:
        """Delete groups without members."""

        def answer(name: str) -> Any:
            return response.DeletableGroupResult(
                group_id=name, error_code=self._attempt(lambda: self._groups.delete(name))
            )

        return response(throttle_time_ms=0, results=[answer(name) for name in request.groups_names])

    # Transactions

    def init_producer_id(self, request: Any, response: Any) -> Any:
        """A producer starts."""
        answer: list[tuple[ErrorCode, int, int]] = []

        def begin() -> ErrorCode:
            answer.append(self._transactions.init_producer(request.transactional_id, request.transaction_timeout_ms))
            return answer[0][0]

        error = self._attempt(begin)
        _, producer_id, epoch = answer[0] if answer else (error, -1, -1)
        return response(throttle_time_ms=0, error_code=error, producer_id=producer_id, producer_epoch=epoch)

    def add_partitions_to_txn(self, request: Any, response: Any) -> Any:
        """Partitions of a transaction: all of them, or, if one does not exist, none."""
        places = [
            TopicPartition(topic.name, partition)
            for topic in request.v3_and_below_topics
            for partition in topic.partitions
        ]
        if any(self._topics.log(*place) is None for place in places):
            error = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        else:
            error = self._attempt(
                lambda: self._transactions.add_partitions(
                    request.v3_and_below_transactional_id,
                    request.v3_and_below_producer_id,
                    request.v3_and_below_producer_epoch,
                    places,
                )
            )
        result = response.AddPartitionsToTxnTopicResult
        return response(
            throttle_time_ms=0,
            results_by_topic_v3_and_below=[
                result(
                    name=topic.name,
                    results_by_partition=[
                        result.AddPartitionsToTxnPartitionResult(partition_index=index, partition_error_code=error)
                        for index in topic.partitions
                    ],
                )
                for topic in request.v3_and_below_topics
            ],
        )

    def add_offsets_to_txn(self, request: Any, response: Any) -> Any:
        """A group whose offsets belong to a transaction."""
        error = self._attempt(
            lambda: self._transactions.add_group(
                request.transactional_id, request.producer_id, request.producer_epoch, request.group_id
            )
        )
        return response(throttle_time_ms=0, error_code=error)

    def txn_offset_commit(self, request: Any, response: Any) -> Any:
        """Offsets of a transaction; from a consumer that has lost its partitions they are refused."""
        error = ErrorCode.NONE
        if request.member_id or request.generation_id >= 0:
            group = self._groups.get_or_create(request.group_id)
            error = group.check_commit(request.member_id, request.generation_id)
        if not error:
            error = self._attempt(
                lambda: self._transactions.add_offsets(
                    request.transactional_id,
                    request.producer_id,
                    request.producer_epoch,
                    request.group_id,
                    self._commits(request),
                )
            )
        topic_response = response.TxnOffsetCommitResponseTopic
        return response(
            throttle_time_ms=0,
            topics=self._commit_answer(request, topic_response, topic_response.TxnOffsetCommitResponsePartition, error),
        )

    def end_txn(self, request: Any, response: Any) -> Any:
        """Commit or abort."""
        error = self._attempt(
            lambda: self._transactions.end(
                request.transactional_id, request.producer_id, request.producer_epoch, commit=request.committed
            )
        )
        return response(throttle_time_ms=0, error_code=error)
