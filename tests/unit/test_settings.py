"""Settings come from the environment once, are bounded and frozen, and never show a password."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tokenrelay.producer import Consumer, Producer
from tokenrelay.shared import settings
from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.redis.connections import connect, connect_async, without_password
from tokenrelay.shared.settings import (
    KNOWN,
    PREFIX,
    CommonSettings,
    GatewaySettings,
    ProducerSettings,
    UnknownSettingWarning,
    WorkerSettings,
)

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("kind", [ProducerSettings, WorkerSettings])
def test_defaults_stand_without_environment(kind: type[CommonSettings]) -> None:
    assert kind.from_environment().redis_url.get_secret_value() == "redis://127.0.0.1:6379/0"


@pytest.mark.parametrize("kind", [ProducerSettings, WorkerSettings])
@pytest.mark.parametrize("name", ["TOKENRELAY_REDIS_ULR", "TOKENRELAY_", "tokenrelay_slot"])
def test_an_unknown_variable_is_an_error(
    kind: type[CommonSettings], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=f"{name}: unknown setting; .*TOKENRELAY_"):
        kind.from_environment()


def test_a_misspelt_variable_is_told_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_REDIS_ULR", "1")
    with pytest.raises(SettingsError, match=r"did you mean TOKENRELAY_REDIS_URL\?"):
        ProducerSettings.from_environment()


def test_a_library_warns_of_an_unknown_variable_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_RETENTION", "1")
    monkeypatch.setattr(settings, "_warned", set())
    with pytest.warns(
        UnknownSettingWarning, match=r"TOKENRELAY_RETENTION: .*did you mean TOKENRELAY_RETENTION_S\?"
    ) as told:
        Producer("redis://127.0.0.1:1/0").close()
    assert told[0].filename == __file__
    Consumer("redis://127.0.0.1:1/0").close()  # a second warning would be an error


@given(
    service=st.from_regex(r"([A-Z][A-Z0-9_]{0,8}_)?", fullmatch=True)
    | st.sampled_from([f"{name.removesuffix('PORT')}" for name in sorted(KNOWN) if name.endswith("_PORT")]).map(
        lambda name: name.removeprefix(PREFIX)
    ),
    host=st.sampled_from(["10.0.0.7", "[fd00::1]"]),
    protocol=st.sampled_from(["tcp", "udp", "sctp"]),
)
def test_kubernetes_service_links_are_nobodys_settings(service: str, host: str, protocol: str) -> None:
    """What kubelet sets for a service named tokenrelay-SERVICE; also of a name such as tokenrelay-http."""
    url, upper = f"{protocol}://{host}:8000", protocol.upper()
    links = {
        "SERVICE_HOST": host,
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "PORT": url,
        f"PORT_8000_{upper}": url,
        f"PORT_8000_{upper}_PROTO": protocol,
        f"PORT_8000_{upper}_PORT": "8000",
        f"PORT_8000_{upper}_ADDR": host,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in links.items():
            patch.setenv(f"{PREFIX}{service}{name}", value)
        gateway, worker = GatewaySettings.from_environment(), WorkerSettings.from_environment()
    assert (gateway.http_port, worker.metrics_port) == (8000, None)


def test_a_port_given_beside_service_links_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_HTTP_SERVICE_HOST", "10.0.0.7")
    monkeypatch.setenv("TOKENRELAY_HTTP_PORT", "9000")
    assert GatewaySettings.from_environment().http_port == 9000
    monkeypatch.setenv("TOKENRELAY_HTTP_PORT", "http://10.0.0.7")
    with pytest.raises(SettingsError, match="TOKENRELAY_HTTP_PORT"):
        GatewaySettings.from_environment()


def test_a_workers_variable_is_none_of_the_producers_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_SLOTS", "8")
    ProducerSettings.from_environment()
    assert WorkerSettings.from_environment().slots == 8


def test_what_is_given_beats_the_environment_and_none_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_SLOTS", "8")
    assert WorkerSettings.from_environment(slots=4).slots == 4
    assert WorkerSettings.from_environment(slots=None).slots == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLOTS", "0"),
        ("SLOTS", "1025"),
        ("SLOTS", "many"),
        ("LEASE_MS", "999"),
        ("LEASE_MS", "60001"),
        ("HEARTBEAT_MS", "49"),
        ("SUSPICION_MS", "99"),
        ("MAX_CRASHES", "0"),
        ("DRAIN_TIMEOUT_S", "-1"),
        ("DEVICE", "tpu"),
        ("DTYPE", "int8"),
        ("RETENTION_S", "0"),
        ("KV_CACHE_TOKENS", "15"),
    ],
)
def test_bounds_are_kept_and_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SettingsError, match=f"^{PREFIX}{name}: "):
        WorkerSettings.from_environment()


@pytest.mark.parametrize("kind", [ProducerSettings, WorkerSettings])
def test_every_setting_is_described_and_every_number_bounded(kind: type[CommonSettings]) -> None:
    for name, setting in kind.model_fields.items():
        assert setting.description, name
        if setting.annotation in (int, float):
            assert setting.metadata, f"{name} has no bound"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        WorkerSettings.from_environment().slots = 1


def test_the_password_is_never_shown() -> None:
    settings = ProducerSettings.from_environment(redis_url=f"redis://:{SECRET}@localhost:6379/0")
    for shown in (repr(settings), str(settings), repr(settings.model_dump()), settings.model_dump_json()):
        assert SECRET not in shown


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@localhost:6379/0",
        f"redis://:{SECRET}/x@localhost",
        f"redis://:x/{SECRET}@localhost",
        f"redis://user:{SECRET}@{SECRET}@localhost",
        f"unix:///run/redis.sock?db=0&password={SECRET}",
        f":{SECRET}@localhost",
    ],
)
def test_urls_are_shown_without_password(url: str) -> None:
    assert SECRET not in without_password(url)


def test_an_url_without_password_is_shown_as_it_is() -> None:
    assert without_password("redis://localhost:6379/0") == "redis://localhost:6379/0"


@pytest.mark.parametrize("connecting", [connect, connect_async])
@pytest.mark.parametrize("url", [f"http://:{SECRET}@localhost", f"redis://:{SECRET}/x@localhost", "localhost:6379"])
def test_a_bad_url_is_named_without_its_password(connecting: object, url: str) -> None:
    assert callable(connecting)
    with pytest.raises(SettingsError, match="TOKENRELAY_REDIS_URL") as caught:
        connecting(url)
    assert SECRET not in str(caught.value)
