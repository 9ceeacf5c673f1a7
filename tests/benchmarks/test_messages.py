"""The bytes that benchmarks send are those of the contract."""

from __future__ import annotations

import numpy as np

from benchmarks import messages
from losswire import v1

LOGITS = np.arange(600_000, dtype=np.float32).reshape(6, 100_000)
TARGET = np.arange(6)


def test_a_request_holds_both_tensors() -> None:
    request = v1.EvaluateRequest.FromString(messages.request(LOGITS, TARGET).SerializeToString())

    assert request.logits.shape == [6, 100_000]
    assert request.logits.data == LOGITS.tobytes()
    assert request.class_indices.data == TARGET.tobytes()


def test_a_stream_is_a_header_and_then_pieces_of_logits_behind_their_targets() -> None:
    logits, target = np.resize(LOGITS, (25, 100_000)), np.resize(TARGET, 25)
    header, *frames = [v1.EvaluateStreamRequest.FromString(frame) for frame in messages.stream(logits, target)]

    assert header.header.logits.shape == [25, 100_000]
    assert header.header.class_indices.shape == [25]
    assert [frame.WhichOneof("frame") for frame in frames] == ["target", *["logits"] * 3]
    assert b"".join(frame.logits for frame in frames) == logits.tobytes()
    assert b"".join(frame.target for frame in frames) == target.tobytes()


def test_targets_of_many_rows_are_sent_8192_at_a_time() -> None:
    logits, target = np.zeros((20_000, 100), np.float32), np.arange(20_000)
    _, *frames = [v1.EvaluateStreamRequest.FromString(frame) for frame in messages.stream(logits, target)]

    kinds = [frame.WhichOneof("frame") for frame in frames]
    assert kinds == ["target", "logits", "target", "logits"]
    assert b"".join(frame.target for frame in frames) == target.tobytes()


def test_a_message_takes_what_is_below_4_mib() -> None:
    assert messages.fits_in_one(LOGITS, TARGET)
    assert not messages.fits_in_one(np.resize(LOGITS, (12, 100_000)), TARGET)
