"""What h2load prints, and whether it means that calls were answered."""

from __future__ import annotations

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
