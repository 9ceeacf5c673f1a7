"""Replies of a stream are gathered in order, and one that makes no sense is the server's fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scripted_server import result_message

import losswire
from losswire import v1
from losswire.evaluation import Evaluation, evaluation
from losswire.info import server_info
from losswire.options import Options
from losswire.replies import EvaluationReply

RANK, ENTROPY, TOP1 = v1.Output.OUTPUT_TARGET_RANK, v1.Output.OUTPUT_ENTROPY, v1.Output.OUTPUT_TOP1
INT64, FLOAT32 = v1.DataType.DATA_TYPE_INT64, v1.DataType.DATA_TYPE_FLOAT32


def asked(outputs: tuple[str, ...], logits: Any = None, reduction: str = "mean") -> Evaluation:
    logits = np.zeros((2, 5, 3), np.float32) if logits is None else logits
    return evaluation(logits, np.zeros(6, np.int64), None, Options(reduction=reduction, outputs=outputs))


def chunk(output: Any, position: int, values: Any, dtype: Any = INT64) -> bytes:
    piece = v1.OutputChunk(output=output, dtype=dtype, position=position, data=np.asarray(values).tobytes())
    return v1.EvaluateStreamResponse(output=piece).SerializeToString()


def end(**fields: Any) -> bytes:
    return v1.EvaluateStreamResponse(result=result_message(**fields)).SerializeToString()


def read(reply: EvaluationReply, messages: list[bytes]) -> losswire.CrossEntropyResult:
    for message in messages:
        reply.add(message)
    return reply.answer()


def test_chunks_of_several_outputs_interleave() -> None:
    reply = EvaluationReply(asked(("entropy", "target_rank")))
    entropy = np.arange(6, dtype=np.float32)
    for message in (
        chunk(RANK, 0, [5]),
        chunk(ENTROPY, 0, entropy[:4], FLOAT32),
        chunk(RANK, 1, [4, 3, 2]),
        chunk(ENTROPY, 4, entropy[4:], FLOAT32),
        chunk(RANK, 4, [1, 0]),
        end(),
    ):
        reply.add(message)
    result = reply.answer()
    assert list(result.outputs) == ["entropy", "target_rank"]
    np.testing.assert_array_equal(result.outputs["entropy"], entropy.reshape(2, 3))
    np.testing.assert_array_equal(result.outputs["target_rank"], [[5, 4, 3], [2, 1, 0]])
    assert result.outputs["target_rank"].dtype == np.int64


def test_losses_of_reduction_none_come_in_chunks() -> None:
    reply = EvaluationReply(asked((), reduction="none"))
    reply.add(chunk(v1.Output.OUTPUT_LOSS, 0, np.arange(6, dtype=np.float32), FLOAT32))
    reply.add(end(loss=None))
    result = reply.answer()
    np.testing.assert_array_equal(result.loss, np.arange(6).reshape(2, 3))
    assert result.outputs == {}


def test_no_positions_give_empty_arrays_of_the_usual_types() -> None:
    reply = EvaluationReply(asked(("loss", "target_rank", "top1"), np.zeros((0, 5), np.float64)))
    reply.add(end())
    outputs = reply.answer().outputs
    assert {name: (array.shape, array.dtype.name) for name, array in outputs.items()} == {
        "loss": ((0,), "float64"),
        "target_rank": ((0,), "int64"),
        "top1": ((0,), "uint8"),
    }


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "ended the stream without a result"),
        ([end()], "sent 0 of 6 positions of target_rank"),
        ([chunk(RANK, 0, [1, 2]), end()], "sent 2 of 6 positions of target_rank"),
        ([chunk(RANK, 1, [1, 2])], "at position 1; expected int64 at 0 of 6"),
        ([chunk(RANK, 0, [1, 2]), chunk(RANK, 0, [1, 2])], "at position 0; expected int64 at 2 of 6"),
        ([chunk(RANK, 0, np.zeros(7, np.int64))], "sent 7 int64 values"),
        ([chunk(RANK, 0, np.zeros(2, np.float32), FLOAT32)], "sent 2 float32 values"),
        ([chunk(RANK, 0, b"123")], "sent 3 bytes of target_rank, which are no int64"),
        ([chunk(RANK, 0, [1], 99)], "unknown element type type 99"),
        ([chunk(TOP1, 0, [1])], "sent output 6, which was not asked for"),
        ([end(), end()], "sent a frame after the result"),
        ([b""], "sent an empty frame"),
        ([b"\xff"], "reply is no EvaluateStreamResponse"),
    ],
)
def test_a_stream_that_makes_no_sense_is_the_servers_fault(messages: list[bytes], words: str) -> None:
    reply = EvaluationReply(asked(("target_rank",)))
    with pytest.raises(losswire.InternalError, match=words):
        read(reply, messages)


def test_a_result_tells_its_server_and_one_of_an_older_server_tells_none() -> None:
    told = read(EvaluationReply(asked(())), [end(server=bytes(range(16)))])
    assert told.server == "0001020304050607-08090a0b0c0d0e0f"
    assert read(EvaluationReply(asked(())), [end()]).server is None
    assert server_info(v1.GetInfoResponse()).identity is None


def test_what_only_a_newer_server_knows_does_not_break_its_description() -> None:
    message = v1.GetInfoResponse.FromString(
        # Fields 7 and 9, packed: DATA_TYPE_FLOAT32 and 99; OUTPUT_LOSS and 99.
        b"\x3a\x02\x03\x63" + b"\x4a\x02\x01\x63"
    )
    assert server_info(message).outputs == ("loss",)
    assert server_info(message).floating_dtypes == ("float32", "type 99")
