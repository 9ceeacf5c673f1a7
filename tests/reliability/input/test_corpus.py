"""F2: whatever a fuzzer found worth keeping is read, and refused in the service's own words or accepted."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import untrusted_bytes
from untrusted_bytes import CORPUS, read, seeds

from losswire_server import validation

FUZZER = Path(__file__).parents[1] / "fuzz.py"


def inputs() -> list[bytes]:
    """The corpus, and what it grew from."""
    return [*seeds(), *(path.read_bytes() for path in sorted(CORPUS.iterdir()))]


def test_every_input_of_the_corpus_is_read_without_a_fault(figure: Callable[[str, str], None]) -> None:
    found = inputs()
    accepted = sum(map(read, found))

    assert len(found) > 100
    assert 0 < accepted < len(found)
    assert {data[0] % len(untrusted_bytes.KINDS) for data in found if data} == set(range(len(untrusted_bytes.KINDS)))
    figure("F2", f"{len(found)} inputs of the corpus: {accepted} accepted, the others refused, 0 uncaught")


def test_every_seed_is_accepted() -> None:
    assert all(map(read, seeds()))


def test_a_fault_is_not_taken_for_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_check_outputs", lambda *_: (1 / 0,))

    with pytest.raises(ZeroDivisionError):
        list(map(read, inputs()))


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_fuzzer_finds_nothing_new_in_ten_minutes(tmp_path: Path, figure: Callable[[str, str], None]) -> None:
    pytest.importorskip("atheris", reason="make fuzz installs it")
    ended = subprocess.run(
        [sys.executable, str(FUZZER), "600"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stderr[-4000:]
    count, rss_mib = (int(re.findall(rf"stat::{name}:\s+(\d+)", ended.stderr)[0])
                      for name in ("number_of_executed_units", "peak_rss_mb"))  # fmt: skip
    figure("F2", f"{count:,} inputs in 10 minutes: 0 uncaught, {rss_mib} MiB of memory")
