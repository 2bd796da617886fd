"""The Kafka protocol as the broker speaks it: which requests in which versions, frames, error codes, record batches.

Requests and responses are kafka-python's own message classes, generated from Apache Kafka's message definitions.
Record batches (magic 2, KIP-98) are never taken apart: only their fixed header is read, and of that only the base
offset and the leader epoch are rewritten, neither of which is under the checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from enum import IntEnum
from typing import Any, Final, NamedTuple

import kafka.protocol.admin
import kafka.protocol.consumer
import kafka.protocol.metadata
import kafka.protocol.producer
from crc32c import crc32c
from typing_extensions import Buffer

__all__ = [
    "APIS",
    "HEADER_BYTES",
    "NODE_ID",
    "NO_PRODUCER",
    "Api",
    "BatchHeader",
    "CorruptBatchError",
    "ErrorCode",
    "api_versions_response",
    "control_batch",
    "encode_response",
    "is_commit_marker",
    "split_batches",
    "stamp_batch",
]

NODE_ID: Final = 1
NO_PRODUCER: Final = -1


class ErrorCode(IntEnum):
    """The protocol's error codes that this broker answers with."""

    UNKNOWN_SERVER_ERROR = -1
    NONE = 0
    OFFSET_OUT_OF_RANGE = 1
    CORRUPT_MESSAGE = 2
    UNKNOWN_TOPIC_OR_PARTITION = 3
    MESSAGE_TOO_LARGE = 10
    COORDINATOR_NOT_AVAILABLE = 15
    INVALID_TOPIC = 17
    ILLEGAL_GENERATION = 22
    INCONSISTENT_GROUP_PROTOCOL = 23
    INVALID_GROUP_ID = 24
    UNKNOWN_MEMBER_ID = 25
    INVALID_SESSION_TIMEOUT = 26
    REBALANCE_IN_PROGRESS = 27
    UNSUPPORTED_VERSION = 35
    TOPIC_ALREADY_EXISTS = 36
    INVALID_PARTITIONS = 37
    INVALID_REPLICATION_FACTOR = 38
    INVALID_CONFIG = 40
    INVALID_REQUEST = 42
    UNSUPPORTED_FOR_MESSAGE_FORMAT = 43
    OUT_OF_ORDER_SEQUENCE_NUMBER = 45
    INVALID_PRODUCER_EPOCH = 47
    INVALID_TXN_STATE = 48
    INVALID_PRODUCER_ID_MAPPING = 49
    INVALID_TRANSACTION_TIMEOUT = 50
    KAFKA_STORAGE_ERROR = 56
    NON_EMPTY_GROUP = 68
    GROUP_ID_NOT_FOUND = 69
    MEMBER_ID_REQUIRED = 79
    INVALID_RECORD = 87
    UNSTABLE_OFFSET_COMMIT = 88


class Api(NamedTuple):
    """One kind of request: its message classes and the versions that are answered."""

    name: str
    request: Any
    response: Any
    oldest: int
    newest: int


# The newest version of each is the last one before topic ids, static membership or fetch by epoch come in:
# clients take the newest version both sides know, and none of these is needed by them.
_VERSIONS: Final = {
    "Produce": (3, 8),
    "Fetch": (4, 11),
    "ListOffsets": (1, 5),
    "Metadata": (0, 8),
    "OffsetCommit": (2, 6),
    "OffsetFetch": (1, 7),
    "FindCoordinator": (0, 2),
    "JoinGroup": (0, 4),
    "Heartbeat": (0, 2),
    "LeaveGroup": (0, 3),
    "SyncGroup": (0, 2),
    "DescribeGroups": (0, 3),
    "ListGroups": (0, 2),
    "ApiVersions": (0, 4),
    "CreateTopics": (0, 5),
    "DeleteTopics": (0, 3),
    "DeleteRecords": (0, 1),
    "InitProducerId": (0, 1),
    "OffsetForLeaderEpoch": (0, 3),
    "AddPartitionsToTxn": (0, 1),
    "AddOffsetsToTxn": (0, 1),
    "EndTxn": (0, 1),
    "TxnOffsetCommit": (0, 3),
    "DescribeConfigs": (0, 2),
    "IncrementalAlterConfigs": (0, 0),
    "CreatePartitions": (0, 1),
    "DeleteGroups": (0, 1),
    "OffsetDelete": (0, 0),
}


def _find(name: str) -> Any:
    rooms = (kafka.protocol.consumer, kafka.protocol.producer, kafka.protocol.metadata, kafka.protocol.admin)
    return next(getattr(room, name) for room in rooms if hasattr(room, name))


APIS: Final[dict[int, Api]] = {
    api.request.API_KEY: api
    for api in (
        Api(name, _find(f"{name}Request"), _find(f"{name}Response"), oldest, newest)
        for name, (oldest, newest) in _VERSIONS.items()
    )
}


def encode_response(response: Any, version: int, correlation_id: int) -> bytes:
    """A response as a frame: size, header, body. The order of these calls is what kafka-python's classes need."""
    response.API_VERSION = version
    response.with_header(correlation_id)
    return bytes(response.encode(header=True, framed=True))


def api_versions_response(version: int, correlation_id: int) -> bytes:
    """The answer to the first question of every client; to a version from the future, the oldest form and error 35."""
    response = kafka.protocol.metadata.ApiVersionsResponse
    unknown = version > _VERSIONS["ApiVersions"][1]
    used = 0 if unknown else version
    body = response(
        version=used,
        error_code=ErrorCode.UNSUPPORTED_VERSION if unknown else ErrorCode.NONE,
        throttle_time_ms=0,
        api_keys=[
            response.ApiVersion(api_key=key, min_version=api.oldest, max_version=api.newest)
            for key, api in APIS.items()
        ],
    )
    return encode_response(body, used, correlation_id)


_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES: Final = _HEADER.size
_BEFORE_LENGTH: Final = 12
_UNDER_CRC: Final = 21
_MAGIC: Final = 2
_TRANSACTIONAL: Final = 0x10
_CONTROL: Final = 0x20


class CorruptBatchError(Exception):
    """Bytes that are no whole, undamaged record batch of magic 2. `code` is what a client is told."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class BatchHeader(NamedTuple):
    """The 61 bytes before a batch's records (https://kafka.apache.org/documentation/#recordbatch).

    `length` counts the bytes after itself; times are epoch milliseconds; `producer_id` is -1 without idempotence.
    """

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @classmethod
    def read(cls, data: bytes | bytearray | memoryview, at: int = 0) -> BatchHeader:
        """From the bytes at `at`; raises `CorruptBatchError` when there are too few or they make no sense."""
        if len(data) - at < _HEADER.size:
            raise CorruptBatchError(ErrorCode.CORRUPT_MESSAGE, "fewer bytes than a batch's header")
        header = cls._make(_HEADER.unpack_from(data, at))
        if header.magic != _MAGIC:
            raise CorruptBatchError(ErrorCode.UNSUPPORTED_FOR_MESSAGE_FORMAT, f"message format {header.magic}")
        if header.size < _HEADER.size or header.last_offset_delta < 0:
            raise CorruptBatchError(ErrorCode.CORRUPT_MESSAGE, "impossible size or offsets")
        return header

    @property
    def size(self) -> int:
        """Bytes of the whole batch."""
        return _BEFORE_LENGTH + self.length

    @property
    def next_offset(self) -> int:
        """Offset after the batch's last record."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def last_sequence(self) -> int:
        """Sequence number of the last record; they wrap after 2^31 - 1."""
        return (self.base_sequence + self.last_offset_delta) & 0x7FFFFFFF

    @property
    def transactional(self) -> bool:
        """Part of a transaction, or the marker that ends one."""
        return bool(self.attributes & _TRANSACTIONAL)

    @property
    def control(self) -> bool:
        """A marker and no data."""
        return bool(self.attributes & _CONTROL)


def split_batches(records: Buffer, *, check_crc: bool = True) -> Generator[tuple[int, BatchHeader], None, None]:
    """Position and header of each batch in `records`. Raises `CorruptBatchError` at the first that is not whole."""
    view = memoryview(records)
    position = 0
    while position < len(view):
        header = BatchHeader.read(view, position)
        end = position + header.size
        if end > len(view):
            raise CorruptBatchError(ErrorCode.CORRUPT_MESSAGE, "the batch is cut off")
        if check_crc and crc32c(view[position + _UNDER_CRC : end]) != header.crc:
            raise CorruptBatchError(ErrorCode.CORRUPT_MESSAGE, "the batch's checksum is wrong")
        yield position, header
        position = end


def stamp_batch(batch: bytearray, base_offset: int) -> None:
    """Give a producer's batch its place in the log: base offset and leader epoch, in place."""
    struct.pack_into(">q", batch, 0, base_offset)
    struct.pack_into(">i", batch, _BEFORE_LENGTH, 0)


_ABORT, _COMMIT = 0, 1
# A marker's only record: length, attributes, two zero deltas, key length, then the key: version and kind.
_MARKER_KIND: Final = struct.Struct(">h")
_MARKER_KIND_AT: Final = _HEADER.size + 5 + 2


def control_batch(producer_id: int, producer_epoch: int, *, commit: bool, at_ms: int) -> bytearray:
    """The marker that ends a producer's transaction in one partition."""

    def varint(value: int) -> bytes:
        return bytes([value << 1])  # zigzag; every number here is below 64

    key = struct.pack(">hh", 0, _COMMIT if commit else _ABORT)
    value = struct.pack(">hi", 0, 0)
    body = b"\x00" + varint(0) * 2 + varint(len(key)) + key + varint(len(value)) + value + varint(0)
    record = varint(len(body)) + body
    tail = struct.pack(
        ">hiqqqhii", _TRANSACTIONAL | _CONTROL, 0, at_ms, at_ms, producer_id, producer_epoch, -1, 1
    ) + record  # fmt: skip
    head = struct.pack(">qiibI", 0, _UNDER_CRC - _BEFORE_LENGTH + len(tail), 0, _MAGIC, crc32c(tail))
    return bytearray(head + tail)


def is_commit_marker(batch: bytes | memoryview) -> bool:
    """Whether a control batch of `control_batch` commits (True) or aborts."""
    return bool(_MARKER_KIND.unpack_from(batch, _MARKER_KIND_AT)[0] == _COMMIT)
