"""Requests about records: produce, fetch, offsets by time, deletion."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Final

from consumers.broker.log import OffsetOutOfRangeError, PartitionLog
from consumers.broker.producers import SequenceError
from consumers.broker.store import TopicPartition
from consumers.broker.topics import RefusedError, Topics
from consumers.broker.transactions import Transactions
from consumers.broker.wire import BatchHeader, CorruptBatchError, ErrorCode

__all__ = ["RecordsApi"]

_LATEST, _EARLIEST = -1, -2
_READ_COMMITTED: Final = 1
# What a client allows for may be huge: an answer stays below this, unless a single batch is larger.
MAX_FETCH_BYTES: Final = 16 << 20


class RecordsApi:
    """Handlers of the data requests; each takes a request and its response class and returns the response.

    `storage_failed` is told of errors of the disk; the client gets KAFKA_STORAGE_ERROR and tries again.
    """

    def __init__(self, topics: Topics, transactions: Transactions, storage_failed: Callable[[Exception], None]) -> None:
        self._topics = topics
        self._transactions = transactions
        self._storage_failed = storage_failed
        self._fetches = 0

    # Produce

    def produce(self, request: Any, response: Any) -> Any:
        """Append; None when the producer wants no answer (acks=0)."""
        topic_response = response.TopicProduceResponse
        answers = [
            topic_response(
                name=topic.name,
                partition_responses=[
                    self._produce(
                        topic_response.PartitionProduceResponse, topic.name, partition.index, partition.records
                    )
                    for partition in topic.partition_data
                ],
            )
            for topic in request.topic_data
        ]
        return response(responses=answers, throttle_time_ms=0) if request.acks else None

    def _produce(self, answer: Any, name: str, partition: int, records: bytes) -> Any:
        log = self._topics.log(name, partition)
        error, base = ErrorCode.NONE, -1
        if log is None:
            error = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        else:
            error, base = self._append(log, TopicPartition(name, partition), bytes(records or b""))
        return answer(
            index=partition,
            error_code=error,
            base_offset=base,
            log_append_time_ms=-1,
            log_start_offset=log.start_offset if log else -1,
            record_errors=[],
            error_message=None,
        )

    def _append(self, log: PartitionLog, place: TopicPartition, records: bytes) -> tuple[ErrorCode, int]:
        topic = self._topics.get(place.topic)
        if topic is None or len(records) > topic.number("max.message.bytes"):
            return ErrorCode.MESSAGE_TOO_LARGE, -1
        try:
            header = BatchHeader.read(records)
            if header.transactional:
                error = self._transactions.may_write(header.producer_id, header.producer_epoch, place)
                if error:
                    return error, -1
            return ErrorCode.NONE, log.append(records)
        except (CorruptBatchError, SequenceError) as refused:
            return refused.code, -1
        except OSError as error:
            self._storage_failed(error)
            return ErrorCode.KAFKA_STORAGE_ERROR, -1

    # Fetch

    async def fetch(self, request: Any, response: Any) -> Any:
        """Records of some partitions; waits for `min_bytes` of them, but no longer than `max_wait_ms`."""
        deadline = time.monotonic() + request.max_wait_ms / 1000
        while True:
            size, failed, answers = self._read(request, response)
            left = deadline - time.monotonic()
            if size >= max(1, request.min_bytes) or failed or left <= 0:
                return response(throttle_time_ms=0, error_code=ErrorCode.NONE, session_id=0, responses=answers)
            await self._wait_for_more(request, left)

    async def _wait_for_more(self, request: Any, seconds: float) -> None:
        more = asyncio.Event()
        logs = [
            log
            for topic in request.topics
            for partition in topic.partitions
            if (log := self._topics.log(topic.topic, partition.partition)) is not None
        ]
        for log in logs:
            log.listen(more.set)
        try:
            async with asyncio.timeout(seconds):
                await more.wait()
        except TimeoutError:
            return
        finally:
            for log in logs:
                log.unlisten(more.set)

    def _read(self, request: Any, response: Any) -> tuple[int, bool, list[Any]]:
        """Bytes read, whether a partition had an error, and the answers."""
        wanted = [(topic.topic, partition) for topic in request.topics for partition in topic.partitions]
        # Begin with another partition each time: a full answer must not always be full of the same ones.
        self._fetches += 1
        turn = self._fetches % max(1, len(wanted))
        room, size, failed = min(request.max_bytes, MAX_FETCH_BYTES), 0, False
        committed = request.isolation_level == _READ_COMMITTED
        answers: dict[str, list[Any]] = {}
        data = response.FetchableTopicResponse.PartitionData
        for name, partition in wanted[turn:] + wanted[:turn]:
            allowed = min(partition.partition_max_bytes, room - size) if size < room else 0
            answer = self._read_partition(data, name, partition, allowed, committed=committed)
            size += len(answer.records)
            failed |= answer.error_code != ErrorCode.NONE
            answers.setdefault(name, []).append(answer)
        return size, failed, [
            response.FetchableTopicResponse(topic=name, partitions=parts) for name, parts in answers.items()
        ]  # fmt: skip

    def _read_partition(self, data: Any, name: str, wanted: Any, max_bytes: int, *, committed: bool) -> Any:
        log = self._topics.log(name, wanted.partition)
        error, records, aborted = ErrorCode.NONE, b"", None
        if log is None:
            error = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        else:
            try:
                up_to = log.last_stable_offset if committed else log.next_offset
                if max_bytes > 0 or not log.start_offset <= wanted.fetch_offset <= log.next_offset:
                    records = log.read(wanted.fetch_offset, max_bytes, up_to)
            except OffsetOutOfRangeError:
                error = ErrorCode.OFFSET_OUT_OF_RANGE
            except (OSError, CorruptBatchError) as failure:
                self._storage_failed(failure)
                error = ErrorCode.KAFKA_STORAGE_ERROR
            if committed:
                aborted = [
                    data.AbortedTransaction(producer_id=one.producer_id, first_offset=one.first_offset)
                    for one in log.producers.aborted_from(wanted.fetch_offset)
                ]
        return data(
            partition_index=wanted.partition,
            error_code=error,
            high_watermark=log.next_offset if log else -1,
            last_stable_offset=log.last_stable_offset if log else -1,
            log_start_offset=log.start_offset if log else -1,
            aborted_transactions=aborted,
            preferred_read_replica=-1,
            records=records,
        )

    # Offsets

    def list_offsets(self, request: Any, response: Any) -> Any:
        """Earliest, latest, or the first at or after a time."""
        topic_response = response.ListOffsetsTopicResponse
        return response(
            throttle_time_ms=0,
            topics=[
                topic_response(
                    name=topic.name,
                    partitions=[
                        self._list_offset(
                            topic_response.ListOffsetsPartitionResponse, topic.name, partition, request.isolation_level
                        )
                        for partition in topic.partitions
                    ],
                )
                for topic in request.topics
            ],
        )

    def _list_offset(self, answer: Any, name: str, wanted: Any, isolation: int) -> Any:
        log = self._topics.log(name, wanted.partition_index)
        error, offset, timestamp = ErrorCode.NONE, -1, -1
        if log is None:
            error = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        elif wanted.timestamp == _LATEST:
            offset = log.last_stable_offset if isolation == _READ_COMMITTED else log.next_offset
        elif wanted.timestamp == _EARLIEST:
            offset = log.start_offset
        else:
            try:
                offset, timestamp = log.offset_at(wanted.timestamp) or (-1, -1)
            except (OSError, CorruptBatchError) as failure:
                self._storage_failed(failure)
                error = ErrorCode.KAFKA_STORAGE_ERROR
        return answer(
            partition_index=wanted.partition_index,
            error_code=error,
            timestamp=timestamp,
            offset=offset,
            leader_epoch=0 if offset >= 0 else -1,
            old_style_offsets=[offset] if offset >= 0 else [],
        )

    def offset_for_leader_epoch(self, request: Any, response: Any) -> Any:
        """Where the only epoch there is ends: at the log's end."""
        result = response.OffsetForLeaderTopicResult

        def answer(name: str, partition: int) -> Any:
            log = self._topics.log(name, partition)
            return result.EpochEndOffset(
                error_code=ErrorCode.NONE if log else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
                partition=partition,
                leader_epoch=0 if log else -1,
                end_offset=log.next_offset if log else -1,
            )

        return response(
            throttle_time_ms=0,
            topics=[
                result(topic=topic.topic, partitions=[answer(topic.topic, one.partition) for one in topic.partitions])
                for topic in request.topics
            ],
        )

    def delete_records(self, request: Any, response: Any) -> Any:
        """Forget the records below an offset."""
        result = response.DeleteRecordsTopicResult

        def answer(name: str, partition: int, offset: int) -> Any:
            error, low = ErrorCode.NONE, -1
            try:
                low = self._topics.delete_records(name, partition, offset)
            except RefusedError as refused:
                error = refused.code
            except OffsetOutOfRangeError:
                error = ErrorCode.OFFSET_OUT_OF_RANGE
            except (OSError, sqlite3.Error) as failure:
                self._storage_failed(failure)
                error = ErrorCode.KAFKA_STORAGE_ERROR
            return result.DeleteRecordsPartitionResult(partition_index=partition, low_watermark=low, error_code=error)

        return response(
            throttle_time_ms=0,
            topics=[
                result(
                    name=topic.name,
                    partitions=[answer(topic.name, one.partition_index, one.offset) for one in topic.partitions],
                )
                for topic in request.topics
            ],
        )
