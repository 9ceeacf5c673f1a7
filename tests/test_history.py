"""The checker of histories sees what is wrong with one: these are its negative controls."""

from __future__ import annotations

from dataclasses import replace

import pytest
from history import Batch, History, batches

import losswire


@pytest.fixture
def made() -> list[Batch]:
    return batches(1024, 1024)


@pytest.fixture
def history(made: list[Batch]) -> History:
    """One in which all is well."""
    history = History()
    for batch in made:
        history.end(history.begin(batch), loss=batch.loss)
    return history


def test_a_history_in_which_each_call_is_answered_once_is_well(history: History) -> None:
    history.check()


def test_a_forged_duplicate_is_seen(history: History) -> None:
    history.outcomes.append(history.outcomes[0])
    assert history.violations() == ["call 0 has 2 outcomes"]
    with pytest.raises(AssertionError, match="1 violations in 2 calls"):
        history.check()


def test_an_answer_to_another_call_is_seen(history: History) -> None:
    history.outcomes[0] = replace(history.outcomes[0], loss=history.outcomes[1].loss)
    [found] = history.violations()
    assert found.startswith("call 0 got ")


def test_a_loss_that_differs_in_its_last_bit_is_seen(history: History, made: list[Batch]) -> None:
    history.outcomes[0] = replace(history.outcomes[0], loss=made[0].loss * (1 + 2**-52))
    assert len(history.violations()) == 1


def test_a_call_that_never_ended_and_one_that_was_never_sent_are_seen(history: History, made: list[Batch]) -> None:
    history.begin(made[0])
    history.end((17, 0.0), loss=made[0].loss)
    assert history.violations() == ["call 17 was not sent", "call 2 has no outcome"]


def test_an_error_is_well_only_where_it_is_allowed(history: History, made: list[Batch]) -> None:
    history.end(history.begin(made[0]), error=losswire.DeadlineExceededError("too late"))
    history.check(allowed=[losswire.DeadlineExceededError])
    assert history.violations([losswire.UnavailableError]) == ["call 2 failed: DeadlineExceededError: too late"]
