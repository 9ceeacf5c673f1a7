"""Logs for machines and for people, from our code and from libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime

import pytest

HOSTILE = 'x\n{"event": "forged"}\r\x1b[2J\x00'
SCRIPT = f"""
import logging, sys, structlog
from losswire_server.logs import configure_logs
configure_logs(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
hostile = {HOSTILE!r}
structlog.get_logger().debug("detail")
structlog.get_logger().info("serving", address=hostile)
logging.getLogger("grpc").info("library detail")
logging.getLogger("grpc").warning("library said %s", hostile)
try:
    raise RuntimeError("boom " + hostile)
except RuntimeError as error:
    structlog.get_logger().error("backend failed", request_id="1", exc_info=error)
    logging.getLogger("asyncio").exception("callback failed")
"""


def log(log_format: str, level: str, *process: str) -> list[str]:
    """What a process writes to standard error with these settings; nothing may go to standard output."""
    command = [sys.executable, "-c", SCRIPT, log_format, level, *process]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == ""
    return result.stderr.split("\n")[:-1]


def test_every_line_is_one_json_object_whatever_callers_write() -> None:
    entries = [json.loads(line) for line in log("json", "info")]
    assert [(entry["event"], entry["level"]) for entry in entries] == [
        ("serving", "info"),
        ("library detail", "info"),
        (f"library said {HOSTILE}", "warning"),
        ("backend failed", "error"),
        ("callback failed", "error"),
    ]
    assert entries[0]["address"] == HOSTILE


def test_json_is_chosen_where_there_is_no_terminal() -> None:
    assert all(json.loads(line) for line in log("auto", "info"))


def test_entries_of_libraries_look_like_our_own() -> None:
    ours, library, *_ = [json.loads(line) for line in log("json", "info")]
    assert set(library) == {"event", "level", "timestamp"} == set(ours) - {"address"}
    assert all(datetime.fromisoformat(entry["timestamp"]).utcoffset() is not None for entry in (ours, library))


def test_a_failure_is_logged_with_its_traceback() -> None:
    entries = [json.loads(line) for line in log("json", "error")]
    assert [entry["event"] for entry in entries] == ["backend failed", "callback failed"]
    for entry in entries:
        assert entry["exception"].startswith("Traceback")
        assert "RuntimeError: boom" in entry["exception"]


@pytest.mark.parametrize(("level", "count"), [("debug", 6), ("info", 5), ("warning", 3), ("error", 2)])
def test_the_level_holds_for_our_entries_and_for_those_of_libraries(level: str, count: int) -> None:
    assert len(log("json", level)) == count


def test_the_console_format_is_for_reading() -> None:
    lines = log("console", "info")
    assert "serving" in lines[0]
    assert not lines[0].startswith("{")
    assert "_record" not in "".join(lines)
    assert any("RuntimeError" in line for line in lines)


def test_every_entry_of_one_of_several_processes_says_which_one() -> None:
    entries = [json.loads(line) for line in log("json", "info", "3")]
    assert [entry["process"] for entry in entries] == [3] * 5
    assert all("process" not in json.loads(line) for line in log("json", "info"))


def test_a_line_is_written_at_once_so_that_processes_can_share_a_log() -> None:
    script = """
import io, sys
class Raw(io.RawIOBase):
    def writable(self):
        return True
    def write(self, data):
        sys.stdout.write(repr(bytes(data)) + chr(10))
        return len(data)
# As with PYTHONUNBUFFERED, which images for containers often set.
sys.stderr = io.TextIOWrapper(Raw(), write_through=True)
import logging, structlog
from losswire_server.logs import configure_logs
configure_logs("json", "info")
structlog.get_logger().info("serving")
logging.getLogger("grpc").warning("library said")
"""
    written = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert [line[-4:] for line in written.stdout.splitlines()] == ["}\\n'"] * 2
