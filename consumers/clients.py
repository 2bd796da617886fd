"""Kafka clients as this product uses them: one place for addresses, security, sizes and time-outs.

Topics are named without their prefix here ("news"), groups too: `Settings.topic_prefix` goes before both, so that two
installations on one cluster never share a consumer group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import (
    AuthorizationError,
    IllegalSaslStateError,
    InvalidSessionTimeoutError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    SaslAuthenticationFailedError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
)

from monitor.datadir import announced
from monitor.errors import BrokerError, RecordTooLargeError
from monitor.settings import Settings

__all__ = ["admin", "broker_errors", "connection", "consumer", "drop", "group_id", "poll", "producer", "subscribe"]

CLIENT_ID: Final = "sentiment-monitor"
BOOTSTRAP_TIMEOUT_MS: Final = 10_000
# Small batches are what a producer in Python spends its time on: 1 MiB and 50 ms give twice the default's rate.
BATCH_BYTES: Final = 1_000_000
LINGER_MS: Final = 50
# One record of `contributions` holds a whole scoring batch with its story signatures.
LARGEST_RECORD_BYTES: Final = 16 << 20
HEARTBEATS_PER_SESSION: Final = 4


def connection(settings: Settings) -> dict[str, Any]:
    """The arguments that every kafka-python client takes: addresses, security, time-outs."""
    options: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",") if server.strip()],
        "client_id": CLIENT_ID,
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "reconnect_backoff_max_ms": 2_000,
        "security_protocol": settings.kafka_security_protocol,
    }
    if settings.kafka_ssl_cafile:
        options["ssl_cafile"] = settings.kafka_ssl_cafile
    if settings.kafka_sasl_mechanism:
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_sasl_username,
            "sasl_plain_password": settings.kafka_sasl_password.get_secret_value(),
        }
    return options


def group_id(settings: Settings, group: str) -> str:
    """Full name of a consumer group."""
    return f"{settings.topic_prefix}{group}"


@contextmanager
def broker_errors(settings: Settings) -> Iterator[None]:
    """Turns what kafka-python raises into a `BrokerError` with one clear sentence."""
    # Not `bootstrap_servers`, which raises while the embedded broker is away: who waits for it is in here.
    servers = settings.kafka_bootstrap_servers or announced(settings.broker_address_file) or settings.data_dir
    try:
        yield
    except (SaslAuthenticationFailedError, UnsupportedSaslMechanismError, IllegalSaslStateError) as error:
        raise BrokerError(
            f"The Kafka cluster at {servers} refused the login.",
            "Check kafka_security_protocol, kafka_sasl_mechanism, kafka_sasl_username and kafka_sasl_password.",
        ) from error
    except (TopicAuthorizationFailedError, AuthorizationError) as error:
        raise BrokerError(
            f"The Kafka cluster at {servers} does not allow this: {error}.", "Ask its operator for the access rights."
        ) from error
    except UnknownTopicOrPartitionError as error:
        raise BrokerError(
            f"A topic is missing on the Kafka cluster at {servers}: {error}.",
            "The processes create their topics when they start; or create them by hand.",
        ) from error
    except MessageSizeTooLargeError as error:
        raise RecordTooLargeError(
            f"A record is larger than the Kafka cluster at {servers} takes: {error}.",
            "Raise max.message.bytes of the topic, or lower max_chart_bytes or max_text_chars.",
        ) from error
    except InvalidSessionTimeoutError as error:
        raise BrokerError(
            f"The Kafka cluster at {servers} does not accept a session time-out of "
            f"{settings.kafka_session_timeout_s:g} s.",
            "Set kafka_session_timeout_s between the cluster's group.min.session.timeout.ms (6 s unless changed) "
            "and group.max.session.timeout.ms.",
        ) from error
    except (KafkaConnectionError, KafkaTimeoutError) as error:
        raise BrokerError(
            f"No Kafka broker answers at {servers}.",
            "Start the embedded one (`sentiment-monitor broker`)."
            if settings.embedded
            else "Check kafka_bootstrap_servers, and that the cluster runs.",
        ) from error
    except KafkaError as error:
        raise BrokerError(f"The Kafka cluster at {servers} failed: {error}.") from error


def producer(settings: Settings, **overrides: Any) -> KafkaProducer:
    """An idempotent producer (acks=all) with large, compressed batches. Raises `BrokerError`.

    `flush` it and look at every `send`'s future before you rely on a record: a failed send raises there.
    """
    options = {
        **connection(settings),
        "batch_size": BATCH_BYTES,
        "linger_ms": LINGER_MS,
        "compression_type": "lz4",
        "max_request_size": max(LARGEST_RECORD_BYTES, 2 * settings.max_chart_bytes + (1 << 20)),
        "allow_auto_create_topics": False,
        **overrides,
    }
    with broker_errors(settings):
        return KafkaProducer(**options)


def drop(client: KafkaProducer) -> None:
    """Close a producer at once; what it has not sent will not be sent.

    Its own `close` flushes first, and when that fails leaves its thread running, which sends what it holds when the
    broker is back: after, or between, what a newer producer sends.
    """
    client._sender.force_close()
    with suppress(KafkaError):
        client.close(timeout=0)


def consumer(settings: Settings, group: str | None, topics: Sequence[str] = (), **overrides: Any) -> KafkaConsumer:
    """A consumer that starts at the earliest record and commits only by hand. Raises `BrokerError`.

    `group` None reads without a group (assign partitions yourself); `topics` are subscribed to.
    """
    session_ms = int(settings.kafka_session_timeout_s * 1000)
    options = {
        **connection(settings),
        "group_id": None if group is None else group_id(settings, group),
        "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
        "session_timeout_ms": session_ms,
        "heartbeat_interval_ms": max(100, session_ms // HEARTBEATS_PER_SESSION),
        "allow_auto_create_topics": False,
        **overrides,
    }
    with broker_errors(settings):
        made = KafkaConsumer(**options)
        if topics:
            subscribe(made, [settings.topic(name) for name in topics])
        return made


def subscribe(client: KafkaConsumer, topics: Sequence[str], listener: ConsumerRebalanceListener | None = None) -> None:
    """Join the client's group for topics (full names).

    The topics are asked for first, and the coordinator is told what they have: a group leader that joins before it has
    heard of them hands out nothing, and kafka-python 3.0.12 hears only of updates after `subscribe`. It would take the
    first one, a moment after joining, for a change, and hand out everything once more.
    """
    for topic in topics:
        client.partitions_for_topic(topic)
    client.subscribe(topics, listener=listener)
    client._coordinator._handle_metadata_update(client._cluster)


def poll(
    client: KafkaConsumer, timeout_ms: int, max_records: int | None = None
) -> dict[TopicPartition, list[ConsumerRecord]]:
    """`client.poll` that ends every rebalance it has begun.

    kafka-python 3.0.12 forgets one that took longer than `timeout_ms` when its cause (topics subscribed to or found
    anew) is gone by the time of the next poll: nobody then takes up the answer. The member reads nothing and sends no
    heartbeat, for ever.
    """
    coordinator = client._coordinator
    if coordinator.rejoining and not coordinator.need_rejoin():
        coordinator.request_rejoin()
    polled: dict[TopicPartition, list[ConsumerRecord]] = client.poll(timeout_ms=timeout_ms, max_records=max_records)
    return polled


def admin(settings: Settings) -> KafkaAdminClient:
    """An admin client. Raises `BrokerError`."""
    with broker_errors(settings):
        return KafkaAdminClient(**connection(settings))
