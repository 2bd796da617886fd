"""All settings in one typed place.

They come from a TOML file, environment variables (`SENTIMENT_MONITOR_...`) and flags, in that order of rising
strength. The file is `--config`, else `$SENTIMENT_MONITOR_CONFIG`, else `sentiment-monitor.toml` in the working
folder if there is one. A table in the file is a prefix: `[worker] batch_items = 256` sets `worker_batch_items`.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import platformdirs
from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from monitor.datadir import announced
from monitor.errors import BrokerError, ConfigurationError

__all__ = ["ENV_PREFIX", "Settings", "load_settings"]

ENV_PREFIX = "SENTIMENT_MONITOR_"
DEFAULT_FILE = "sentiment-monitor.toml"
EMBEDDED_PORT = 29092
DASHBOARD_PORT = 8501


def _upper(value: object) -> object:
    return value.strip().upper() if isinstance(value, str) else value


SecurityProtocol = Annotated[Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], BeforeValidator(_upper)]
SaslMechanism = Annotated[Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], BeforeValidator(_upper)]
_SERVER = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def _default_data_dir() -> Path:
    return Path(platformdirs.user_data_dir("sentiment-monitor", appauthor=False))


class Settings(BaseSettings):
    """Every setting with its unit and meaning; `sentiment-monitor config show` prints what is in force."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, validate_default=True
    )

    # Where things are
    data_dir: Path = Field(
        default_factory=_default_data_dir, description="Folder for the embedded broker's log, SQLite and models."
    )
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite in data_dir.")
    kafka_bootstrap_servers: str = Field(
        "", description="Comma-separated host:port of a Kafka cluster; empty: the embedded broker."
    )
    topic_prefix: str = Field("", description="Put before every topic's name as it is.", pattern=r"^[a-zA-Z0-9._-]*$")
    log_level: str = Field("info", description="debug, info, warning or error.")
    log_json: bool = Field(False, description="Log lines as JSON objects instead of text.")

    # Kafka
    kafka_security_protocol: SecurityProtocol = Field(
        "PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."
    )
    kafka_sasl_mechanism: SaslMechanism = Field(
        "", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, which SASL_PLAINTEXT and SASL_SSL need; else empty."
    )
    kafka_sasl_username: str = Field("", description="SASL user.")
    kafka_sasl_password: SecretStr = Field(SecretStr(""), description="SASL password.")
    kafka_ssl_cafile: str = Field("", description="Path of the certificate authority's file.")
    kafka_partitions: int = Field(4, ge=1, description="Partitions of a topic that has to be created.")
    kafka_replication_factor: int = Field(1, ge=1, description="Copies of a topic that has to be created.")
    kafka_session_timeout_s: float = Field(
        10.0, gt=0, description="Seconds without a heartbeat after which a consumer's partitions go to others."
    )
    broker_port: int = Field(EMBEDDED_PORT, ge=0, le=65535, description="Port of the embedded broker; 0: any free.")
    broker_retention_bytes: int = Field(
        1 << 30, ge=1 << 20, description="Embedded broker: bytes kept in a partition's log."
    )
    broker_retention_hours: float = Field(168.0, gt=0, description="Embedded broker: hours a record is kept.")

    # Scoring worker
    model: str = Field("", description="Adapter by name, version or path; empty: the promoted one, else `default`.")
    device: str = Field("", description="cpu, cuda or cuda:N; empty: CUDA where there is a card.")
    worker_group: str = Field("scoring", description="Consumer group of the scoring workers.")
    worker_batch_items: int = Field(128, ge=1, description="Items scored together at the most.")
    worker_token_budget: int = Field(4096, ge=64, description="Tokens in one forward pass at the most.")
    worker_gpu_token_budget: int = Field(
        32_768,
        ge=64,
        description="Tokens in one forward pass at the most on a CUDA card. Headlines reach it only where "
        "worker_batch_items is raised, too.",
    )
    worker_image_budget: int = Field(32, ge=1, description="Images in one forward pass at the most.")
    worker_pairing_wait_s: float = Field(
        2.0, ge=0, description="Seconds an item waits for a chart that it names, or a chart for its item."
    )
    worker_held_items: int = Field(2000, ge=1, description="Items that may wait for their charts at the same time.")
    worker_idle_after_s: float = Field(
        3.0, gt=0, description="Seconds of quiet after which an input partition read to its end counts as idle."
    )
    worker_image_bytes: int = Field(
        128 << 20,
        ge=1 << 20,
        description="Bytes of texts and chart images that the worker keeps in memory at the most.",
    )
    worker_outage_s: float = Field(
        300.0, gt=0, description="Seconds that an unreachable store or broker is waited for before the worker stops."
    )
    worker_model_poll_s: float = Field(5.0, gt=0, description="Seconds between looks for a newly promoted model.")
    cpu_precision: str = Field(
        "auto",
        description="Arithmetic of the text backbone on a CPU: fp32, bf16, int8, or auto: the fastest whose answers "
        "are those of fp32, measured once per machine and model. Where workers run on unlike machines, name fp32.",
        pattern="^(auto|fp32|bf16|int8)$",
    )
    score_cache_rows: int = Field(20_000, ge=0, description="Texts and pictures whose scores are kept; 0: none.")
    model_languages: str = Field(
        "",
        description="Comma-separated ISO 639-1 codes that the text backbone reads; empty: as known of it; any: all.",
    )
    taxonomy_file: str = Field(
        "",
        description="JSON file of the topics that the model in force knows, for titles of alerts and the dashboard's "
        "forms; empty: the bundled ones.",
    )
    companies_file: str = Field("", description="CSV of companies (ticker,name,aliases) laid over the bundled table.")
    sentiment_rules_file: str = Field("", description="TOML file of rules over the model; empty: the bundled ones.")
    max_chart_bytes: int = Field(4 << 20, ge=1024, description="Largest chart image in bytes.")
    # A screen of 3840 x 2160 pixels has 8.3 million; decoded, a pixel takes 3 bytes, in several copies.
    max_chart_pixels: int = Field(10_000_000, ge=10_000, description="Largest chart image in pixels, once decoded.")
    max_text_chars: int = Field(50_000, ge=100, description="Characters of an item's text that are kept and read.")

    # Counting
    aggregator_group: str = Field("aggregator", description="Faust application and consumer group.")
    lateness_s: float = Field(
        60.0, ge=0, description="Seconds of event time that items may come out of order before they count as late."
    )
    max_late_h: float = Field(24.0, gt=0, description="Hours of event time after which a late item is not counted.")
    story_window_h: float = Field(24.0, gt=0, description="Hours within which copies belong to one story.")
    judge_lease_s: float = Field(15.0, gt=0, description="Seconds after which a silent judge's lease is taken over.")
    judge_interval_s: float = Field(1.0, gt=0, description="Seconds between looks for minutes to judge.")
    judge_snapshot_s: float = Field(30.0, gt=0, description="Seconds between snapshots of the judge's state.")

    # Surges
    surge_budget: float = Field(0.01, gt=0, le=1, description="False alarms a key and day, of each sort of surge.")
    rules_file: str = Field("", description="TOML file of alert rules; empty: the built-in rule.")
    surge_min_sources: int = Field(
        1,
        ge=0,
        description="Publishers that must tell of a surge before the built-in rule announces it; where none is known "
        "it does not wait. With feeds of several publishers: 2.",
    )

    # Alerts
    webhook_urls: str = Field("", description="Comma-separated receivers that every alert goes to.")
    webhook_secret: SecretStr = Field(SecretStr(""), description="Signing secret of those receivers (whsec_...).")
    receivers_file: str = Field("", description="TOML file of receivers and routes; empty: only webhook_urls.")
    egress_allow: str = Field(
        "", description="Comma-separated networks (CIDR) or host:port that webhooks and feeds may reach though private."
    )
    notifier_lease_s: float = Field(
        15.0, gt=0, description="Seconds after which another notifier takes over what a silent one was sending."
    )
    notifier_interval_s: float = Field(0.5, gt=0, description="Seconds between looks at the outbox.")
    dashboard_url: str = Field(
        "", description="Address of the dashboard for links in alerts; empty: from dashboard_host and dashboard_port."
    )

    # Dashboard
    dashboard_host: str = Field("127.0.0.1", description="Address that the dashboard listens on.")
    dashboard_port: int = Field(DASHBOARD_PORT, ge=0, le=65535, description="Port of the dashboard; 0: any free.")

    # Feeds
    http_feed_host: str = Field("127.0.0.1", description="Address that `feed http` listens on.")
    http_feed_port: int = Field(8080, ge=0, le=65535, description="Port of `feed http`; 0: any free.")
    http_feed_token: SecretStr = Field(SecretStr(""), description="Bearer token that senders to `feed http` need.")
    rss_interval_s: float = Field(60.0, gt=0, description="Seconds between two looks at a feed.")

    # Jobs
    retrain_cron: str = Field("0 3 * * *", description="When retraining runs (crontab, UTC); empty: never.")
    retrain_min_labels: int = Field(20, ge=1, description="New corrections needed before retraining starts.")
    retrain_base_rows: int = Field(2000, ge=0, description="Rows of base data mixed into a retraining.")
    retrain_epochs: int = Field(1, ge=1, description="Passes over corrections and base rows.")
    retrain_learning_rate: float = Field(2e-4, gt=0, le=0.1, description="Peak learning rate of a retraining.")
    drift_cron: str = Field("15 * * * *", description="When drift is checked (crontab, UTC); empty: never.")
    retention_cron: str = Field("30 2 * * *", description="When old data is dropped (crontab, UTC); empty: never.")
    retention_items_days: float = Field(90.0, gt=0, description="Days that scored items are kept.")
    retention_charts_days: float = Field(30.0, gt=0, description="Days that chart images are kept.")
    retention_ticks_days: float = Field(60.0, gt=0, description="Days that per-minute counts are kept.")
    retention_rollups_days: float = Field(
        730.0, gt=0, description="Days that sums by hour and day are kept; never fewer than those by minute."
    )
    retention_alerts_days: float = Field(
        365.0,
        gt=0,
        description="Days that resolved alerts, their notices and the log of changes are kept; what is open or "
        "undelivered stays.",
    )

    # Operations
    metrics_port: int = Field(
        0,
        ge=0,
        le=65532,
        description="Port of Prometheus metrics and health; 0: none. Under `up` the worker takes it, aggregator, "
        "notifier and scheduler the three that follow.",
    )
    shutdown_s: float = Field(20.0, gt=0, description="Seconds a process may take to stop before it is killed.")

    @model_validator(mode="before")
    @classmethod
    def _dashboard_address(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not values.get("dashboard_url"):
            host, port = values.get("dashboard_host", "127.0.0.1"), values.get("dashboard_port", DASHBOARD_PORT)
            return values | {"dashboard_url": f"http://{host}:{port}"}
        return values

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _servers(cls, value: str) -> str:
        servers = [server.strip() for server in value.split(",") if server.strip()]
        for server in servers:
            found = _SERVER.fullmatch(server)
            if found is None or not 0 < int(found[1]) < 1 << 16:
                raise ValueError(f"must be host:port, several of them separated by commas, which {server!r} is not")
        return ",".join(servers)

    @field_validator("kafka_sasl_mechanism")
    @classmethod
    def _mechanism(cls, value: str, info: ValidationInfo) -> str:
        protocol = str(info.data.get("kafka_security_protocol", ""))
        if protocol.startswith("SASL_") and not value:
            raise ValueError(f"must be PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512 with kafka_security_protocol {protocol}")
        if value and protocol and not protocol.startswith("SASL_"):
            raise ValueError(f"needs kafka_security_protocol SASL_PLAINTEXT or SASL_SSL, not {protocol}")
        return value

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        if value.lower() not in {"debug", "info", "warning", "error"}:
            raise ValueError("must be debug, info, warning or error")
        return value.lower()

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'monitor.db'}"

    @property
    def broker_address_file(self) -> Path:
        """Where the embedded broker of this data_dir announces its `host:port` (`monitor.datadir`)."""
        return self.data_dir / "broker" / "address"

    @property
    def embedded(self) -> bool:
        """True when no cluster is configured and the embedded broker stands in."""
        return not self.kafka_bootstrap_servers

    @property
    def bootstrap_servers(self) -> str:
        """The cluster's address in force: configured, else that of the embedded broker.

        Raises `BrokerError` when the embedded broker is meant and none runs in this data_dir: what else listens on
        its port is a stranger's.
        """
        address = self.kafka_bootstrap_servers or announced(self.broker_address_file)
        if address is None:
            raise BrokerError(
                f"No embedded broker runs in {self.data_dir}.",
                "Start one (`sentiment-monitor up`, `demo` or `broker`), or name a cluster (kafka_bootstrap_servers).",
            )
        return address

    def environment(self) -> dict[str, str]:
        """Every setting that was given, as environment variables for child processes; secrets in clear."""
        values: dict[str, str] = {}
        for name in sorted(self.model_fields_set):
            value = getattr(self, name)
            plain = value.get_secret_value() if isinstance(value, SecretStr) else value
            values[f"{ENV_PREFIX}{name.upper()}"] = str(plain)
        return values

    def topic(self, name: str) -> str:
        """Full name of a topic: `topic("news")`."""
        return f"{self.topic_prefix}{name}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags and environment only; `load_settings` puts the file underneath."""
        return init_settings, env_settings


def _flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}_")
        else:
            flat[prefix + name] = value
    return flat


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return _flatten(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"The settings file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The settings file {path} is not valid TOML: {error}.") from error


def load_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Settings in force. `flags` that are None are left out.

    Raises `ConfigurationError` naming the setting and where it came from when a value is wrong or unknown.
    """
    named = os.environ.get(f"{ENV_PREFIX}CONFIG", "")
    path = config or (Path(named) if named else Path(DEFAULT_FILE))
    file = _read_file(path) if config or named or path.exists() else {}
    known = set(Settings.model_fields)
    unknown = sorted(set(file) - known)
    if unknown:
        raise ConfigurationError(
            f"The settings file {path} holds the unknown setting {unknown[0]}.",
            "`sentiment-monitor config show` lists all settings.",
        )
    misspelt = sorted(
        name
        for name in os.environ
        if name.startswith(ENV_PREFIX)
        and name.removeprefix(ENV_PREFIX).lower() not in known | {"config"}
        and not name.startswith(f"{ENV_PREFIX}TEST_")
    )
    if misspelt:
        raise ConfigurationError(
            f"The environment variable {misspelt[0]} names no setting.",
            "`sentiment-monitor config show` lists all settings.",
        )
    from_env = {name for name in known if f"{ENV_PREFIX}{name}".upper() in os.environ}
    values = {name: value for name, value in file.items() if name not in from_env}
    values |= {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        origin = "a flag" if flags.get(name) is not None else "the environment" if name in from_env else str(path)
        # A default may be wrong beside another setting.
        given = f" (from {origin})" if flags.get(name) is not None or name in from_env or name in file else ""
        raise ConfigurationError(
            f"The setting {name}{given} is wrong: {first['msg'].removeprefix('Value error, ')}.",
            "`sentiment-monitor config show` lists all settings.",
        ) from error
