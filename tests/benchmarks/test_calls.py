"""As many calls as were asked for, by h2load or by Python, and whether they were answered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from benchmarks import calls

PRINTED = """
finished in 1.99s, 100.35 req/s, 7.50KB/s
requests: 200 total, 200 started, 200 done, {succeeded} succeeded, 0 failed, 0 errored, 0 timeout
status codes: 200 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 14.95KB (15311) total, 1.32KB (1350) headers (space savings 91.67%), 1000B ({data}) data
"""
ANSWER = bytes(45)


def test_answers_like_the_first_are_accepted() -> None:
    calls.check_answers(PRINTED.format(succeeded=200, data=200 * 50), 200, ANSWER)


@pytest.mark.parametrize(("succeeded", "data"), [(199, 200 * 50), (200, 0), (200, 200 * 22)])
def test_fast_refusals_are_not_taken_for_answers(succeeded: int, data: int) -> None:
    with pytest.raises(RuntimeError, match="200 calls were not all answered"):
        calls.check_answers(PRINTED.format(succeeded=succeeded, data=data), 200, ANSWER)


@pytest.mark.parametrize("count", [1, calls.CONCURRENT_CALLS + 1])
def test_python_makes_as_many_calls_as_were_asked_for(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(calls, "has_h2load", lambda: False)
    bodies: list[bytes] = []

    def answer(body: bytes, context: grpc.ServicerContext) -> bytes:
        bodies.append(body)
        return ANSWER

    service, method = calls.METHOD[1:].split("/")
    server = grpc.server(ThreadPoolExecutor(4))
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert calls.calls_per_second(f"127.0.0.1:{port}", b"request", count) > 0
    finally:
        server.stop(0).wait()
    assert bodies == [b"request"] * (1 + count)  # the first tells what the answer is
