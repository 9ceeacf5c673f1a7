"""Which cases are measured, in which order, and what they have to read."""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks.gpu.cases import GOALS, MANY_BYTES, Case, Options, cases

ALL = cases(max_bytes=2**40)


def test_cases_with_goals_come_first_and_each_case_once() -> None:
    assert len(ALL) == len(set(ALL))
    keys = [case.is_key for case in ALL]
    assert keys == sorted(keys, reverse=True)
    # In 16 bits, of which all goals were published, before 32.
    assert all(case.dtype is torch.bfloat16 for case in ALL[: 2 * len(GOALS)])


def test_each_case_with_a_goal_is_followed_by_itself_with_all_options() -> None:
    for case, after in itertools.pairwise(ALL):
        if case.goal is not None:
            assert (after.rows, after.class_count, after.dtype) == (case.rows, case.class_count, case.dtype)
            assert after.options is Options.ON


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("options", [Options.OFF, Options.ON])
def test_classes_from_256_to_262144_and_rows_from_1_to_32768_are_covered(dtype: torch.dtype, options: Options) -> None:
    sizes = {(case.rows, case.class_count) for case in ALL if (case.dtype, case.options) == (dtype, options)}
    for classes in (256, 1024, 4096, 16_384, 65_536, 262_144):
        assert {rows for rows, found in sizes if found == classes} >= {1, 32, 1024, 32_768}


def test_the_goals_are_those_of_the_project() -> None:
    goals = {(case.rows, case.class_count, case.dtype): case.goal for case in ALL if case.options is Options.OFF}
    for (rows, classes, dtype), goal in goals.items():
        if goal is not None and classes >= 4096 and rows > 256:
            assert goal == 0.95
            assert rows * classes * dtype.itemsize >= MANY_BYTES
    assert goals[32_768, 1024, torch.bfloat16] == goals[32_768, 2048, torch.bfloat16] == 0.90
    assert goals[32_768, 256, torch.bfloat16] == 0.75
    assert goals[256, 128_256, torch.bfloat16] == 0.80
    assert goals[256, 128_256, torch.float32] is None


def test_logits_alone_are_counted_and_their_floor_is_that_of_the_ceiling() -> None:
    case = Case(4096, 128_256)
    assert case.logits_bytes == 1_050_673_152
    assert case.floor_s(3.0e12) == pytest.approx(350.2e-6, rel=1e-3)
    assert Case(4096, 128_256, torch.float32).logits_bytes == 2 * case.logits_bytes


def test_cases_that_are_too_large_are_left_out() -> None:
    assert max(case.logits_bytes for case in cases(10**9)) <= 10**9
