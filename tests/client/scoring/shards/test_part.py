"""Arrays that lie one after another become parts of consecutive rows, or are refused with what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from losswire.scoring.errors import ShardError
from losswire.scoring.shards import part
from losswire.scoring.shards.part import Column, Names, groups_of, parts_of_columns

ROWS = 7
LOGITS = np.arange(ROWS * 3 * 2, dtype=np.float32).reshape(ROWS, 3, 2)
TARGET = np.arange(ROWS * 2).reshape(ROWS, 2)
GROUPS = np.array(["web", "news", "web", "web", "a", "a", "web"])


class Lying:
    """An array that is read once, from its first row to its last."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self._values, self._at = values, 0
        self.shape, self.item_bytes = values.shape, values.itemsize

    def read(self, rows: int) -> npt.NDArray[Any]:
        self._at += rows
        assert self._at <= len(self._values)
        return self._values[self._at - rows : self._at]


def columns(**arrays: npt.NDArray[Any]) -> dict[str, Column]:
    return {name: Lying(values) for name, values in arrays.items()}


@pytest.mark.parametrize(
    ("part_bytes", "sizes"),
    [
        (2 * LOGITS[0].nbytes, [2, 2, 2, 1]),
        (3 * LOGITS[0].nbytes - 1, [2, 2, 2, 1]),
        (LOGITS.nbytes, [7]),
        (10 * LOGITS.nbytes, [7]),
        # A row that is larger than that is a part of its own.
        (1, [1] * 7),
    ],
)
@pytest.mark.parametrize("group", ["domain", None])
def test_parts_hold_as_many_whole_rows_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, part_bytes: int, sizes: list[int], group: str | None
) -> None:
    monkeypatch.setattr(part, "PART_BYTES", part_bytes)
    names = Names("x", "y", group)
    assert names.wanted == ("x", "y") + (() if group is None else ("domain",))
    read = columns(x=LOGITS, y=TARGET, **({} if group is None else {group: GROUPS}))
    parts = list(parts_of_columns("a.npz", read, names))
    assert [len(each.logits) for each in parts] == [len(each.target) for each in parts] == sizes
    assert [each.first_row for each in parts] == [sum(sizes[:number]) for number in range(len(sizes))]
    assert (np.concatenate([each.logits for each in parts]) == LOGITS).all()
    assert (np.concatenate([each.target for each in parts]) == TARGET).all()
    found = [each.groups.names[code] for each in parts if each.groups for code in each.groups.codes]
    assert found == ([] if group is None else GROUPS.tolist())


@pytest.mark.parametrize(("rows", "classes"), [(0, 3), (4, 0)])
def test_what_has_no_rows_has_no_parts_and_rows_without_classes_are_left_to_the_server(rows: int, classes: int) -> None:
    read = columns(logits=np.zeros((rows, classes), np.float32), target=np.zeros(rows, np.int64))
    parts = list(parts_of_columns("a.npz", read, Names("logits", "target", None)))
    assert [each.logits.shape for each in parts] == ([(4, 0)] if rows else [])


@pytest.mark.parametrize(
    ("logits", "target", "told"),
    [
        (LOGITS[0, 0], TARGET, "x has the shape (2,); expected (N, C) or (N, C, d1, …)"),
        (np.float32(1), TARGET, "x has the shape (); expected (N, C) or (N, C, d1, …)"),
        (LOGITS, TARGET[1:], "y has the shape (6, 2); expected 7 rows, as x has"),
        (LOGITS, np.int64(1), "y has the shape (); expected 7 rows, as x has"),
        (LOGITS[:, :, 0], TARGET, None),
    ],
)
def test_arrays_that_do_not_go_together_are_told(
    logits: npt.NDArray[Any], target: npt.NDArray[Any], told: str | None
) -> None:
    parts = parts_of_columns("a.npz", columns(x=np.asarray(logits), y=np.asarray(target)), Names("x", "y", None))
    if told is None:
        assert len(list(parts)) == 1
    else:
        with pytest.raises(ShardError) as caught:
            next(parts)
        assert (caught.value.shard, caught.value.cause, caught.value.row) == ("a.npz", told, None)


@pytest.mark.parametrize(
    ("values", "names", "codes"),
    [
        (np.array(["b", "a", "b"]), ["a", "b"], [1, 0, 1]),
        (np.array([b"b", b"\xff", b"b"]), ["b", "\N{REPLACEMENT CHARACTER}"], [0, 1, 0]),
        (np.array([10, -2, 10]), ["-2", "10"], [1, 0, 1]),
        (np.array([10, 2], np.uint8), ["2", "10"], [1, 0]),
        (np.array([True, False]), ["False", "True"], [1, 0]),
        (np.array([], np.int64), [], []),
    ],
)
def test_groups_are_names_or_integers_in_their_order(
    values: npt.NDArray[Any], names: list[str], codes: list[int]
) -> None:
    groups = groups_of(values, "a.npz", "domain")
    assert (groups.names, groups.codes.tolist()) == (names, codes)
    assert groups.codes.dtype == np.dtype(np.int64)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.zeros(3), "float64 of shape (3,)"),
        (np.zeros((3, 1), np.int64), "int64 of shape (3, 1)"),
        (np.array(0), "int64 of shape ()"),
        (np.array(["2026-01-01"], "M8[D]"), "datetime64[D] of shape (1,)"),
    ],
)
def test_what_puts_rows_into_no_groups_is_told(values: npt.NDArray[Any], what: str) -> None:
    told = f"a.npz: domain is {what}; expected one name or integer a row"
    with pytest.raises(ShardError) as caught:
        groups_of(values, "a.npz", "domain")
    assert str(caught.value) == told
    if values.ndim:
        read = columns(logits=np.zeros((len(values), 2)), target=np.zeros(len(values)), domain=values)
        with pytest.raises(ShardError) as caught:
            next(parts_of_columns("a.npz", read, Names("logits", "target", "domain")))
        assert str(caught.value) == told
