"""The worker under RQ's own command: `rq worker -w tokenrelay.worker.generation_worker.GenerationWorker QUEUES…`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from rq.logutils import setup_loghandlers
from rq.worker import BaseWorker

from tokenrelay.shared.redis.servers import connect
from tokenrelay.shared.settings import WorkerSettings

if TYPE_CHECKING:
    from redis import Redis


class GenerationWorker(BaseWorker):
    """What `rq worker` constructs and calls. It accepts subclasses of RQ's BaseWorker only; nothing else of it is used.

    The queue plane is on RQ's connection; the token plane too, unless TOKENRELAY_STREAMS_URL is set.
    The queues are the served model's, whatever names are given. There is no scheduler (it forks, and torch is loaded),
    and the queues are served in order of priority.
    """

    log = logging.getLogger("rq.worker")

    def __init__(self, queues: Any = (), name: str | None = None, *, connection: Redis, **_: Any) -> None:
        """Raises SettingsError."""
        from tokenrelay.worker.worker import Worker  # brings torch, which a pool's parent doesn't need

        settings = WorkerSettings.from_environment(worker_name=name)
        streams = None if settings.streams_url is None else connect(settings.urls).token
        self._worker = Worker(settings, connection=connection, streams_connection=streams)

    def work(self, burst: bool = False, logging_level: str | None = None, *_: Any, **options: Any) -> bool:
        """As Worker.work. Of RQ's other options, max_jobs, max_idle_time and the log formats have an effect."""
        formats = {option: options[option] for option in ("date_format", "log_format") if option in options}
        setup_loghandlers(logging_level, name="tokenrelay", **formats)
        self._worker.handle_signals()
        limits = {"max_jobs": options.get("max_jobs"), "max_idle_s": options.get("max_idle_time")}
        return self._worker.work(burst=burst, **limits)
