"""rq-dashboard, safe for untrusted jobs: nothing is unpickled or modified.

Two pages of rq-dashboard 0.9 read jobs with RQ's default serializer, pickle, whatever is configured. Here the default
is JSON, and unpickling raises in the whole process. Its Redis user is read-only: see users.acl.
"""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any, NoReturn

from rq import serializers


def refuse(*arguments: Any, **named: Any) -> NoReturn:
    raise pickle.UnpicklingError("unpickling is disabled")


pickle.loads = refuse
pickle.load = refuse
serializers.PickleSerializer.loads = staticmethod(refuse)
# Before any RQ module reads it.
serializers.DefaultSerializer = serializers.JSONSerializer  # type: ignore[misc]

from rq_dashboard import web  # noqa: E402
from rq_dashboard.cli import make_flask_app  # noqa: E402


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    web.config.serializer = serializers.JSONSerializer
    app = make_flask_app(None, None, None, "")
    app.config["RQ_DASHBOARD_REDIS_URL"] = Path(os.environ["TOKENRELAY_REDIS_URL_FILE"]).read_text("utf-8").strip()
    app.config["RQ_DASHBOARD_DISABLE_DELETE"] = True
    app.config["DEPRECATED_OPTIONS"] = []
    web.setup_rq_connection(app)
    app.run(host="0.0.0.0", port=9181)


if __name__ == "__main__":
    main()
