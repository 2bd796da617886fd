"""Transactions: producer ids and epochs, and the coordinator's side of commit and abort.

A decision is stored before its markers are written, so that a broker killed in between finishes it at the next start.
A transaction that runs longer than its producer allowed is aborted and its producer fenced by the next epoch.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from consumers.broker.groups import Groups
from consumers.broker.store import CommittedOffset, MetadataStore, TopicPartition, Transaction, TransactionState
from consumers.broker.topics import Topics
from consumers.broker.wire import ErrorCode
from monitor.telemetry import get_logger

__all__ = ["Transactions"]

log = get_logger(__name__)

MAX_TIMEOUT_MS: Final = 15 * 60 * 1000
_LAST_EPOCH: Final = 32_766


class Transactions:
    """All transactional ids. Methods raise `OSError` or `sqlite3.Error` when the disk is full."""

    def __init__(self, store: MetadataStore, topics: Topics, groups: Groups) -> None:
        self._store = store
        self._topics = topics
        self._groups = groups
        self._transactions = {transaction.id: transaction for transaction in store.transactions()}
        for transaction in self._transactions.values():
            if transaction.state in ("committing", "aborting"):
                self._finish(transaction)

    def init_producer(self, transactional_id: str | None, timeout_ms: int) -> tuple[ErrorCode, int, int]:
        """Error, producer id and epoch for a producer that starts. One with a transactional id takes the place of
        an earlier producer with that id, whose open transaction is aborted."""
        if transactional_id is None:
            return ErrorCode.NONE, self._store.new_producer_id(), 0
        if not transactional_id:
            return ErrorCode.INVALID_REQUEST, -1, -1
        if not 0 < timeout_ms <= MAX_TIMEOUT_MS:
            return ErrorCode.INVALID_TRANSACTION_TIMEOUT, -1, -1
        known = self._transactions.get(transactional_id)
        if known is None:
            known = Transaction(transactional_id, self._store.new_producer_id(), 0, timeout_ms)
        else:
            self._fence(known)
            known.timeout_ms, known.state = timeout_ms, "empty"
        self._store.save_transaction(known)
        self._transactions[transactional_id] = known
        return ErrorCode.NONE, known.producer_id, known.epoch

    def _fence(self, transaction: Transaction) -> None:
        """The next epoch: whoever holds the present one is shut out, and what it left open is aborted.

        The markers carry the new epoch, which tells the partitions of it."""
        if transaction.epoch >= _LAST_EPOCH:
            self._end(transaction, commit=False)
            transaction.producer_id, transaction.epoch = self._store.new_producer_id(), 0
            return
        transaction.epoch += 1
        self._end(transaction, commit=False)

    def _check(self, transactional_id: str, producer_id: int, epoch: int) -> Transaction | ErrorCode:
        transaction = self._transactions.get(transactional_id)
        if transaction is None or transaction.producer_id != producer_id:
            return ErrorCode.INVALID_PRODUCER_ID_MAPPING
        return transaction if transaction.epoch == epoch else ErrorCode.INVALID_PRODUCER_EPOCH

    def _begin(self, transaction: Transaction) -> None:
        if transaction.state != "ongoing":
            transaction.state, transaction.started_at = "ongoing", time.time()

    def add_partitions(
        self, transactional_id: str, producer_id: int, epoch: int, places: Iterable[TopicPartition]
    ) -> ErrorCode:
        """Partitions that the producer is going to write to; the first begin the transaction."""
        transaction = self._check(transactional_id, producer_id, epoch)
        if isinstance(transaction, ErrorCode):
            return transaction
        self._begin(transaction)
        transaction.partitions.update(places)
        self._store.save_transaction(transaction)
        return ErrorCode.NONE

    def add_group(self, transactional_id: str, producer_id: int, epoch: int, group_id: str) -> ErrorCode:
        """A group whose offsets the producer is going to commit."""
        transaction = self._check(transactional_id, producer_id, epoch)
        if isinstance(transaction, ErrorCode):
            return transaction
        self._begin(transaction)
        transaction.offsets.setdefault(group_id, {})
        self._store.save_transaction(transaction)
        return ErrorCode.NONE

    def add_offsets(
        self,
        transactional_id: str,
        producer_id: int,
        epoch: int,
        group_id: str,
        offsets: Mapping[TopicPartition, CommittedOffset],
    ) -> ErrorCode:
        """Offsets to commit together with the records."""
        transaction = self._check(transactional_id, producer_id, epoch)
        if isinstance(transaction, ErrorCode):
            return transaction
        if transaction.state != "ongoing" or group_id not in transaction.offsets:
            return ErrorCode.INVALID_TXN_STATE
        transaction.offsets[group_id].update(offsets)
        self._store.save_transaction(transaction)
        return ErrorCode.NONE

    def may_write(self, producer_id: int, epoch: int, place: TopicPartition) -> ErrorCode:
        """Whether a transactional batch of this producer belongs to a transaction that includes the partition."""
        for transaction in self._transactions.values():
            if transaction.producer_id == producer_id:
                if transaction.epoch != epoch:
                    return ErrorCode.INVALID_PRODUCER_EPOCH
                ongoing = transaction.state == "ongoing" and place in transaction.partitions
                return ErrorCode.NONE if ongoing else ErrorCode.INVALID_TXN_STATE
        return ErrorCode.INVALID_PRODUCER_ID_MAPPING

    def end(self, transactional_id: str, producer_id: int, epoch: int, *, commit: bool) -> ErrorCode:
        """Commit or abort. Asked again for what has been done, it says yes again."""
        transaction = self._check(transactional_id, producer_id, epoch)
        if isinstance(transaction, ErrorCode):
            return transaction
        deciding, done = ("committing", "committed") if commit else ("aborting", "aborted")
        if transaction.state in ("ongoing", deciding):
            self._end(transaction, commit=commit)
        return ErrorCode.NONE if transaction.state == done else ErrorCode.INVALID_TXN_STATE

    def _end(self, transaction: Transaction, *, commit: bool) -> None:
        if transaction.state == "ongoing":
            transaction.state = "committing" if commit else "aborting"
            self._store.save_transaction(transaction)
        if transaction.state in ("committing", "aborting"):
            self._finish(transaction)

    def _finish(self, transaction: Transaction) -> None:
        """Write the markers of a stored decision. Doing it twice does no harm: a partition in which the producer has
        nothing open gets none."""
        commit = transaction.state == "committing"
        for place in sorted(transaction.partitions):
            log_ = self._topics.log(*place)
            if log_ is not None and transaction.producer_id in log_.producers.open:
                log_.end_transaction(transaction.producer_id, transaction.epoch, commit=commit)
        with self._store.transaction():
            if commit:
                for group_id, offsets in transaction.offsets.items():
                    self._groups.commit(group_id, offsets)
            done: TransactionState = "committed" if commit else "aborted"
            self._store.save_transaction(replace(transaction, state=done, partitions=set(), offsets={}))
        transaction.state, transaction.partitions, transaction.offsets = done, set(), {}

    def has_pending_offsets(self, group_id: str, place: TopicPartition) -> bool:
        """Whether an open transaction is going to commit an offset there."""
        return any(
            place in transaction.offsets.get(group_id, {})
            for transaction in self._transactions.values()
            if transaction.state == "ongoing"
        )

    def expire(self, now: float) -> None:
        """Abort the transactions that have been open too long. `now` is wall-clock time in seconds."""
        for transaction in self._transactions.values():
            age_ms = (now - transaction.started_at) * 1000
            if transaction.state == "ongoing" and age_ms > transaction.timeout_ms:
                log.warning("a transaction ran into its time-out and is aborted", transactional_id=transaction.id)
                self._fence(transaction)
                self._store.save_transaction(transaction)
