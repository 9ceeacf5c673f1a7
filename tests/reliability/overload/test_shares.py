"""O3: a tenant that may have little of the memory is served slowly, and never told that what it sends is too large."""

from __future__ import annotations

import math
from pathlib import Path

import identities
import numpy as np
import pytest
from servers import start_server

import losswire

RULES = f"""
[[tokens]]
name = "small"
sha256 = "{identities.hash_of("small")}"

[[tenants]]
name = "small"
max_share = 1e-9
members = [{{ token = "small" }}]
"""


@pytest.mark.parametrize("classes", [10, 1000])
def test_a_tenant_with_the_smallest_share_streams_what_is_many_times_as_large(tmp_path: Path, classes: int) -> None:
    rules = tmp_path / "identity.toml"
    rules.write_text(RULES)
    rows = 40_000_000 // (4 * classes)
    server = start_server(tmp_path, f"--identity={rules}")
    try:
        with losswire.Client(server.address, token="small", retry=losswire.RetryPolicy(max_attempts=1)) as client:
            result = client.cross_entropy(np.zeros((rows, classes), np.float32), np.zeros(rows, np.int64))
        assert result.counted == rows
        assert float(result) == pytest.approx(math.log(classes), rel=1e-6)
    finally:
        assert server.stop() == 0
