"""What a recipe is told, and how it reports: the driver names a scenario a line, and gets a line of JSON for each.

Where BASE_URL and the others come from matters to nobody who reads a recipe: they are the gateway's address with /v1,
an API key, and the names of its models.
"""

import asyncio
import gc
import inspect
import json
import os
import sys
from importlib.metadata import version

BASE_URL = os.environ["CLIENT_BASE_URL"]
API_KEY = os.environ["CLIENT_API_KEY"]
MODEL = os.environ["CLIENT_MODEL"]
ENDLESS = os.environ["CLIENT_ENDLESS_MODEL"]
QUESTIONS = json.loads(os.environ["CLIENT_QUESTIONS"])
JSON_QUESTIONS = json.loads(os.environ["CLIENT_JSON_QUESTIONS"])
DAYS_QUESTION = os.environ["CLIENT_DAYS_QUESTION"]
DAYS = int(os.environ["CLIENT_DAYS"])
SEED = int(os.environ["CLIENT_SEED"])
PROXY = json.loads(os.environ.get("CLIENT_PROXY", "{}"))
LONG_QUESTION = QUESTIONS[0] * 1000

_out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a package prints goes to stderr


def run(packages, *scenarios, **versions):
    """Report the packages' versions, then the result of each scenario that the driver asks for."""
    found = {**{package: version(package) for package in packages}, **versions}
    known = {scenario.__name__: scenario for some in scenarios for scenario in some}
    _say({"versions": found, "scenarios": list(known)})
    with asyncio.Runner() as runner:
        # The event loop runs while the driver thinks, as an application's does: what was cancelled ends.
        for line in iter(lambda: runner.run(asyncio.to_thread(sys.stdin.readline)), ""):
            _say(_result(known[line.strip()], runner))


def _result(scenario, runner):
    try:
        result = scenario()
        if inspect.iscoroutine(result):
            result = runner.run(result)
    except Exception as error:  # noqa: BLE001  whatever the package raises is the result
        return {"error": _described(error)}
    gc.collect()  # some packages leave it to this to close a stream that was left: sooner or later it comes by itself
    return {"answers": result}


def _described(error):
    """What a caller can tell the error by: its classes, its status and code, its message; and its causes' likewise."""
    described = []
    while error is not None and len(described) < 5:
        classes = [each.__name__ for each in type(error).__mro__ if each not in (Exception, BaseException, object)]
        status = getattr(error, "status_code", None)
        described.append(f"{' < '.join(classes)} [status {status}, code {getattr(error, 'code', None)}]: {error}")
        error = error.__cause__ or error.__context__
    return "\ncaused by ".join(described)


def _say(value):
    print(json.dumps(value, default=str), file=_out, flush=True)
