"""The settings of every process: one frozen class each, read from the environment once and passed on.

They stand together because the processes share an environment: a TOKENRELAY_* variable that none of them knows is a
spelling mistake. A command refuses it at start; a library, which is a guest in another program, warns of it.
Kubernetes sets variables of this form too, where a service is named tokenrelay-…: these are nobody's settings.
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
"""What Kubernetes calls the variables of a service, behind our prefix; beside these there is …PORT, by its value."""
_SERVICE_URL: Final = re.compile(r"(tcp|udp|sctp)://")


class UnknownSettingWarning(UserWarning):
    """A TOKENRELAY_* variable that no process knows: probably misspelt, and without effect."""


class CommonSettings(BaseSettings):
    """What every process needs to find Redis."""

    # Empty is not given: compose files pass on variables that their user may have left out.
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis: redis://, rediss://, unix:// or redis+sentinel://, password included. For TLS with a CA of "
        "your own: rediss://user:password@host:6380/0?ssl_ca_certs=/path/ca.pem. Behind Sentinels: "
        "redis+sentinel://user:password@host1:26379,host2:26379/SERVICE/0",
    )
    redis_url_file: Path | None = Field(
        default=None, description="File that holds the URL, such as a Docker secret; read where no URL is given."
    )
    streams_url: SecretStr | None = Field(
        default=None,
        description="Redis of the token plane, in the same forms: each request's hash and stream, for installations "
        "that keep them apart from the queues. Every process needs the same two URLs. Default: the queues' Redis.",
    )
    streams_url_file: Path | None = Field(default=None, description="File that holds that URL.")
    retention_s: int = Field(
        default=3600,
        ge=1,
        le=MAX_RETENTION_S,
        description="Seconds that a request and its stream are kept after their end.",
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
        """The settings of a command: `given` first, then the environment. Raises SettingsError naming the variable."""
        refuse_unknown(os.environ)
        return cls._read(**given)

    @classmethod
    def of_library(cls, **given: Any) -> Self:
        """As `from_environment`; but an unknown variable is only warned of, once."""
        for name in _unknown(os.environ):
            if name not in _warned:
                _warned.add(name)
                warnings.warn(_told(name), UnknownSettingWarning, stacklevel=4)
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
    """A producer's or consumer's."""

    model: str = Field(default=DEFAULTS["model"], description="The model that requests ask when they name none.")
    max_prompt_chars: int = Field(
        default=200_000, ge=1, description="Longest prompt, or sum of messages, in characters."
    )
    max_new_tokens_limit: int = Field(
        default=131_072,
        ge=1,
        description="Longest answer in tokens, of requests that give no limit or a larger one. The model's context may "
        "leave less.",
    )
    max_queue_depth: int = Field(
        default=10_000, ge=1, description="Requests that may wait in one queue before QueueFull."
    )

    @property
    def limits(self) -> Limits:
        return Limits(max_prompt_chars=self.max_prompt_chars, max_new_tokens=self.max_new_tokens_limit)


class MeasuredSettings(CommonSettings):
    """Of a process that can be scraped."""

    metrics_host: str = Field(default="127.0.0.1", description="Address that /metrics listens on.")
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Port of /metrics, for Prometheus (docs/metrics.md); off where none is given. A worker's engines "
        "take this one and those behind it, one each.",
    )


class GatewaySettings(ProducerSettings, MeasuredSettings):
    """The HTTP gateway's; the producer's hold for what it submits."""

    http_host: str = Field(default="127.0.0.1", description="Address that the gateway listens on.")
    http_port: int = Field(default=8000, ge=0, le=65_535, description="Port that it listens on; 0 takes a free one.")
    api_keys: SecretStr | None = Field(
        default=None,
        description="API keys as JSON (docs/gateway.md); anybody may ask where neither this nor a file is given.",
    )
    api_keys_file: Path | None = Field(default=None, description="File that holds the same JSON.")
    key_max_concurrent: int = Field(
        default=64,
        ge=1,
        le=10_000,
        description="Unended requests that an API key may have, unless it says so itself.",
    )
    key_max_queued: int = Field(default=32, ge=1, le=10_000, description="Of those, how many may wait for a worker.")
    disconnect_grace_s: float = Field(
        default=1.0,
        ge=0,
        le=3600,
        description="Seconds after its last reader left in which a request that isn't durable isn't cancelled yet.",
    )
    first_word_s: float = Field(
        default=5.0,
        ge=0,
        le=60,
        description="Seconds that a streamed answer's HTTP status waits for its first token, so that a request which "
        "fails before it gets an error's status; after them the stream begins. 0 begins every stream at once.",
    )
    comment_s: float = Field(
        default=15.0, gt=0, le=300, description="Seconds between the comments that keep a silent event stream open."
    )
    unknown_fields: Literal["ignore", "refuse"] = Field(
        default="ignore",
        description="What is done with a field that nobody knows: it is named in the answer's header, or a 400.",
    )
    max_body_bytes: int = Field(default=2_000_000, ge=1024, description="Largest body of an HTTP request.")
    max_header_bytes: int = Field(default=65_536, ge=1024, description="Most bytes before an HTTP request's body.")
    receive_timeout_s: float = Field(
        default=20.0, gt=0, le=600, description="Seconds in which an HTTP request must have come, body included."
    )
    keep_alive_s: int = Field(
        default=75,
        ge=1,
        le=3600,
        description="Seconds that an idle HTTP connection is kept open for its client's next request; more than the "
        "idle timeout of a load balancer in front (AWS: 60).",
    )
    max_connections: int = Field(default=4000, ge=1, description="HTTP connections at a time; more are told 503.")
    allowed_hosts: str = Field(
        default="",
        description="Names, separated by commas, under which a gateway without API keys may be asked, beside addresses "
        "and local names (no dot, .local, .internal, .svc, …); *.example.com is all below it, * any. Others are told "
        "403: a web page could make its name point here.",
    )
    cors_origins: str = Field(
        default="", description="Origins, separated by commas, whose pages may call the gateway; * is all of them."
    )


class WorkerSettings(MeasuredSettings):
    """A worker's."""

    model_path: str | None = Field(
        default=None, description="Model folder or Hub name to load; the bundled weather model where none is given."
    )
    served_model: str | None = Field(
        default=None, description="The name that requests ask for; the folder's or Hub name where none is given."
    )
    worker_name: str | None = Field(default=None, description="Unique name of the worker; drawn where none is given.")
    slots: int = Field(default=32, ge=1, le=1024, description="Requests generated at the same time.")
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto takes CUDA, else the CPU."
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32", "float64"] = Field(
        default="auto", description="auto is bfloat16 on CUDA, else float32."
    )
    kv_cache_tokens: int | None = Field(
        default=None,
        ge=16,
        description="Tokens that the KV cache holds. Where not given: on a CPU what all slots need at full context, in "
        "a quarter of the free memory at most; on a GPU what is free there.",
    )
    max_batch_tokens: int | None = Field(
        default=None, ge=1, description="Tokens computed in one step, prefill included."
    )
    generation_config: Literal["auto", "none"] = Field(
        default="auto",
        description="auto: temperature, top_k and top_p of the model's generation_config.json hold where a request "
        "gives none; none: they don't.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with a model. Off, and best left so."
    )
    lease_ms: int = Field(default=6000, ge=1000, le=60_000, description="How long a silent worker keeps its requests.")
    heartbeat_ms: int = Field(
        default=300,
        ge=50,
        le=5000,
        description="How often leases that no token renewed are, and cancels that nobody announced looked for.",
    )
    suspicion_ms: int = Field(default=500, ge=100, description="Between the two looks at a lease that ran out.")
    max_crashes: int = Field(
        default=3, ge=1, description="Worker deaths in a row after which a request is failed as poison."
    )
    stall_timeout_s: float = Field(
        default=60.0,
        ge=1,
        description="Seconds without progress, with work in flight, after which an engine is killed as hung. Prefill "
        "counts, layer by layer.",
    )
    drain_timeout_s: float = Field(
        default=20.0, ge=0, description="Seconds after SIGTERM in which running requests may finish."
    )
    ready_file: Path | None = Field(
        default=None,
        description="File that is touched with every report of a loaded model: health checks look at its age.",
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
    """Raises SettingsError for a TOKENRELAY_* variable that is nobody's setting."""
    for name in _unknown(environment):
        raise SettingsError(_told(name))


def _unknown(environment: Mapping[str, str]) -> list[str]:
    return sorted(
        name
        for name, value in environment.items()
        if name.upper().startswith(PREFIX) and name.upper() not in KNOWN and not _is_service_link(name.upper(), value)
    )


def _told(name: str) -> str:
    alike = difflib.get_close_matches(name.upper(), KNOWN, n=1, cutoff=0.8)
    advice = f"did you mean {alike[0]}?" if alike else f"known ones are {', '.join(sorted(KNOWN))}"
    return f"{name}: unknown setting; {advice}"


def _is_service_link(name: str, value: object) -> bool:
    rest = name.removeprefix(PREFIX)
    is_port = rest == "PORT" or rest.endswith("_PORT")
    return bool(_SERVICE_LINK.fullmatch(rest) or (is_port and _SERVICE_URL.match(str(value))))
