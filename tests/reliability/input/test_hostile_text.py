"""F10: what callers write forges no line of the log, and their secrets come back nowhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from raw_calls import SERVICE, RawChannel
from raw_http2 import Http2, grpc_message, headers_of
from servers import COMMAND, RunningServer, start_server
from wire_format import varint

from losswire.v1 import EvaluateRequest, EvaluateStreamRequest, PutTensorRequest, Tensor

SECRET = "eyJhbGciOiJIUzI1NiJ9.c2VjcmV0LXRva2Vu.c2lnbmF0dXJl"
FORGED = '{"event": "forged", "level": "info"}'
NASTY = (
    f"\n{FORGED}\n", f"\r\n{FORGED}", f"\u2028{FORGED}", f"\x85{FORGED}", "\x1b[2J\x1b[31m", "\x00", "\x7f", "\u202e",
    "a" * 2**13, "%s%n%x", "{0.__class__}", "../../etc/passwd", "$(id)", "'; DROP TABLE runs; --", "<script>", "\ud7ff",
    "é" * 100, "\t", " ", SECRET,
)  # fmt: skip

LEAKS = re.compile(
    r"class '|Traceback|File \"|0x[0-9a-f]{8,}|site-packages|losswire_server/|/home|/root|/tmp|127\.0\.0\.1"
)
"""What tells of the server's insides: names of classes, addresses, paths."""


def hostile_texts(count: int) -> Iterator[str]:
    """Nasty strings, and mixtures of them."""
    random = Random(10)
    yield from NASTY
    for _ in range(count - len(NASTY)):
        yield "".join(random.choices(NASTY, k=random.randrange(1, 4)))[: 2**13]


def messages(text: str) -> Iterator[tuple[str, bytes]]:
    """A method and a message for each field that holds text or bytes that are told of in errors."""
    data = text.encode(errors="replace")
    logits = Tensor(shape=[1, 2], dtype=3, data=bytes(8))  # type: ignore[arg-type]
    label = Tensor(shape=[1], dtype=9, data=bytes(8))  # type: ignore[arg-type]
    run = EvaluateRequest(logits=logits, class_indices=label, run=data.decode(errors="replace")).SerializeToString()
    yield "Evaluate", run
    yield "EvaluateStream", b"\x2a" + varint(len(run)) + run
    yield "Evaluate", EvaluateRequest(logits=logits, class_indices=label, weight_digest=data).SerializeToString()
    other = Tensor(shape=[1, 2], dtype=3, data=data)  # type: ignore[arg-type]
    yield "Evaluate", EvaluateRequest(logits=other, class_indices=label).SerializeToString()
    yield "Evaluate", data
    # A string of protobuf's that is no UTF-8.
    yield "Evaluate", b"\x3a" + varint(len(data[:100]) + 1) + data[:100] + b"\xff"
    yield "PutTensor", PutTensorRequest(tensor=Tensor(shape=[3], dtype=3, data=data)).SerializeToString()  # type: ignore[arg-type]
    yield "EvaluateStream", EvaluateStreamRequest(logits=data).SerializeToString()


BUGS = {None, grpc.StatusCode.UNKNOWN.value[0], grpc.StatusCode.INTERNAL.value[0]}
"""Statuses that no request ends with."""


def told(connection: Http2, method: str, message: bytes) -> tuple[int | None, str]:
    """The status, and everything that a caller with a secret is told."""
    headers = (("authorization", f"Bearer {SECRET}"), ("x-api-key", SECRET), ("user-agent", SECRET))
    answer = connection.call(grpc_message(message), headers_of(f"{SERVICE}/{method}", *headers))
    assert answer.ended, "every call has an end"
    return answer.status, repr(answer.headers) + repr(bytes(answer.data))


def entries(log: Path) -> list[dict[str, Any]]:
    """The lines of a log, each of which is one JSON object."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{") or '"' in line]


def traces(server: RunningServer, texts: Iterable[str]) -> tuple[list[str], int]:
    """What a server gives away of itself and of its callers' secrets, in answers and in its log; and of how many texts.

    The server is stopped.
    """
    found, count = [], 0
    for text in texts:
        with Http2(server.address) as connection:
            for method, message in messages(text):
                status, answer = told(connection, method, message)
                if status in BUGS or (SECRET not in text and SECRET in answer) or LEAKS.search(answer):
                    found.append(f"{method} {text[:40]!r}: {answer[:500]}")
                count += 1
    assert server.stop() == 0
    log = server.log.read_text()
    found += [f"the log holds {word}" for word in (SECRET, "forged") if word in log]
    found += [f"the log has {entry}" for entry in entries(server.log) if "event" not in entry]
    return found, count


def test_hostile_texts_leave_no_trace_but_in_the_answer_to_who_wrote_them(
    tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    server = start_server(tmp_path, "--log-level=debug", "--log-format=json")
    found, count = traces(server, hostile_texts(60))
    assert not found, found[:5]
    figure("F10", f"{count} hostile texts: 0 secrets, paths, class names or addresses told; 0 forged lines of the log")


# What stands between a caller and what goes wrong, taken out: gRPC then tells of an exception in its own words.
OPEN = """
import sys
from losswire_server import call, cli
async def abort(self, error):
    raise error
call.Call._abort = abort
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_server_that_lets_grpc_tell_of_exceptions_is_seen(tmp_path: Path) -> None:
    """The negative control."""
    server = start_server(tmp_path, "--log-level=debug", "--log-format=json", command=(COMMAND[0], "-c", OPEN))
    found, _ = traces(server, NASTY[:2])
    assert any("Unexpected <class" in each for each in found), found


@pytest.mark.parametrize(
    "path", ["/", "", "/x", f"{SERVICE}/", f"{SERVICE}/Nope", f"/a/{SECRET}", "/%0a%0dforged/x", "/" + "a" * 7000]
)
def test_a_method_that_is_not_there_is_told_in_grpcs_words_without_its_name(server: RunningServer, path: str) -> None:
    with Http2(server.address) as connection:
        answer = connection.call(grpc_message(b""), headers_of(path))
    text = repr(answer.headers)
    assert answer.status in {grpc.StatusCode.UNIMPLEMENTED.value[0], None}
    assert LEAKS.search(text) is None
    assert SECRET not in text
    assert "forged" not in server.log.read_text()


FAULTY = """
import sys
from losswire_server import cli, servicer
def broken(*arguments):
    raise RuntimeError("secret at /tmp/path\\n" + {forged!r})
servicer.decode_request = broken
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_failure_of_ours_is_told_by_its_number_alone_and_logged_in_one_line(tmp_path: Path) -> None:
    command = (COMMAND[0], "-c", FAULTY.format(forged=FORGED))
    server = start_server(tmp_path, "--log-format=json", command=command)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        RawChannel(channel).evaluate(b"anything")
    assert server.stop() == 0

    assert caught.value.code() is grpc.StatusCode.INTERNAL
    found = re.fullmatch(r"the server failed; its log says more under request_id (\w+)", caught.value.details() or "")
    assert found is not None
    [failure] = [entry for entry in entries(server.log) if entry["event"] == "call failed"]
    assert failure["request_id"] == found[1]
    assert "secret at /tmp/path" in failure["exception"]
    assert not [entry for entry in entries(server.log) if entry["event"] == "forged"]
