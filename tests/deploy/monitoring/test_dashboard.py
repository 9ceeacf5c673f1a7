"""The dashboard: written by its program, well laid out, and every query of it has an answer from a real Prometheus."""

from __future__ import annotations

import itertools
import json
import runpy
from typing import Any

import pytest
from prometheus import DEPLOY, Prometheus, eventually

FILE = DEPLOY / "grafana" / "losswire.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
BY_TITLE = {panel["title"]: panel for panel in PANELS}

ONLY_WITH_A_GPU = {"Device memory", "Device stages"}
"""Panels whose series exist where a GPU evaluates."""

VARIABLES = {"$namespace": ".*", "$job": ".*", "$instance": ".*", "$__rate_interval": "15s"}


def expression_of(query: str) -> str:
    """A query as Grafana sends it, all being selected."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query


def test_the_file_is_what_its_program_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FILE.parent)
    assert FILE.read_text() == runpy.run_path(str(FILE.with_name("dashboard.py")))["written"]()


def test_numbers_and_titles_are_unique() -> None:
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert len(BY_TITLE) == len(PANELS)


def test_rows_stand_in_reading_order() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Service level", "Stages", "Batching and admission", "Bytes", "Quality", "Device", "Process"]


def test_no_panel_covers_another_or_leaves_the_page() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        return set(itertools.product(columns, lines))

    for one, other in itertools.combinations(DASHBOARD["panels"], 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])


@pytest.mark.parametrize("title", BY_TITLE)
def test_every_panel_says_what_it_shows_in_which_unit(title: str) -> None:
    panel = BY_TITLE[title]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["legendFormat"]
        assert target["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("title", [title for title in BY_TITLE if title not in ONLY_WITH_A_GPU])
def test_every_query_has_an_answer(watched: Prometheus, title: str) -> None:
    for target in BY_TITLE[title]["targets"]:
        expression = expression_of(target["expr"])
        eventually(lambda expression=expression: has_numbers(watched.query(expression)), expression)  # type: ignore[misc]


def has_numbers(series: list[Any]) -> bool:
    """Whether there is a value that is a number."""
    return any(each["value"][1] != "NaN" for each in series)


@pytest.mark.parametrize("title", sorted(ONLY_WITH_A_GPU))
def test_the_queries_about_a_gpu_are_understood(watched: Prometheus, title: str) -> None:
    for target in BY_TITLE[title]["targets"]:
        watched.query(expression_of(target["expr"]))


@pytest.mark.parametrize("variable", DASHBOARD["templating"]["list"][1:], ids=lambda variable: variable["name"])
def test_the_variables_find_what_there_is(watched: Prometheus, variable: dict[str, Any]) -> None:
    query = expression_of(variable["query"]["query"])
    selector, _, label = query.removeprefix("label_values(").removesuffix(")").rpartition(", ")
    values = watched.get(f"label/{label}/values", **{"match[]": selector})
    # Namespaces are what Kubernetes adds.
    assert len(values) == {"namespace": 0, "job": 1, "instance": 2}[label]
