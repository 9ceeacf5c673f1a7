"""Shapes that a server is told to expect."""

from __future__ import annotations

import pytest

from losswire_server.config.loading import ConfigError, load_config
from losswire_server.expected import Shape, parse_shapes


def test_shapes_are_read_from_a_list() -> None:
    assert parse_shapes("") == []
    shapes = parse_shapes("bfloat16:128256, float32:19x262144")
    assert shapes == [Shape("bfloat16", 128256), Shape("float32", 19, 262144)]
    assert [str(shape) for shape in shapes] == ["bfloat16:128256", "float32:19x262144"]


@pytest.mark.parametrize("text", ["float32", "float32:0", "float32:-1", "int8:10", "float32:10x", "float32:10x2x3"])
def test_what_is_no_shape_is_refused_in_one_line_that_names_the_setting(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^'{text}' is no shape; expected TYPE:CLASSES"):
        parse_shapes(text)
    with pytest.raises(ConfigError, match=rf"^warm_up: .*'{text}' is no shape"):
        load_config([f"--warm-up=float32:10,{text}"])
