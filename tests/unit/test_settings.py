"""Settings come from the environment once, are bounded and frozen, and never show a password."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tokenrelay.shared.connections import connect, connect_async, without_password
from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.settings import KNOWN, PREFIX, CommonSettings, ProducerSettings, WorkerSettings

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
    with pytest.raises(SettingsError, match=f"{name}: unknown setting; known ones are .*TOKENRELAY_REDIS_URL"):
        kind.from_environment()


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
