"""The settings of every process: one frozen class each, read from the environment once and passed on.

They share a module because the processes share an environment: a TOKENRELAY_* variable that none of them defines is a
spelling mistake. A command refuses it at start; a library, which runs in another program, only warns.
Kubernetes sets variables of this form for a service named tokenrelay-…; these are ignored.
"""

from __future__ import annotations

import difflib
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.options import DEFAULTS, Limits
from tokenrelay.shared.redis.servers import Urls

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "TOKENRELAY_"
MAX_RETENTION_S: Final = 30 * 86_400
_SERVICE_LINK: Final = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
"""Names that Kubernetes gives to a service's variables, after our prefix; …PORT is recognized by its value instead."""
_SERVICE_URL: Final = re.compile(r"(tcp|udp|sctp)://")


class UnknownSettingWarning(UserWarning):
    """A TOKENRELAY_* variable that no process defines: probably misspelt, and without effect."""


class CommonSettings(BaseSettings):
    """Settings of every process: how to reach Redis."""

    # An empty variable counts as unset: compose files pass on variables that their user may have left out.
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis URL: redis://, rediss://, unix:// or redis+sentinel://, password included. TLS with a "
        "private CA: rediss://user:password@host:6380/0?ssl_ca_certs=/path/ca.pem. Behind Sentinels: "
        "redis+sentinel://user:password@host1:26379,host2:26379/SERVICE/0",
    )
    redis_url_file: Path | None = Field(
        default=None, description="File with the Redis URL, such as a Docker secret; read if no URL is given."
    )
    streams_url: SecretStr | None = Field(
        default=None,
        description="Redis URL of the token plane (each request's hash and stream), if it's on another server "
        "than the queues. Same forms; every process needs the same two URLs. Default: the Redis of "
        "the queues.",
    )
    streams_url_file: Path | None = Field(default=None, description="File with that URL; read if no URL is given.")
    retention_s: int = Field(
        default=3600,
        ge=1,
        le=MAX_RETENTION_S,
        description="Seconds for which a request and its stream are kept after its end.",
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_service_links(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A service named tokenrelay-http gives TOKENRELAY_HTTP_PORT=tcp://10.0.0.7:8000, which is no port of ours."""
        return {name: value for name, value in values.items() if not _is_service_link(PREFIX + name.upper(), value)}

    @model_validator(mode="before")
    @classmethod
    def _read_url_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Raises SettingsError for a file that can't be read."""
        return _with_file(_with_file(values, "redis_url"), "streams_url")

    @property
    def urls(self) -> Urls:
        """Where the planes' servers are."""
        queue = self.redis_url.get_secret_value()
        return Urls(queue, queue if self.streams_url is None else self.streams_url.get_secret_value())

    @classmethod
    def from_environment(cls, **given: Any) -> Self:
        """The settings of a command; `given` takes precedence over the environment. Raises SettingsError."""
        refuse_unknown(os.environ)
        return cls._read(**given)

    @classmethod
    def of_library(cls, **given: Any) -> Self:
        """As `from_environment`, but an unknown variable only causes a warning, once."""
        for name in _unknown(os.environ):
            if name not in _warned:
                _warned.add(name)
                warnings.warn(_unknown_setting(name), UnknownSettingWarning, stacklevel=4)
        return cls._read(**given)

    @classmethod
    def _read(cls, **given: Any) -> Self:
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
            raise SettingsError(f"{name}: {first['msg']}") from None


class ProducerSettings(CommonSettings):
    """Settings of a producer or consumer."""

    model: str = Field(default=DEFAULTS["model"], description="Default model of requests.")
    max_prompt_chars: int = Field(
        default=200_000, ge=1, description="Maximum length of a prompt, or of all messages together, in characters."
    )
    max_new_tokens_limit: int = Field(
        default=131_072,
        ge=1,
        description="Maximum tokens of an answer, for requests with a larger limit or none. The model's context "
        "may allow less.",
    )
    max_queue_depth: int = Field(
        default=10_000, ge=1, description="Maximum requests waiting in one queue; a submit beyond it raises QueueFull."
    )

    @property
    def limits(self) -> Limits:
        return Limits(max_prompt_chars=self.max_prompt_chars, max_new_tokens=self.max_new_tokens_limit)


class MeasuredSettings(CommonSettings):
    """Settings of a process that serves /metrics."""

    metrics_host: str = Field(default="127.0.0.1", description="Address to serve /metrics on.")
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Port of /metrics for Prometheus (docs/metrics.md); off by default. Each further engine of a "
        "worker uses the next port.",
    )


class GatewaySettings(ProducerSettings, MeasuredSettings):
    """Settings of the HTTP gateway; a producer's apply to what it submits."""

    http_host: str = Field(default="127.0.0.1", description="Address to listen on.")
    http_port: int = Field(default=8000, ge=0, le=65_535, description="Port to listen on; 0 picks a free one.")
    api_keys: SecretStr | None = Field(
        default=None,
        description="API keys as JSON (docs/gateway.md). Without this and the file, no key is required.",
    )
    api_keys_file: Path | None = Field(default=None, description="File with the same JSON.")
    key_max_concurrent: int = Field(
        default=64,
        ge=1,
        le=10_000,
        description="Maximum open requests of an API key that sets no limit of its own.",
    )
    key_max_queued: int = Field(default=32, ge=1, le=10_000, description="Maximum of these that wait for a worker.")
    disconnect_grace_s: float = Field(
        default=1.0,
        ge=0,
        le=3600,
        description="Seconds between the last reader's disconnect and the cancellation of a non-durable request.",
    )
    first_word_s: float = Field(
        default=5.0,
        ge=0,
        le=60,
        description="Seconds to hold back the HTTP status of a streamed answer until its first token, so that an "
        "early failure gets an error status. 0 starts every stream at once.",
    )
    comment_s: float = Field(
        default=15.0,
        gt=0,
        le=300,
        description="Interval of the comments that keep an event stream open, in seconds.",
    )
    unknown_fields: Literal["ignore", "refuse"] = Field(
        default="ignore",
        description="Unknown fields of a request: ignore them, and list them in a response header, or answer 400.",
    )
    max_body_bytes: int = Field(default=2_000_000, ge=1024, description="Maximum body of an HTTP request, in bytes.")
    max_header_bytes: int = Field(
        default=65_536, ge=1024, description="Maximum size of an HTTP request's line and headers, in bytes."
    )
    receive_timeout_s: float = Field(
        default=20.0, gt=0, le=600, description="Seconds to receive a whole HTTP request, body included."
    )
    keep_alive_s: int = Field(
        default=75,
        ge=1,
        le=3600,
        description="Idle timeout of an HTTP connection, in seconds. Set it above the idle timeout of a load "
        "balancer in front (AWS: 60).",
    )
    max_connections: int = Field(default=4000, ge=1, description="Maximum concurrent HTTP connections; others get 503.")
    allowed_hosts: str = Field(
        default="",
        description="Host names, comma-separated, that a gateway without API keys accepts, beside IP addresses "
        "and local names (no dot, .local, .internal, .svc, …); *.example.com covers its subdomains, * "
        "all. Others get 403, against DNS rebinding.",
    )
    cors_origins: str = Field(
        default="", description="Origins, comma-separated, whose pages may call the gateway (CORS); * allows all."
    )


class WorkerSettings(MeasuredSettings):
    """Settings of a worker."""

    model_path: str | None = Field(
        default=None, description="Model folder or Hub name to load. Default: the bundled weather model."
    )
    served_model: str | None = Field(
        default=None, description="Model name in requests. Default: the folder's or Hub name."
    )
    worker_name: str | None = Field(default=None, description="Unique name of the worker. Default: a random one.")
    slots: int = Field(default=32, ge=1, le=1024, description="Maximum requests in the engine's batch.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="Device; auto is CUDA if available, else the CPU.",
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32", "float64"] = Field(
        default="auto", description="Data type of weights and activations; auto is bfloat16 on CUDA, else float32."
    )
    kv_cache_tokens: int | None = Field(
        default=None,
        ge=16,
        description="Capacity of the KV cache in tokens. Default: on a CPU all slots at full context, at most a "
        "quarter of the free memory; on a GPU the free memory.",
    )
    max_batch_tokens: int | None = Field(
        default=None, ge=1, description="Maximum tokens computed in one step, prefill included."
    )
    generation_config: Literal["auto", "none"] = Field(
        default="auto",
        description="auto: the sampling options of the model's generation_config.json are the defaults of "
        "requests; none: ignore that file.",
    )
    tool_parser: Literal["auto", "none", "hermes", "llama3_json", "mistral", "harmony", "json"] = Field(
        default="auto",
        description="Format in which the model writes calls of tools; auto: the one that its chat template shows; "
        "none: requests with tools are refused.",
    )
    trust_remote_code: bool = Field(default=False, description="Run Python code that comes with a model.")
    lease_ms: int = Field(
        default=6000,
        ge=1000,
        le=60_000,
        description="Duration of a lease: how long a worker without a sign of life keeps its requests.",
    )
    heartbeat_ms: int = Field(
        default=300,
        ge=50,
        le=5000,
        description="Interval of the heartbeat, which renews idle leases and polls for cancels, in ms.",
    )
    suspicion_ms: int = Field(
        default=500, ge=100, description="Time between the two checks that confirm an expired lease, in ms."
    )
    max_crashes: int = Field(
        default=3, ge=1, description="Consecutive worker deaths after which a request fails as poison."
    )
    stall_timeout_s: float = Field(
        default=60.0,
        ge=1,
        description="Seconds without progress, with requests in flight, after which an engine is killed as hung. "
        "Each layer of a prefill is progress.",
    )
    drain_timeout_s: float = Field(
        default=20.0, ge=0, description="Seconds after SIGTERM for running requests to finish."
    )
    ready_file: Path | None = Field(
        default=None,
        description="File to touch with every report of a loaded model; health checks read its age.",
    )


KNOWN: Final = frozenset(
    PREFIX + name.upper() for settings in (GatewaySettings, WorkerSettings) for name in settings.model_fields
)


_warned: Final[set[str]] = set()


def _with_file(values: dict[str, Any], name: str) -> dict[str, Any]:
    """The values, `name` from its file where only that is given. Raises SettingsError for one that can't be read."""
    file = values.get(f"{name}_file")
    if file is None or name in values:
        return values
    try:
        return {**values, name: Path(file).read_text("utf-8").strip()}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{PREFIX}{name.upper()}_FILE: {error}") from None


def refuse_unknown(environment: Mapping[str, str]) -> None:
    """Raises SettingsError for a TOKENRELAY_* variable that no process defines."""
    for name in _unknown(environment):
        raise SettingsError(_unknown_setting(name))


def _unknown(environment: Mapping[str, str]) -> list[str]:
    return sorted(
        name
        for name, value in environment.items()
        if name.upper().startswith(PREFIX) and name.upper() not in KNOWN and not _is_service_link(name.upper(), value)
    )


def _unknown_setting(name: str) -> str:
    alike = difflib.get_close_matches(name.upper(), KNOWN, n=1, cutoff=0.8)
    advice = f"did you mean {alike[0]}?" if alike else f"known ones are {', '.join(sorted(KNOWN))}"
    return f"{name}: unknown setting; {advice}"


def _is_service_link(name: str, value: object) -> bool:
    rest = name.removeprefix(PREFIX)
    is_port = rest == "PORT" or rest.endswith("_PORT")
    return bool(_SERVICE_LINK.fullmatch(rest) or (is_port and _SERVICE_URL.match(str(value))))
