"""C2: no input becomes code, no process is forked, no limit is taken off; each rule is shown to find what it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from code_rules import CALLS, IMPORTS, findings

ROOT = Path(__file__).parents[3]
SERVED = ("client/src", "server/src")

BAD: dict[str, str] = {
    **{f"import {name}": f"import {name}" for name in IMPORTS},
    **{f"from {name}": f"from {name} import something" for name in IMPORTS},
    "from a package": "from google.protobuf import json_format",
    **{name: f"{name}(anything)" for name in CALLS},
    "os.execv": "os.execv('/bin/sh', [])",
    "os.spawnlp": "os.spawnlp(os.P_WAIT, 'sh')",
    "numpy with pickle": "np.load(file, allow_pickle=True)",
    "numpy that may be told of pickle": "np.load(file)",
    "no limit of what comes": "options = (('grpc.max_receive_message_length', -1),)",
    "no limit of what goes": 'options = [("grpc.max_send_message_length", -1)]',
    "abort in a broad except": "try:\n    context.abort(1, 'x')\nexcept Exception:\n    pass",
    "abort in a bare except": "try:\n    context.abort(1, 'x')\nexcept:\n    pass",
    "abort in a broad one of two": "try:\n    self._abort(e)\nexcept (ValueError, BaseException):\n    log()",
}
GOOD: dict[str, str] = {
    "numpy without pickle": "np.load(file, mmap_mode='r', allow_pickle=False)",
    "abort in an exact except": "try:\n    context.abort(1, 'x')\nexcept TimeoutError:\n    pass",
    "abort whose exception goes on": "try:\n    context.abort(1, 'x')\nexcept BaseException:\n    tidy()\n    raise",
    "a limit": "options = (('grpc.max_receive_message_length', 4096),)",
    "a method of that name": "pattern.compile(text)",
}


def test_the_packages_break_no_rule(figure: Callable[[str, str], None]) -> None:
    files = [path for folder in SERVED for path in (ROOT / folder).rglob("*.py")]

    assert len(files) > 100
    assert [each for path in files for each in findings(path.read_text(), str(path.relative_to(ROOT)))] == []
    figure("C2", f"{len(files)} files of the packages: 0 findings; {len(BAD)} bad samples: each found")


@pytest.mark.parametrize("name", BAD)
def test_each_rule_finds_what_it_is_for(name: str) -> None:
    assert findings(BAD[name], "server/src/losswire_server/servicer.py")


@pytest.mark.parametrize("name", GOOD)
def test_no_rule_finds_what_is_right(name: str) -> None:
    assert findings(GOOD[name], "server/src/losswire_server/servicer.py") == []


def test_only_the_supervisor_starts_processes() -> None:
    start = "asyncio.create_subprocess_exec(*command)"
    assert findings(start, "server/src/losswire_server/processes/child.py") == []
    assert findings(start, "server/src/losswire_server/engine.py")
