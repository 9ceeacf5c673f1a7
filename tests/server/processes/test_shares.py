"""How many processes there are, and what each gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from losswire_server.config.loading import load_config
from losswire_server.config.settings import Config
from losswire_server.processes import shares


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives the machine so many cores."""
    return lambda cores: monkeypatch.setattr(shares, "core_count", lambda: cores)


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 1), (3, 1), (4, 2), (64, 32)])
def test_0_processes_are_one_for_every_two_cores(machine: Callable[[int], None], cores: int, processes: int) -> None:
    machine(cores)
    assert shares.with_processes(load_config(["--processes=0"])).processes == processes


def test_a_number_of_processes_is_taken_as_it_is(machine: Callable[[int], None]) -> None:
    machine(1)
    assert shares.with_processes(load_config(["--processes=7"])).processes == 7


@pytest.mark.parametrize(("cores", "processes", "threads"), [(8, 2, 4), (8, 3, 2), (2, 4, 1)])
def test_the_cores_are_divided_and_each_process_has_one_at_least(
    machine: Callable[[int], None], cores: int, processes: int, threads: int
) -> None:
    machine(cores)
    assert shares.worker_config(load_config([f"--processes={processes}"]), "127.0.0.1:1").threads == threads


def test_threads_that_were_asked_for_are_those_of_each_process(machine: Callable[[int], None]) -> None:
    machine(8)
    assert shares.worker_config(load_config(["--processes=4", "--threads=3"]), "127.0.0.1:1").threads == 3


def test_a_process_has_the_common_address_and_all_other_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pem = tmp_path / "a.pem"
    config = load_config(["--processes=2", "--threads=1", f"--tls-certificate={pem}", f"--tls-key={pem}"])
    settings = shares.worker_config(config, "127.0.0.1:1").model_dump(mode="json", exclude={"config"})
    # The variables may have changed since: a process started later is like the others.
    monkeypatch.setenv("LOSSWIRE_LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("LOSSWIRE_TLS_CLIENT_CA", str(pem))
    monkeypatch.setenv("LOSSWIRE_MAX_WAIT_S", "17")
    received = Config.model_validate(settings)
    assert received.model_dump() == {**config.model_dump(), "listen": "127.0.0.1:1"}
