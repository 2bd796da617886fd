"""The embedded development broker: one node, loopback only, not for production.

It speaks enough of the Kafka protocol for kafka-python, Faust and librdkafka with their default settings, so that the
product runs on a machine where nothing is installed but its package. A real cluster takes its place by one setting.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import inspect
import ipaddress
import os
import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from consumers.broker.cluster_api import Address, ClusterApi
from consumers.broker.groups import Groups
from consumers.broker.groups_api import GroupsApi
from consumers.broker.records_api import RecordsApi
from consumers.broker.store import MetadataStore
from consumers.broker.topics import Retention, Topics
from consumers.broker.transactions import Transactions
from consumers.broker.wire import APIS, Api, api_versions_response, encode_response
from monitor.errors import BrokerError
from monitor.telemetry import get_logger

__all__ = ["EmbeddedBroker"]

log = get_logger(__name__)

MAX_REQUEST_BYTES: Final = 100 << 20
# Answers that a connection may be waiting for; it is not read from beyond that.
MAX_PENDING: Final = 64
EXPIRY_INTERVAL_S: Final = 0.2
SYNC_INTERVAL_S: Final = 1.0
RETENTION_INTERVAL_S: Final = 30.0
# A gap of the clock that is longer than a busy machine explains: the computer slept.
SLEPT_S: Final = 1.0


class EmbeddedBroker:
    """A Kafka-protocol broker on files in `data_dir`.

    Parameters
    ----------
    data_dir : folder of the log; a lock file keeps a second broker out.
    host, port : where to listen; only loopback addresses; port 0 takes any free one.
    retention_bytes, retention_hours : how much of a partition is kept, and for how long after it was written.
    default_partitions : of topics that are made without saying how many.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        retention_bytes: int = 1 << 30,
        retention_hours: float = 168.0,
        default_partitions: int = 4,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        self._data_dir = data_dir
        self._host = host
        self._port = port
        self._retention = Retention(retention_bytes, retention_hours * 3600)
        self._default_partitions = default_partitions
        self._max_request_bytes = max_request_bytes
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._chores: list[asyncio.Task[None]] = []
        self._storage_broken = False

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Read the log and listen. Raises `BrokerError` when the folder or the port is taken or cannot be used."""
        self._check_host()
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
            self._open()
        except OSError as error:
            raise BrokerError(
                f"The embedded broker cannot use the folder {self._data_dir}: {error.strerror}."
            ) from error
        try:
            self._server = await asyncio.start_server(self._connected, self._host, self._port, limit=1 << 20)
        except OSError as error:
            self._close_files()
            if error.errno == errno.EADDRINUSE:
                raise BrokerError(
                    f"The port {self._port} that the embedded broker should listen on is in use.",
                    "Stop the other program, or set broker_port to another number (0: any free one).",
                ) from error
            raise BrokerError(
                f"The embedded broker cannot listen on {self._host}:{self._port}: {error.strerror}."
            ) from error
        self._port = self._server.sockets[0].getsockname()[1]
        self._chores = [asyncio.create_task(chore()) for chore in (self._expire, self._sync, self._retain)]
        log.info("embedded development broker, single node, not for production", address=self.address)

    def _check_host(self) -> None:
        with contextlib.suppress(ValueError):
            if self._host == "localhost" or ipaddress.ip_address(self._host).is_loopback:
                return
        raise BrokerError(
            f"The embedded broker only listens on this machine's loopback address, not on {self._host}: it knows "
            "neither logins nor encryption.",
            "Use a Kafka cluster (kafka_bootstrap_servers) for more than one machine.",
        )

    def _take_lock(self) -> IO[str]:
        lock = (self._data_dir / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise BrokerError(
                f"Another embedded broker uses the folder {self._data_dir}.",
                "Let this process use that one, or give it another data_dir.",
            ) from error
        return lock

    def _open(self) -> None:
        self._store = MetadataStore(self._data_dir / "broker.db")
        self._topics = Topics(self._data_dir / "topics", self._store, self._retention, self._default_partitions)
        self._groups = Groups(self._store)
        self._transactions = Transactions(self._store, self._topics, self._groups)
        cluster = ClusterApi(self._topics, self._groups, self._client_address, self._storage_failed)
        records = RecordsApi(self._topics, self._transactions, self._storage_failed)
        groups = GroupsApi(self._groups, self._transactions, self._topics, self._storage_failed)
        self._handlers: dict[str, Callable[..., Any]] = {
            "Produce": records.produce,
            "Fetch": records.fetch,
            "ListOffsets": records.list_offsets,
            "OffsetForLeaderEpoch": records.offset_for_leader_epoch,
            "DeleteRecords": records.delete_records,
            "Metadata": cluster.metadata,
            "FindCoordinator": cluster.find_coordinator,
            "CreateTopics": cluster.create_topics,
            "DeleteTopics": cluster.delete_topics,
            "CreatePartitions": cluster.create_partitions,
            "DescribeConfigs": cluster.describe_configs,
            "IncrementalAlterConfigs": cluster.incremental_alter_configs,
            "JoinGroup": groups.join_group,
            "SyncGroup": groups.sync_group,
            "Heartbeat": groups.heartbeat,
            "LeaveGroup": groups.leave_group,
            "OffsetCommit": groups.offset_commit,
            "OffsetFetch": groups.offset_fetch,
            "OffsetDelete": groups.offset_delete,
            "ListGroups": groups.list_groups,
            "DescribeGroups": groups.describe_groups,
            "DeleteGroups": groups.delete_groups,
            "InitProducerId": groups.init_producer_id,
            "AddPartitionsToTxn": groups.add_partitions_to_txn,
            "AddOffsetsToTxn": groups.add_offsets_to_txn,
            "TxnOffsetCommit": groups.txn_offset_commit,
            "EndTxn": groups.end_txn,
        }

    def _client_address(self) -> Address:
        return Address(self._host, self._port)

    async def stop(self) -> None:
        """Close connections and files. What was acknowledged is on the disk."""
        if self._server is None:
            return
        self._server.close()
        tasks = [*self._chores, *self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
        self._close_files()

    def _close_files(self) -> None:
        try:
            self._topics.close()
        except OSError as error:
            self._storage_failed(error)
        self._store.close()
        self._lock.close()

    # Connections

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers: asyncio.Queue[asyncio.Task[bytes | None]] = asyncio.Queue(MAX_PENDING)
        sender = asyncio.create_task(self._send_answers(answers, writer))
        try:
            await self._read_requests(reader, writer, answers, sender)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            sender.cancel()
            while not answers.empty():
                answers.get_nowait().cancel()
            writer.close()

    async def _read_requests(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.Queue[asyncio.Task[bytes | None]],
        sender: asyncio.Task[None],
    ) -> None:
        peer = str((writer.get_extra_info("peername") or ("?",))[0])
        while not sender.done():
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            if not 8 <= size <= self._max_request_bytes:
                log.warning("closed a connection: no Kafka request, or one that is too large", peer=peer, bytes=size)
                return
            frame = await reader.readexactly(size)
            key, version, correlation_id = struct.unpack_from(">hhi", frame)
            api = APIS.get(key)
            if api is None or (api.name != "ApiVersions" and not api.oldest <= version <= api.newest):
                log.warning("closed a connection: a request this broker does not know", peer=peer, api=key, v=version)
                return
            # Tasks start in the order in which they are made, so that requests take effect in their order, too.
            await answers.put(asyncio.create_task(self._answer(api, frame, version, correlation_id, peer)))

    async def _send_answers(
        self, answers: asyncio.Queue[asyncio.Task[bytes | None]], writer: asyncio.StreamWriter
    ) -> None:
        """Answers go out in the order of the requests, whichever is ready first."""
        while True:
            task = await answers.get()
            try:
                answer = await task
                if answer is not None:
                    writer.write(answer)
                    await writer.drain()
            except ConnectionError:
                return
            except Exception:
                log.exception("a request could not be answered; its connection is closed")
                writer.close()
                return
            finally:
                task.cancel()

    async def _answer(self, api: Api, frame: bytes, version: int, correlation_id: int, peer: str) -> bytes | None:
        if api.name == "ApiVersions":
            return api_versions_response(version, correlation_id)
        request = api.request.decode(frame, version=version, header=True)
        request.API_VERSION = version
        arguments = (request, api.response, peer) if api.name == "JoinGroup" else (request, api.response)
        response = self._handlers[api.name](*arguments)
        if inspect.isawaitable(response):
            response = await response
        return None if response is None else encode_response(response, version, correlation_id)

    # Chores

    async def _expire(self) -> None:
        """Members that have fallen silent and transactions that take too long."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(EXPIRY_INTERVAL_S)
            now = time.monotonic()
            pause = now - last - EXPIRY_INTERVAL_S
            last = now
            self._groups.expire(now, pause if pause > SLEPT_S else 0.0)
            try:
                self._transactions.expire(time.time())
            except (OSError, sqlite3.Error) as error:
                self._storage_failed(error)

    async def _sync(self) -> None:
        """Bring the log to the disk every second, away from the event loop."""
        while True:
            await asyncio.sleep(SYNC_INTERVAL_S)
            try:
                await asyncio.to_thread(_sync_files, self._topics.take_unsynced())
                self._storage_broken = False
            except OSError as error:
                self._storage_failed(error)

    async def _retain(self) -> None:
        while True:
            try:
                self._topics.retain()
            except (OSError, sqlite3.Error) as error:
                self._storage_failed(error)
            await asyncio.sleep(RETENTION_INTERVAL_S)

    def _storage_failed(self, error: Exception) -> None:
        """Say once that the disk does not take or give what it should; clients are told and try again."""
        if self._storage_broken:
            return
        self._storage_broken = True
        full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "full" in str(error)
        log.error(
            "the disk is full: records are refused until there is space" if full else "the disk fails",
            folder=str(self._data_dir),
            error=str(error),
        )


def _sync_files(descriptors: list[int]) -> None:
    try:
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
