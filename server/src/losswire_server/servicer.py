"""The methods of `LossService`: admit, receive, validate, queue, evaluate, reply.

Each is registered as a stream of raw bytes, unary ones too (on the wire they are the same), so that nothing is read
before it is admitted and nothing is decoded but by `frames` and `validation`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import grpc

from losswire.v1 import GetInfoResponse, PutTensorResponse
from losswire.v1.framing import MESSAGE_BYTES, MESSAGE_PAYLOAD_BYTES
from losswire_server import replies
from losswire_server.call import Call
from losswire_server.engine import Engine
from losswire_server.errors import TooLargeError
from losswire_server.evaluation import Evaluation, Totals, totals_of
from losswire_server.framed import FramedEvaluation
from losswire_server.frames import Request, decode_chunk, decode_first_frame, decode_put_tensor, decode_request
from losswire_server.health import SERVICE
from losswire_server.lobby import Lobby
from losswire_server.plan import Plan
from losswire_server.replies import StageSeconds
from losswire_server.requests import Kind, KnownRequests, WholeRequest
from losswire_server.run import Run
from losswire_server.run_counters import RunSums, check_owner, is_countable
from losswire_server.tracing import Evaluated
from losswire_server.validation import check_request, check_stored_tensor
from losswire_server.weights import WeightStore
from losswire_server.whole import WholeEvaluation

MAX_OUTSTANDING_JOBS: Final = 4
"""Jobs of one evaluation in the engine's hands before the next frame is read: enough to keep both sides busy."""


class Servicer:
    """Serves `LossService`.

    Args:
        lobby: What all calls share.
        engine: Evaluates.
        weights: Class weights kept by digest.
        info: The answer to GetInfo.
    """

    def __init__(self, lobby: Lobby, engine: Engine, weights: WeightStore, info: GetInfoResponse) -> None:
        self._lobby, self._engine, self._weights, self._info = lobby, engine, weights, info
        self._replies = replies.Replies(info.identity)
        # Apart, for what is a request in the one may be another thing in the other.
        self._known, self._known_frames = KnownRequests(engine.in_place), KnownRequests(engine.in_place)

    def methods(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """What a `grpc.aio` server registers, by path."""
        unary, stream = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Evaluate": unary(self._serve("Evaluate", self._evaluate)),
            "EvaluateStream": stream(self._serve("EvaluateStream", self._evaluate_stream)),
            "PutTensor": unary(self._serve("PutTensor", self._put_tensor)),
            "GetInfo": unary(self._serve("GetInfo", self._get_info)),
        }
        return {f"/{SERVICE}/{method}": handler for method, handler in handlers.items()}

    def _serve(self, method: str, behaviour: Callable[[Call], Any]) -> Callable[..., Any]:
        async def serve(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> bytes | None:
            return await Call(self._lobby, method, context).run(behaviour)

        return serve

    async def _evaluate(self, call: Call) -> bytes:
        call.check_queue()
        message = await call.receive() or b""
        kind = self._find(self._known, message, call)
        if kind is not None and (result := self._evaluate_in_place(call, kind, message)) is not None:
            reply = self._replies.short_response(*result)
            self._observe(call, "message", kind.plan, *result)
            return reply
        if kind is not None:
            request = kind.request(message)
        else:
            request = self._learn(self._known, message, decode_request(memoryview(message)), call)
        self._check_reply_fits(request.plan)
        run = Run(call, self._engine, WholeEvaluation(request, self._weights.of(call.tenant)))
        totals = await self._finish(run)
        reply = self._replies.response(run.evaluation, totals, run.seconds)
        run.observe("message", totals)
        return reply

    def _evaluate_in_place(self, call: Call, kind: Kind, message: bytes) -> tuple[Totals, StageSeconds] | None:
        """The result of a small request, at once; None where it must go the ordinary way, perhaps to be refused."""
        received_at = time.monotonic()
        if kind.in_place is None or call.caller.deadline <= received_at:
            return None
        try:
            sums = kind.in_place(message)
        except MemoryError:  # There may be enough when it is its turn.
            return None
        if sums is None or (kind.plan.run is not None and not is_countable(sums.loss_sum, sums.weight_sum)):
            return None
        admit_s = call.take_admit_s()
        seconds = StageSeconds(admit_s, received_at - call.began_at - admit_s, compute=time.monotonic() - received_at)
        return totals_of(kind.plan, sums), seconds

    def _observe(self, call: Call, transport: str, plan: Plan, totals: Totals, seconds: StageSeconds) -> None:
        """Export what was evaluated in place."""
        metrics = self._lobby.metrics
        metrics.ledger.note(metrics.evaluated, seconds.by_stage(), totals, plan, transport, call.exemplar)
        if plan.run is not None:
            sums = RunSums(totals.loss_sum, totals.weight_sum, totals.counted, totals.ignored)
            metrics.ledger.note(metrics.runs.add, plan.run, sums, call.tenant)
        if call.trace is not None:
            call.trace.evaluated(Evaluated(transport, plan, totals, seconds.in_a_row(call.began_at)))

    @staticmethod
    def _find(known: KnownRequests, message: bytes, call: Call) -> Kind | None:
        kind = known.find(message)
        if kind is not None:
            # It may have been learnt from another tenant.
            check_owner(kind.plan.run, call.tenant)
        return kind

    def _learn(self, known: KnownRequests, message: bytes, request: Request, call: Call) -> WholeRequest:
        # Before its kind is remembered, for then it is not checked again.
        self._lobby.metrics.runs.check(request.run, call.tenant)
        return known.learn(message, request)

    async def _evaluate_stream(self, call: Call) -> None:
        call.check_queue()
        message = await call.receive()
        while message is not None:
            await self._evaluate_from_stream(call, message)
            message = await call.receive_between_evaluations()

    async def _evaluate_from_stream(self, call: Call, message: bytes) -> None:
        call.begin_evaluation()
        kind = self._find(self._known_frames, message, call)
        if kind is not None and (result := self._evaluate_in_place(call, kind, message)) is not None:
            # Before the reply: a caller that has it may end the stream, and with it this, at once.
            self._observe(call, "session", kind.plan, *result)
            await call.send(self._replies.result_frame(*result))
            return
        if (evaluation := self._begin(kind, message, call)) is None:
            return
        run = Run(call, self._engine, evaluation)
        outputs = replies.OutputFrames(evaluation)
        if isinstance(evaluation, FramedEvaluation):
            run.submit_ready()
            await self._receive_tensors(run, evaluation, outputs)
        totals = await self._finish(run)
        for reply in (*outputs.ready(at_end=True), self._replies.result_frame(totals, run.seconds)):
            await call.send(reply)
        run.observe("stream" if isinstance(evaluation, FramedEvaluation) else "session", totals)

    def _begin(self, kind: Kind | None, message: bytes, call: Call) -> Evaluation | None:
        """The evaluation that the first frame of a stream begins; None for an empty chunk, which may stand anywhere."""
        weights = self._weights.of(call.tenant)
        if kind is not None:
            return WholeEvaluation(kind.request(message), weights)
        request = decode_first_frame(memoryview(message))
        if request is None:
            return None
        if request.is_whole:
            return WholeEvaluation(self._learn(self._known_frames, message, request, call), weights)
        self._lobby.metrics.runs.check(request.run, call.tenant)
        return FramedEvaluation(check_request(request), weights, self._lobby.config.max_evaluation_bytes)

    async def _finish(self, run: Run) -> Totals:
        """Evaluate what has come, all of it by now."""
        run.submit_ready()
        await run.make_do()
        await run.call.hold(run.held_bytes)
        await run.settle()
        return run.evaluation.totals()

    async def _receive_tensors(self, run: Run, evaluation: FramedEvaluation, outputs: replies.OutputFrames) -> None:
        # What its jobs hold comes back without the caller: whoever may have little of the budget waits for that.
        max_bytes = min(self._lobby.config.max_evaluation_bytes, run.call.most_bytes - MESSAGE_BYTES)
        while not evaluation.received_all:
            if run.outstanding:
                await run.settle(at_most=0 if run.held_bytes > max_bytes else MAX_OUTSTANDING_JOBS - 1)
            for reply in outputs.ready():
                await run.call.send(reply)
            await run.make_do(MESSAGE_BYTES)
            message = await run.call.receive(run.held_bytes)
            if message is None:
                evaluation.check_complete()
                return
            chunk = decode_chunk(memoryview(message))
            evaluation.add(chunk.tensor, chunk.data)
            await run.make_do()
            await run.call.hold(run.held_bytes)
            run.submit_ready()

    def _check_reply_fits(self, plan: Plan) -> None:
        byte_count = replies.output_bytes(plan)
        if byte_count > MESSAGE_PAYLOAD_BYTES:
            raise TooLargeError("the reply with its outputs", byte_count, MESSAGE_PAYLOAD_BYTES, "use EvaluateStream")

    async def _put_tensor(self, call: Call) -> bytes:
        message = await call.receive() or b""
        digest, weight = check_stored_tensor(decode_put_tensor(memoryview(message)))
        self._weights.of(call.tenant).require(digest, weight)
        return PutTensorResponse(digest=digest).SerializeToString()

    async def _get_info(self, call: Call) -> bytes:
        # The request has no field, so there is nothing to read, and nothing to wait for.
        return self._info.SerializeToString()
