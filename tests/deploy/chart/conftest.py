"""Both majors of Helm, for the tests of the chart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helm import Helm, Rendered, find_helm


@pytest.fixture(scope="session", params=[3, 4], ids=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest) -> Helm:
    """Each Helm in turn."""
    return find_helm(request.param)


@pytest.fixture(scope="session")
def helm4() -> Helm:
    """The newer Helm alone, for what does not depend on it."""
    return find_helm(4)


@pytest.fixture(scope="session")
def render(helm4: Helm) -> Callable[..., Rendered]:
    """Renders values with the newer Helm."""
    return helm4.render
