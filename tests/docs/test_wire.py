"""docs/wire.md against the code: version 1's lists hold exactly what the code writes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tokenrelay.shared import options
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State
from tokenrelay.shared.wire.transitions import TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "wire.md").read_text("utf-8")
ONE, TWO = PAGE.split("\n# Version 2\n")
SCRIPTS: Final = ROOT / "shared" / "tokenrelay" / "shared" / "store" / "scripts"
TOKEN_PLANE: Final = "\n".join(path.read_text("utf-8") for path in sorted((SCRIPTS / "token").glob("*.lua")))
QUEUE_PLANE: Final = "\n".join(path.read_text("utf-8") for path in sorted((SCRIPTS / "queue").glob("*.lua")))


def section(version: str, title: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^#|\Z)", version, re.MULTILINE | re.DOTALL)
    assert found, f"docs/wire.md has no section {title!r}"
    return found[1]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of its tables' rows, without heads."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def listed(version: str, title: str, column: int = 0) -> list[str]:
    """The names in a column of a section's tables."""
    return [name for cells in rows(section(version, title)) for name in names(cells[column])]


def calls(lua: str, command: str, key: str) -> Iterator[list[str]]:
    """The arguments behind the key, of each call of a command."""
    for found in re.finditer(rf"redis\.call\('{command}', {key}, ", lua):
        yield arguments(lua, found.end())


def arguments(lua: str, at: int) -> list[str]:
    """What stands from here to the closing bracket, by the commas that are in no bracket of their own."""
    parts, depth = [""], 0
    for character in lua[at:]:
        depth += (character in "({") - (character in ")}")
        if depth < 0:
            break
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def written_fields() -> set[str]:
    """The request hash's fields that a script writes."""
    written = set()
    for given in calls(TOKEN_PLANE, "HSET", "request"):
        assert all(re.fullmatch(r"'\w+'", name) for name in given[::2]), given
        written |= {name.strip("'") for name in given[::2]}
    return written


def read_fields() -> set[str]:
    """Those that a script reads or deletes."""
    return {
        name
        for command in ("HMGET", "HGET", "HDEL")
        for given in calls(TOKEN_PLANE, command, "request")
        for name in re.findall(r"'(\w+)'", ",".join(given))
    }


def written_of_version_2() -> set[str]:
    """The names that the page says are written of version 2."""
    found = re.search(r"\*\*Written by this release\*\*:(.*?)^- ", TWO, re.DOTALL | re.MULTILINE)
    assert found
    return set(names(found[1]))


def test_the_hashs_fields_are_those_that_the_scripts_write() -> None:
    assert len(written_fields()) > 20
    assert read_fields() <= written_fields()
    added = written_of_version_2() & set(listed(TWO, "New hash fields"))
    assert added == {"effective", "prompt_logprobs"}
    assert sorted([*listed(ONE, "Request hash"), *added]) == sorted(written_fields())


def test_the_request_json_has_the_codes_fields() -> None:
    stored = set(options.VERSION_1) - {"idempotency_key"}
    assert sorted(listed(ONE, "Request JSON")) == sorted(stored)
    written = set(options.VERSION_2) | set(options.ONLY_CHOICE)
    assert written_of_version_2() & set(listed(TWO, "New request JSON fields")) == written


def test_the_states_are_the_codes_with_their_ends() -> None:
    found = {names(cells[0])[0]: cells[1] for cells in rows(section(ONE, "States")) if names(cells[0])}
    assert found == {str(state): "yes" if state.terminal else "no" for state in State}


def test_the_entries_are_those_that_follow_each_other() -> None:
    kinds = {kind for following in TRANSITIONS.values() for kind in following}
    assert sorted(["token", *listed(ONE, "Entries")]) == sorted(kinds)


def test_each_entrys_fields_are_those_that_the_scripts_write_in_their_order() -> None:
    told = {cells[0].strip("`"): names(cells[2]) for cells in rows(section(ONE, "Entries"))}
    token = re.findall(r"'text', ARGV.*?'at_us', at_us\)", TOKEN_PLANE)[0]
    assert told["token"] == re.findall(r"'(\w+)'", token)
    queued = re.search(r"'0-1', (.*?'metadata'), ARGV", TOKEN_PLANE)
    assert queued
    assert told["queued"] == [name for name in re.findall(r"'(\w+)'", queued[1]) if name != "queued"]
    for kind in ("started", "migrated"):
        begin = ["event", "at_us"]
        for found in re.finditer(rf"write_event\('{kind}', now, {{", TOKEN_PLANE):
            written = arguments(TOKEN_PLANE, found.end())[::2]
            assert told[kind] == [*begin, *(name.strip("'") for name in written)]
    ending = next(kind for kind in told if "completed" in kind)
    body = re.search(r"local function terminate\(.*?^end", TOKEN_PLANE, re.DOTALL | re.MULTILINE)
    assert body
    fields = re.findall(r"'(\w+)'", body[0].partition("if not write_event")[0].partition("local all")[2])
    assert told[ending] == ["event", "at_us", *fields]


def test_the_keys_are_those_of_the_one_module_that_spells_them() -> None:
    request_id, queue = "ID", "QUEUE"
    spelled = {
        keys.request(request_id), keys.stream(request_id), keys.attached(request_id), keys.claimed(queue),
        keys.maintainer(queue), keys.of_owner("NAME"), keys.WAKE, keys.ENDED, keys.QUEUED,
        *(re.sub(r"[0-9a-f]{64}", "HASH", key("k")) for key in (keys.idempotency, keys.idempotency_mark)),
    }  # fmt: skip
    assert sorted(name for name in listed(ONE, "Keys")) == sorted(spelled)
    planes = {names(cells[0])[0]: cells[1] for cells in rows(section(ONE, "Keys")) if names(cells[0])}
    assert planes == {name: str(keys.plane_of(name)) for name in spelled}
    ours = [name for name, value in vars(keys).items() if inspect.isfunction(value) and "tokenrelay:" in _source(value)]
    assert len(ours) == 7, f"another key than those above: {ours}"


def _source(function: object) -> str:
    return inspect.getsource(function)  # type: ignore[arg-type]


def test_rqs_side_names_each_field_of_ours_that_a_script_writes() -> None:
    told = set(listed(ONE, "RQ's side", column=1))
    job = {"alone", "alone_for", "alone_until", "crashed", "refused:KIND", "times:refused:KIND", "queue", "waits"}
    assert job <= told
    for name in job:
        assert name.partition(":")[0] in QUEUE_PLANE


@pytest.mark.parametrize(
    ("title", "code"),
    [("New request JSON fields", {*options.DEFAULTS, *options.ONLY_CHOICE}), ("New hash fields", written_fields())],
)
def test_what_is_reserved_is_not_written_yet(title: str, code: set[str]) -> None:
    """Implementing a part of version 2 requires changing the page's list of what is written."""
    assert "**Reserved: not written yet**" in TWO
    named = listed(TWO, title)
    assert len(named) == len(set(named)) > 4
    assert set(named) & code == set(named) & written_of_version_2()


def test_the_reserved_events_are_unknown() -> None:
    events = section(TWO, "New in entries").partition("| new event |")[2]
    reserved = [names(cells[0])[0] for cells in rows(events) if names(cells[0])]
    assert reserved == ["preempted", "forked"]
    assert not set(reserved) & {kind for following in TRANSITIONS.values() for kind in following}
    assert not [kind for kind in reserved if f"'{kind}'" in TOKEN_PLANE]
