"""Our kernels on tensors that are on the device already: the launches of the backend, and nothing else of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu.cases import Options
from benchmarks.gpu.inputs import IGNORE_INDEX, Inputs
from losswire_server.losses.gpu.packing import NO_ERROR, Entry, Factors, Launch
from losswire_server.losses.gpu.tuning import TUNING, Tuning
from losswire_server.losses.gpu.variants import variant_of
from losswire_server.losses.job import OUTPUTS, Job, Parameters


class Launches:
    """The launches that evaluate the copies of a case, one job each; their tables of addresses are made beforehand.

    Args:
        inputs: What they read.
        units: Processors of the device.
        tuning: How the work is cut.

    Attributes:
        loss: float32 `(rows)`: of the copy that was evaluated last.
        extra_bytes: Bytes of the device beside the logits, targets and weights: results, sums and a table.
    """

    def __init__(self, inputs: Inputs, units: int, tuning: Tuning = TUNING) -> None:
        case, self._device = inputs.case, inputs.logits[0].device
        outputs = frozenset(OUTPUTS) if case.options is Options.OUTPUTS else frozenset[str]()
        weight = None if inputs.weight is None else inputs.weight.double().cpu()
        parameters = Parameters(
            case.class_count, 1, False, weight, IGNORE_INDEX, inputs.label_smoothing, outputs - {"loss"}
        )
        job = Job(parameters, inputs.logits[0][:, :, None], inputs.targets[0][:, None])
        self._variant = replace(variant_of(job), tuning=tuning)
        self._factors = None
        if inputs.weight is not None:
            factors = inputs.weight.to(self._variant.arithmetic)
            self._factors = Factors(inputs.weight.double(), factors)
        entry = Entry(0, job, job.target, self._variant, self._factors, None)
        entry.state = self._bytes(entry.state_bytes)
        self._results = {
            name: self._bytes(case.rows * entry.result_type(name).itemsize) for name in ("loss", *parameters.outputs)
        }
        entry.results_at = {name: result.data_ptr() for name, result in self._results.items()}
        self._error = torch.full((1,), NO_ERROR, dtype=torch.int64, device=self._device)
        entry.error_at = self._error.data_ptr()
        self._launch = Launch(self._variant, [entry])
        self._tables = []
        for logits, target in zip(inputs.logits, inputs.targets, strict=True):
            # A table counts from 0, so that places in a batch's memory are addresses.
            entry.logits_at, entry.target_at = logits.data_ptr(), target.data_ptr()
            table = torch.frombuffer(bytearray(self._launch.rows(0, units)), dtype=torch.int64)
            self._tables.append(table.view(1, -1).to(self._device))
        self.loss = self._results["loss"].view(entry.result_type("loss"))
        self.extra_bytes = sum(
            tensor.nbytes for tensor in (entry.state, self._error, self._tables[0], *self._results.values())
        )

    def __call__(self, turn: int) -> Tensor:
        """Launch the kernels for one copy; the losses are there when the device has come so far."""
        table = self._tables[turn % len(self._tables)]
        self._variant.reduce(table, self._launch.programs)
        self._variant.finish(table, self._launch.blocks)
        return self.loss

    def check(self) -> None:
        """Make sure that no class index was reported.

        Raises:
            RuntimeError: if one was.
        """
        if (position := int(self._error)) != NO_ERROR:
            raise RuntimeError(f"the kernels report the class index of position {position}")

    def _bytes(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.uint8, device=self._device)
