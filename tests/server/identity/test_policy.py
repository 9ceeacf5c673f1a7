"""Every method that is served has a policy, and there is no other way to one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from losswire_server.identity.policy import SCOPES, MethodTable, PolicyError


def test_a_table_has_the_methods_that_it_was_given() -> None:
    handlers: dict[str, Any] = {path: object() for path in SCOPES}
    table = MethodTable(handlers)
    assert table.paths == SCOPES.keys()
    for path, handler in handlers.items():
        assert table.service(SimpleNamespace(method=path)) is handler
    assert table.service(SimpleNamespace(method="/losswire.v1.LossService/Other")) is None


def test_methods_of_which_nobody_said_who_may_call_them_are_not_served() -> None:
    handlers: dict[str, Any] = dict.fromkeys((*SCOPES, "/b/B", "/a/A"))
    with pytest.raises(PolicyError) as caught:
        MethodTable(handlers)
    assert str(caught.value) == "/a/A, /b/B cannot be served: no policy says who may call it"
