"""File, environment and flags, in that order of rising strength; every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.datadir import announce
from monitor.errors import BrokerError, ConfigurationError
from monitor.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SENTIMENT_MONITOR_{name.upper()}", raising=False)


def test_flags_beat_environment_beats_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "sentiment-monitor.toml"
    file.write_text('topic_prefix = "file-"\n[worker]\nbatch_items = 7\ntoken_budget = 100\n')
    assert load_settings().worker_batch_items == 7
    monkeypatch.setenv("SENTIMENT_MONITOR_WORKER_BATCH_ITEMS", "8")
    assert load_settings().worker_batch_items == 8
    settings = load_settings(worker_batch_items=9, topic_prefix=None)
    assert (settings.worker_batch_items, settings.topic_prefix, settings.worker_token_budget) == (9, "file-", 100)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("topc_prefix = 'x'", "topc_prefix"),
        ("[worker]\nbatch_items = 0", "worker_batch_items"),
        ("topic_prefix = 'a b'", "topic_prefix"),
        ("log_level = 'loud'", "log_level"),
        ("= broken", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "other.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=named) as caught:
        load_settings(file)
    assert "other.toml" in str(caught.value)


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_MONITOR_WORKER_BATCHITEMS", "3")
    with pytest.raises(ConfigurationError, match="SENTIMENT_MONITOR_WORKER_BATCHITEMS"):
        load_settings()


def test_a_missing_named_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings(tmp_path / "none.toml")


def test_children_get_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parent = load_settings(data_dir=tmp_path, webhook_secret="whsec_x", surge_budget=0.001, dashboard_port=9999)
    for name, value in parent.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == parent
    assert parent.dashboard_url == "http://127.0.0.1:9999"


def test_the_embedded_broker_is_the_default(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    assert settings.embedded
    settings.broker_address_file.parent.mkdir()
    with announce(settings.broker_address_file, "127.0.0.1:4711"):
        assert settings.bootstrap_servers == "127.0.0.1:4711"
    # Left behind by one that was killed: somebody else may listen there by now.
    assert settings.broker_address_file.read_text() == "127.0.0.1:4711"
    with pytest.raises(BrokerError, match=f"No embedded broker runs in {tmp_path}"):
        _ = settings.bootstrap_servers
    assert load_settings(kafka_bootstrap_servers="k:9092", data_dir=tmp_path).bootstrap_servers == "k:9092"


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description and field.description.endswith(".") for field in Settings.model_fields.values())


def test_names_of_protocols_are_taken_in_any_case_and_servers_without_blanks() -> None:
    settings = load_settings(
        kafka_security_protocol=" sasl_ssl",
        kafka_sasl_mechanism="scram-sha-512",
        kafka_bootstrap_servers=" kafka-1:9092, [::1]:9093 ,10.0.0.1:9092,",
    )
    assert (settings.kafka_security_protocol, settings.kafka_sasl_mechanism) == ("SASL_SSL", "SCRAM-SHA-512")
    assert settings.bootstrap_servers == "kafka-1:9092,[::1]:9093,10.0.0.1:9092"


@pytest.mark.parametrize(
    "servers", ["kafka", "kafka:", ":9092", "kafka:0", "kafka:65536", "a b:9092", "a:1;b:2", "::1:1"]
)
def test_an_address_that_is_none_is_refused_at_once(servers: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"kafka_bootstrap_servers \(from a flag\) is wrong: must be host:port"
    ):
        load_settings(kafka_bootstrap_servers=f"fine:9092,{servers}")
