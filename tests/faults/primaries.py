"""A primary, its replica, and the way between them: a failover that loses writes, without Sentinel.

What Sentinel would do is done by hand (promote, let clients reach the new primary); what clients go through is the
same: connections lost, another server behind the same address, the last writes missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.proxy import Proxy
from tests.redis_servers import RedisServer
from tests.waiting import wait_until
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from tests.faults.site import Site


class PrimaryAndReplica:
    """`site`'s server and a replica of it; after each `fail_over` the roles are changed."""

    def __init__(self, site: Site) -> None:
        self._site = site
        folder = site.folder / "replica"
        folder.mkdir()
        self._replica = RedisServer(folder, "--repl-diskless-sync-delay", "0")
        self._link = Proxy(site.server.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()
        self._replica.kill()

    def replicate(self) -> None:
        """Let the replica catch up and follow."""
        self._link.upstream = self._site.server.port
        self._link.switch("pass")
        with connect(self._replica.url) as replica:
            replica.replicaof("127.0.0.1", str(self._link.port))
            wait_until(lambda: replica.info("replication").get("master_link_status") == "up", 30)

    def part(self) -> None:
        """From now on the replica misses what is written."""
        self._link.switch("hold")

    def fail_over(self, request_ids: Sequence[str]) -> int:
        """The primary dies, the replica takes its place, clients find it under the same address.

        Returns how many entries of these requests' streams the primary had acknowledged and the replica lacks.
        """
        site, old = self._site, self._site.server
        site.proxy.switch("drop")
        had = self._length(request_ids)
        old.kill()
        self._link.switch("drop")
        with connect(self._replica.url) as replica:
            replica.replicaof("NO", "ONE")
        site.server = site.streams = self._replica
        self._replica = old
        site.redis.close()
        site.redis = site.server.client()
        site.pipeline = Pipeline(site.redis)
        missed = had - self._length(request_ids)
        site.proxy.upstream = site.server.port
        site.proxy.switch("pass")
        self._replica.start()
        return missed

    def _length(self, request_ids: Sequence[str]) -> int:
        return sum(self._site.redis.xlen(keys.stream(request_id)) for request_id in request_ids)
