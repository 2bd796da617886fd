"""Requests about the cluster and its topics: metadata, topics, partitions, settings."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from consumers.broker.groups import Groups
from consumers.broker.topics import RefusedError, Topics
from consumers.broker.wire import NODE_ID, ErrorCode
from monitor.telemetry import get_logger

__all__ = ["Address", "ClusterApi"]

log = get_logger(__name__)

CLUSTER_ID: Final = "embedded-development-broker"
_TOPIC_RESOURCE: Final = 2
_SET, _DELETE = 0, 1
_DYNAMIC_TOPIC_CONFIG, _DEFAULT_CONFIG = 1, 5


@dataclass(frozen=True)
class Address:
    """Where clients find the broker."""

    host: str
    port: int


class ClusterApi:
    """Handlers of the cluster requests; each takes a request and its response class and returns the response."""

    def __init__(
        self,
        topics: Topics,
        groups: Groups,
        address: Callable[[], Address],
        storage_failed: Callable[[Exception], None],
    ) -> None:
        self._topics = topics
        self._groups = groups
        self._address = address
        self._storage_failed = storage_failed

    def _attempt(self, action: Callable[[], object]) -> tuple[ErrorCode, str | None]:
        try:
            action()
        except RefusedError as refused:
            return refused.code, refused.reason
        except (OSError, sqlite3.Error) as failure:
            self._storage_failed(failure)
            return ErrorCode.KAFKA_STORAGE_ERROR, str(failure)
        return ErrorCode.NONE, None

    def metadata(self, request: Any, response: Any) -> Any:
        """The one node, and the topics asked for; those that are missing are made where the client allows it."""
        everything = request.topics is None or (request.version == 0 and not request.topics)
        names = [topic.stored.name for topic in self._topics] if everything else [one.name for one in request.topics]
        topics = [self._describe(response, name, create=request.allow_auto_topic_creation) for name in names]
        address = self._address()
        return response(
            throttle_time_ms=0,
            brokers=[response.MetadataResponseBroker(node_id=NODE_ID, host=address.host, port=address.port, rack=None)],
            cluster_id=CLUSTER_ID,
            controller_id=NODE_ID,
            topics=topics,
        )

    def _describe(self, response: Any, name: str, *, create: bool) -> Any:
        topic_response = response.MetadataResponseTopic
        error = ErrorCode.NONE
        if self._topics.get(name) is None:
            error = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            if create:
                error, _ = self._attempt(lambda: self._topics.create(name))
                log.info("a client named a topic that is not there", topic=name, outcome=error.name)
        topic = self._topics.get(name)
        return topic_response(
            error_code=error,
            name=name,
            is_internal=False,
            partitions=[
                topic_response.MetadataResponsePartition(
                    error_code=ErrorCode.NONE,
                    partition_index=index,
                    leader_id=NODE_ID,
                    leader_epoch=0,
                    replica_nodes=[NODE_ID],
                    isr_nodes=[NODE_ID],
                    offline_replicas=[],
                )
                for index in range(len(topic.logs) if topic else 0)
            ],
        )

    def find_coordinator(self, _request: Any, response: Any) -> Any:
        """The only node coordinates everything."""
        address = self._address()
        return response(
            throttle_time_ms=0,
            error_code=ErrorCode.NONE,
            error_message=None,
            node_id=NODE_ID,
            host=address.host,
            port=address.port,
        )

    def create_topics(self, request: Any, response: Any) -> Any:
        """Make topics."""

        def answer(wanted: Any) -> Any:
            configs = {config.name: config.value for config in wanted.configs if config.value is not None}
            count = len(wanted.assignments) or wanted.num_partitions
            act = self._topics.check_new if request.validate_only else self._topics.create
            error, reason = self._attempt(lambda: act(wanted.name, count, wanted.replication_factor, configs))
            made = self._topics.get(wanted.name)
            return response.CreatableTopicResult(
                name=wanted.name,
                error_code=error,
                error_message=reason,
                num_partitions=len(made.logs) if made and not error else -1,
                replication_factor=1 if made and not error else -1,
                configs=[],
            )

        return response(throttle_time_ms=0, topics=[answer(topic) for topic in request.topics])

    def delete_topics(self, request: Any, response: Any) -> Any:
        """Delete topics with their records and the groups' places in them."""

        def answer(name: str) -> Any:
            error, _ = self._attempt(lambda: self._topics.delete(name))
            if not error:
                self._groups.forget_topic(name)
            return response.DeletableTopicResult(name=name, error_code=error)

        return response(throttle_time_ms=0, responses=[answer(name) for name in request.topic_names])

    def create_partitions(self, request: Any, response: Any) -> Any:
        """Give topics more partitions."""

        def answer(topic: Any) -> Any:
            error, reason = self._attempt(
                lambda: self._topics.grow(topic.name, topic.count, validate_only=request.validate_only)
            )
            return response.CreatePartitionsTopicResult(name=topic.name, error_code=error, error_message=reason)

        return response(throttle_time_ms=0, results=[answer(topic) for topic in request.topics])

    def describe_configs(self, request: Any, response: Any) -> Any:
        """Settings of topics; those of the node are the defaults of topics."""
        return response(
            throttle_time_ms=0, results=[self._describe_configs(response, one) for one in request.resources]
        )

    def _describe_configs(self, response: Any, resource: Any) -> Any:
        result = response.DescribeConfigsResult
        error, configs, own = ErrorCode.NONE, dict(self._topics.defaults), set[str]()
        if resource.resource_type == _TOPIC_RESOURCE:
            topic = self._topics.get(resource.resource_name)
            if topic is None:
                error, configs = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, {}
            else:
                configs, own = topic.configs, set(topic.stored.configs)
        wanted = resource.configuration_keys
        return result(
            error_code=error,
            error_message=None,
            resource_type=resource.resource_type,
            resource_name=resource.resource_name,
            configs=[
                result.DescribeConfigsResourceResult(
                    name=name,
                    value=value,
                    read_only=False,
                    is_default=name not in own,
                    config_source=_DYNAMIC_TOPIC_CONFIG if name in own else _DEFAULT_CONFIG,
                    is_sensitive=False,
                    synonyms=[],
                )
                for name, value in sorted(configs.items())
                if wanted is None or name in wanted
            ],
        )

    def incremental_alter_configs(self, request: Any, response: Any) -> Any:
        """Change settings of topics."""

        def answer(resource: Any) -> Any:
            error, reason = self._attempt(lambda: self._alter(resource, validate_only=request.validate_only))
            return response.AlterConfigsResourceResponse(
                error_code=error,
                error_message=reason,
                resource_type=resource.resource_type,
                resource_name=resource.resource_name,
            )

        return response(throttle_time_ms=0, responses=[answer(resource) for resource in request.resources])

    def _alter(self, resource: Any, *, validate_only: bool) -> None:
        if resource.resource_type != _TOPIC_RESOURCE:
            raise RefusedError(ErrorCode.INVALID_REQUEST, "Only settings of topics can be changed while it runs.")
        if any(config.config_operation not in (_SET, _DELETE) for config in resource.configs):
            raise RefusedError(ErrorCode.INVALID_REQUEST, "Settings can be set and deleted, not appended to.")
        changes = {
            config.name: config.value if config.config_operation == _SET else None for config in resource.configs
        }
        self._topics.configure(resource.resource_name, changes, validate_only=validate_only)
