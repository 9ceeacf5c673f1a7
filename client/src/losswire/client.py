"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from losswire.base import DEFAULT_TIMEOUT_S, ClientBase
from losswire.calls import Call, Exchange, GetInfoCall
from losswire.channels import Tls, Token
from losswire.errors import LosswireError
from losswire.hedged_transports import HedgedTransport
from losswire.in_process import LOCAL_TARGET, InProcessTransport, load_local_server
from losswire.info import ServerInfo
from losswire.options import options
from losswire.pipeline import Pipeline
from losswire.results import CrossEntropyResult
from losswire.retry import RetryPolicy
from losswire.session import Session
from losswire.session_base import Question, Room
from losswire.traced_transports import TracedTransport
from losswire.transports import GrpcTransport, Transport, drain

_Answer = TypeVar("_Answer")


class Client(ClientBase[Session]):
    """Evaluates losses on a server, or in this process with the target "local:". Threads may share it.

    >>> with losswire.Client("localhost:50051") as client:  # doctest: +SKIP
    ...     float(client.cross_entropy([[2.0, 1.0], [0.0, 3.0]], [0, 1]))
    0.18092...

    Args:
        target: Address as gRPC writes them: "localhost:50051", "dns:///losswire.example:50051", "unix:/run/losswire";
            or "local:". Calls are spread over all addresses behind a name.
        timeout_s: Time limit of a call with all its attempts, in seconds, > 0; `math.inf` for none.
        tls: How to encrypt; True for a server that the usual certificate authorities vouch for; None for plain text.
            Files that it names are read again when they change.
        token: Bearer token; a `pathlib.Path` of the file of one, which is read again when it changes; or a quick
            function that returns the current one, called on any thread: before every attempt, after one that was
            refused, and while a call waits for another than one that expired. Sent only over TLS or to this machine.
        retry: When to try again; `RetryPolicy(max_attempts=1)` never does. Default: `RetryPolicy()`.
        channels: Connections to open, >= 1; a call takes the one with the fewest under way. More than one helps where a
            single one is the bottleneck, and where several processes share the server's port: each connection lands
            on one of them by chance, so three times as many connections as processes reach nearly all.
        channel_options: gRPC's channel arguments, which replace ours of the same name.
        run: Name of the run that evaluations belong to, unless a call names another: the server adds up the losses of
            each run for Prometheus, see docs/runs.md. Default: none.
        tracing: Whether each attempt has an OpenTelemetry span, in the trace of the caller's current one, and takes its
            context to the server. Needs `losswire[otel]`; the application's own SDK says where spans go.
        token_without_tls: Whether the token may go to other machines without TLS, where something else encrypts.

    Raises:
        InvalidArgumentError: if a value is out of range, the token would travel readable, or there is no OpenTelemetry.
        UnavailableError: if the target is "local:" and no installed package evaluates in this process.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        tls: Tls | bool | None = None,
        token: Token | None = None,
        retry: RetryPolicy | None = None,
        channels: int = 1,
        channel_options: Sequence[tuple[str, Any]] = (),
        run: str | None = None,
        tracing: bool = False,
        token_without_tls: bool = False,
    ) -> None:
        super().__init__(
            target, timeout_s, tls, token, retry, channels, channel_options, run, tracing, token_without_tls
        )
        self._transport = self._open_transport(channels)

    def cross_entropy(
        self,
        logits: Any,
        target: Any,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        outputs: Iterable[str] = (),
        top_k: int = 5,
        empty_mean: str = "nan",
        check_probabilities: bool = False,
        timeout_s: float | None = None,
        checksum: bool = False,
        run: str | None = None,
    ) -> CrossEntropyResult:
        """Evaluates `torch.nn.CrossEntropyLoss` and returns the loss with the sums that make it mergeable.

        Arrays may be NumPy arrays, PyTorch tensors on any device, objects with `__array__` or `__dlpack__`, or nested
        lists (of which floats become float64). They may have any size: what exceeds a message is streamed. They must
        not change during the call.

        Args:
            logits: `(C)`, `(N, C)` or `(N, C, d1, …, dK)` scores: float16, bfloat16, float32 or float64.
            target: `()`, `(N)` or `(N, d1, …, dK)` class indices in [0, C) or equal to `ignore_index`, of any signed
                integer type or uint8; or class probabilities in the shape of `logits`, floating.
            weight: `(C)` factor for the loss of each class. Default: 1 for every class.
            ignore_index: Class index whose positions add nothing to the loss or its denominator.
            reduction: "mean", "sum" or "none".
            label_smoothing: Share of the target spread evenly over all classes, in [0.0, 1.0].
            outputs: Per-position results to return as well: "loss", "logsumexp", "target_logprob", "target_rank",
                "argmax", "top1", "topk", "entropy", "max_probability".
            top_k: k of "topk", >= 1.
            empty_mean: What a mean over no position is: "nan", as in PyTorch, "zero" or "error".
            check_probabilities: Whether to refuse class probabilities that are negative or do not sum to 1.
            timeout_s: Time limit of this call, in seconds. Default: the client's.
            checksum: Whether the server verifies the SHA-256 of logits and target, which takes about a second per GB.
            run: Name of the run to count this evaluation under: up to 128 letters, digits and `._-/:@+=`. Changes
                nothing in the result. Default: the client's.

        Raises:
            TypeError: if an argument has the wrong Python type.
            InvalidArgumentError: if the arguments are wrong or do not fit each other; `field` names the one at fault.
            LosswireError: its other kinds, if the server cannot be reached or cannot answer.
        """
        chosen = options(
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            outputs=outputs,
            top_k=top_k,
            empty_mean=empty_mean,
            check_probabilities=check_probabilities,
            checksum=checksum,
            run=self._run_name if run is None else run,
        )
        return self._run(self._cross_entropy_call(logits, target, weight, chosen), timeout_s)

    def put_tensor(self, weight: Any, *, timeout_s: float | None = None) -> bytes:
        """Registers class weights and returns the 32 bytes that name them.

        `cross_entropy` does this by itself; ahead of time it spares the first call the upload.

        Args:
            weight: `(C)` floating array.
            timeout_s: Time limit of this call, in seconds. Default: the client's.
        """
        return self._run(self._put_tensor_call(weight), timeout_s)

    def info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """Describes the server: version, device, backend, limits and what it accepts."""
        return self._run(GetInfoCall(), timeout_s)

    def ping(self, *, timeout_s: float | None = None) -> float:
        """Seconds that a single attempt at the smallest call takes."""
        start = time.perf_counter()
        self._run(GetInfoCall(), timeout_s, RetryPolicy(max_attempts=1))
        return time.perf_counter() - start

    def close(self) -> None:
        """Ends all calls and connections. A closed client stays closed."""
        self._closed = True
        self._close_sessions()
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open_transport(self, channels: int) -> Transport:
        carrier: Transport
        if self.target == LOCAL_TARGET:
            carrier = InProcessTransport(load_local_server())
        elif self._hedging is not None:
            carrier = HedgedTransport(self._endpoint, channels, self._hedging)
        else:
            carrier = GrpcTransport(self._endpoint, channels)
        return carrier if self._tracing is None else TracedTransport(carrier, self._tracing)

    def _open_session(self, question: Question, room: Room) -> Session:
        transport = self._transport
        if isinstance(transport, TracedTransport):
            transport = transport.here()
        return Session(question, Pipeline(transport), room, self.target)

    def _run(self, call: Call[_Answer], timeout_s: float | None, policy: RetryPolicy | None = None) -> _Answer:
        attempts = self._attempts(timeout_s, policy)
        while True:
            self._require_open()
            try:
                if (wait_s := attempts.connect_wait_s()) > 0:
                    self._transport.connect(wait_s)
                answer = self._attempt(call.exchange(), attempts.remaining_s())
            except LosswireError as error:
                self._require_open(error)
                if not call.failed(error):
                    time.sleep(attempts.delay_s(error))
                    while (wait_s := attempts.token_wait_s()) > 0:
                        time.sleep(wait_s)
                        self._require_open(error)
            else:
                call.succeeded()
                return answer

    def _attempt(self, exchange: Exchange[_Answer], timeout_s: float) -> _Answer:
        if isinstance(exchange.request, bytes):
            exchange.reply.add(self._transport.unary(exchange.method, exchange.request, timeout_s))
        else:
            try:
                drain(self._transport.stream(exchange.request, timeout_s), exchange.reply.add)
            except LosswireError as error:
                if not exchange.is_answered_despite(error):
                    raise
        return exchange.reply.answer()
