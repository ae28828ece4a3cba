"""The processes of one launch: which one this is, and what they do together.

`accelerate launch` and `torchrun` start a script several times and tell each process its number in its environment. All of them
train and unlearn; the first alone writes and measures. Of one process everything here does nothing:

    together = processes()
    done = together.agreed(lambda: folder.exists())
    worker = Worker(model, make_optimizer, together, max_norm=1.0)
    leave(0)
"""

from __future__ import annotations

import atexit
import copy
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.compute.parts import Mean, Part, parts_of
from unforgotten.experiments.models.batches import Batch

T = TypeVar("T")
WAIT = timedelta(days=7)
"""The first process measures for hours while the others wait."""
SHARDED = "FSDP"
ENGINE = "DEEPSPEED"


@dataclass(frozen=True)
class Processes:
    """What a process knows of the others.

    Attributes:
        number: number of this process, from 0.
        count: number of processes.
        local: number of this process on its machine; None where there is one alone.
        kind: how the launch is configured, in accelerate's word; "NO" for one process alone.
        accelerator: `accelerate.Accelerator` of the launch; None for one process alone.
    """

    number: int = 0
    count: int = 1
    local: int | None = None
    kind: str = "NO"
    accelerator: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes and measures."""
        return self.number == 0

    @property
    def averages(self) -> bool:
        """Whether the launch averages gradients over processes by itself, in every backward pass."""
        return self.kind in (SHARDED, ENGINE)

    def agreed(self, find: Callable[[], T]) -> T:
        """Return what the first process finds, when it has found it; the others do not look."""
        if self.count == 1:
            return find()
        said: list[Any] = [find() if self.first else None]
        torch.distributed.broadcast_object_list(said)
        return said[0]

    def wait(self) -> None:
        """Go on when all have come here."""
        self.agreed(lambda: None)


ALONE = Processes()


@cache
def processes() -> Processes:
    """Return the processes of this launch, and join them on the first call.

    Raises:
        ValueError: accelerate knows others than were started, or computes otherwise than the arms of a run say.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)])
    if accelerator.num_processes != int(os.environ["WORLD_SIZE"]):  # each would take itself for the first
        known = f"accelerate sees {accelerator.num_processes} of WORLD_SIZE={os.environ['WORLD_SIZE']}"
        raise ValueError(f"processes of a launch must have a GPU each, or ACCELERATE_USE_CPU=true, got {known}")
    kind = str(accelerator.distributed_type.value)
    if kind == "MULTI_CPU" and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        kind = SHARDED
    if kind == SHARDED and os.environ.get("FSDP_VERSION") != "2":
        raise ValueError(f"fsdp_version must be 2, got fsdp_version={os.environ.get('FSDP_VERSION')}")
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"mixed_precision must be 'no': the arm decides it, got mixed_precision={accelerator.mixed_precision!r}"
        )
    own = accelerator.process_index, accelerator.num_processes, accelerator.local_process_index
    return Processes(*own, kind, accelerator)


def leave(code: int) -> None:
    """End this process with an exit code and without tearing the interpreter down, if it is one of a launch; else return.

    Threads of gloo let go of the tensors of a message some time after it arrived. Where the interpreter is being torn down by then,
    torch 2.13 aborts the process (issue 190489 of PyTorch), and the launcher ends the others, the first among them, which may be
    measuring. `destroy_process_group` does not end these threads, for FSDP keeps its group.
    """
    if not processes.cache_info().currsize or processes().count == 1:
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


class Worker:
    """A model and its optimizer, as a process of the launch moves them.

    Where weights are shared out, `model` is another object than the one given, and `finish` puts its weights back.

    Args:
        model: model, the same in every process; on the device where it computes.
        optimizer: function that makes the optimizer of a model.
        together: processes that share its work.
        max_norm: norm to which gradients are clipped.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: Callable[[PreTrainedModel], torch.optim.Optimizer],
        together: Processes,
        max_norm: float,
    ) -> None:
        self.together, self._given, self._max_norm = together, model, max_norm
        self._device = model.device
        if together.averages:
            inner = copy.deepcopy(model)
            torch.nn.Module.to(model, "cpu")  # all weights, until `finish`
            self.model, self.optimizer = _prepared(together, inner, optimizer(inner), max_norm)
        else:
            self.model, self.optimizer = model, optimizer(model)

    @property
    def once(self) -> bool:
        """Whether a step has one backward pass alone."""
        return self.together.kind == ENGINE

    def parts(self, batch: Batch, mean: Mean | None, size: int | None) -> list[Part]:
        """Return the parts of a batch that this process computes, on its device; the whole batch where the mean is None."""
        there = batch.on(self.model.device)
        if mean is None:
            return [(there, 1.0)]
        return parts_of(there, mean, size, process=self.together.number, processes=self.together.count)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's share of a loss."""
        scaled = loss * self.together.count if self.together.averages else loss
        if self.together.kind == ENGINE:
            self.together.accelerator.backward(scaled)
        else:
            scaled.backward()

    def clip(self) -> None:
        """Sum the gradients over the processes, and clip their norm over all parameters."""
        if self.together.kind == ENGINE:
            return  # its own settings clip
        if self.together.count > 1 and not self.together.averages:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._max_norm)

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Return copies of all parameters, on the CPU; every process must ask, and those that do not write get none."""
        found = {}
        for name, parameter in self.model.named_parameters():
            own: Any = parameter  # a tensor in shards has `full_tensor`
            whole = own.full_tensor() if hasattr(own, "full_tensor") else own
            if self.together.first:
                found[name] = whole.detach().to("cpu", copy=True)
        return found

    @torch.no_grad()
    def finish(self) -> None:
        """Put all weights into the model that was given, in every process, one tensor at a time."""
        if self.model is self._given:
            return
        moved = dict(self.model.named_parameters())
        for name, parameter in self._given.named_parameters():
            own: Any = moved[name]  # a tensor in shards has `full_tensor`
            parameter.copy_(own.full_tensor() if hasattr(own, "full_tensor") else own)
        torch.nn.Module.to(self._given, self._device)


def _prepared(
    together: Processes, model: PreTrainedModel, optimizer: torch.optim.Optimizer, max_norm: float
) -> tuple[Any, Any]:
    """Return the model with its weights or moments shared out, and its optimizer.

    Under DeepSpeed the model itself, whose passes its engine need not see; the engine takes the backward pass and the step.
    """
    if together.kind == SHARDED:
        _shard_on_cpu(together.accelerator)
    if together.kind == ENGINE:
        settings = together.accelerator.state.deepspeed_plugin.deepspeed_config
        if settings["zero_optimization"]["stage"] == 3:
            raise ValueError("zero_stage must be 0 to 2, got zero_stage=3; fsdp.yaml shares out weights")
        sizes = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": together.count}
        settings.update(sizes, gradient_clipping=max_norm)
    prepared, optimizer = together.accelerator.prepare(model, optimizer)
    return (model if together.kind == ENGINE else prepared), optimizer


def _shard_on_cpu(accelerator: Any) -> None:
    """Let accelerate share out weights on CPUs as on GPUs, which it does not by itself."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP
