"""Tables of the page, from results files."""

from __future__ import annotations

import re

import pytest

from benchmarks import tables

PAGE = "Before.\n<!-- table: peers -->\nold\n<!-- end -->\nAfter.\n<!-- table: load -->\nkept\n<!-- end -->\n"
PEERS = {
    "titles": {"losswire": "losswire", "triton": "Triton", "bentoml": "BentoML"},
    "absent": {"BentoML": "-m pip failed"},
    "measures": [
        {
            "name": "latency 64x1000",
            "unit": "ms",
            "median": {"losswire": 1.5, "triton": 6.0},
            "losswire_to_triton": 0.2,
        },
        {"name": "1 MiB", "unit": "GB/s", "median": {"losswire": 1.25}, "losswire_to_triton": None},
    ],
}


def test_a_table_replaces_the_old_one_and_nothing_else() -> None:
    page = tables.fill(PAGE, {"peers": PEERS})

    assert page.startswith("Before.\n<!-- table: peers -->\n|  | latency 64x1000, ms | 1 MiB, GB/s |\n")
    assert page.endswith("<!-- end -->\nAfter.\n<!-- table: load -->\nkept\n<!-- end -->\n")
    assert tables.fill(page, {"peers": PEERS}) == page


def test_a_peer_is_told_how_many_times_as_good_losswire_is() -> None:
    table = tables.peers(PEERS)

    assert "| losswire | 1.50 | 1.25 |\n" in table
    assert "| Triton | 6.00 (5.0x) |  |\n" in table


def test_a_peer_that_is_absent_is_named_with_the_reason() -> None:
    assert tables.peers(PEERS).endswith("\nAbsent: BentoML: -m pip failed\n")


def test_cost_tells_what_is_sent_besides_the_logits() -> None:
    row = {"name": "100 B", "at": 100, "median": {"client": 2.0, "limit": 1.0, "compute": 0.5}}

    assert "| 100 B | 2.00 | 1.00 | 0.50 | 5e-05 | 46 |\n" in tables.cost(
        {"sent_bytes": {"100": 146}, "measures": [row]}
    )


@pytest.mark.parametrize("name", re.findall(r"<!-- table: (\w+) -->", tables.PAGE.read_text()))
def test_every_table_of_the_page_can_be_made(name: str) -> None:
    assert name in tables.TABLES
