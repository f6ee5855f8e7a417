"""One process or many: who we are, and what we tell each other."""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.parallel import DistributedDataParallel

from lora_core.kernels.cores import limit_threads
from trainers.processes.devices import nccl_settings, placement, usable
from trainers.processes.fsdp import is_sharded
from trainers.processes.parent import end_with_parent
from trainers.processes.torchrun import connect, is_torchrun, meet, open_store
from trainers.processes.watch import Watch, undisturbed

Value = TypeVar("Value")

TIMEOUT = 600
"""Seconds that the processes wait for each other, by default."""


@dataclass(frozen=True)
class World:
    """The processes of this run, as torchrun started them."""

    rank: int
    size: int
    device: torch.device
    watch: Watch | None = None
    """Who is where, when there are several processes."""
    store: Store | None = None
    """What outlives the processes when torchrun starts them again."""
    group: Any = None
    """The processes as they exchange plain values, over the CPU; None: torch's default group."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """``model`` with gradients averaged over processes; the model itself if it sees to that or there is one."""
        if self.size == 1 or is_sharded(model):
            return model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        parallel = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
        _settle_buckets(parallel)
        return parallel

    def accumulate(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """Context of one micro-batch's backward pass: gradients are exchanged in the last one only."""
        if last:
            self._meet()
        if is_sharded(model):
            model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value``, in the order of ranks, on every process."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        self._meet()
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_main(self, compute: Callable[[], Value]) -> Value:
        """What ``compute`` returns on the main process, on every process.

        A ValueError or an OSError there is raised on all.
        """
        if self.size == 1:
            return compute()
        outcome: list[Any] = [None, None]  # value, error
        if self.is_main:
            try:
                outcome[0] = compute()
            except (ValueError, OSError) as error:
                outcome[1] = _portable(error)
        self._meet()
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            self._meet()
            dist.barrier(self.group)

    def at_step(self, step: int) -> None:
        """Note how many optimiser steps are done, for the message should this process come no further."""
        if self.watch is not None:
            self.watch.step = step

    def remember(self, what: str) -> None:
        """Keep a note for the processes that torchrun starts in the place of these, should one fail."""
        if self.store is not None:
            self.store.set(f"remember {what}", "")

    def remembers(self, what: str) -> bool:
        """Whether an earlier start of these processes kept that note; the main process knows."""
        return self.store is not None and self.store.check([f"remember {what}"])

    def _meet(self) -> None:
        if self.watch is not None:
            self.watch.meet()


@contextmanager
def distributed(timeout: float = TIMEOUT) -> Iterator[World]:
    """The world that torchrun's environment describes (one process without it), torn down on leaving.

    With several processes an error on any of them ends all: the user reads once which rank met it and where, and every
    process leaves by SystemExit. Inside another `distributed` it is the same world.

    Args:
        timeout: seconds that the processes wait for each other before the run ends, with a message that names who is
            missing.

    Raises:
        ValueError: there are more processes than GPUs here, or this build of torch has no code for the GPU.
    """
    if _open:
        yield _open[-1]
        return
    limit_threads()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    place = placement(os.environ, gpus, has_nccl=dist.is_nccl_available())
    rank, size, device = place.rank, place.size, place.device
    if usable(device).type == "cuda":
        torch.cuda.set_device(device)  # before anything else asks CUDA: it would take the first GPU
    if is_torchrun():
        end_with_parent()
    wait = timedelta(seconds=timeout)
    store = open_store(rank, size, wait) if is_torchrun() or size > 1 else None
    if store is None or size == 1 or dist.is_initialized():
        world = World(rank, size, device, store=store)
        with _opened(world):
            yield world
        return
    prefix, failed, nccl = meet(store, rank, size, wait), False, place.backend == "nccl"
    with Watch(PrefixStore(f"{prefix}/watch", connect(wait)), rank, size, wait) as watch:
        try:
            shared = PrefixStore(prefix, store)
            if nccl:
                os.environ.update(nccl_settings(os.environ))
            dist.init_process_group(store=shared, rank=rank, world_size=size, **place.group_options(wait))
            group = dist.new_group(backend="gloo", timeout=wait) if nccl else None
            world = World(rank, size, device, watch, store, group)
            with _opened(world):
                yield world
            world.barrier()
        except Exception as error:
            failed = True
            with undisturbed():
                failure = watch.fail(error)
                watch.tell(failure)
            raise SystemExit(failure.status) from error
        finally:
            if dist.is_initialized() and not (failed and nccl):  # NCCL would wait for the others
                dist.destroy_process_group()


_open: list[World] = []


@contextmanager
def _opened(world: World) -> Iterator[None]:
    """Make a world the one that `distributed` gives inside of it."""
    _open.append(world)
    try:
        yield
    finally:
        _open.remove(world)


def _settle_buckets(parallel: DistributedDataParallel) -> None:
    """Bring a model's gradients into the places in which they stay, so that every step sums them in the same order.

    DDP sums them in buckets, which it lays out anew after the first backward pass, in the order in which they came.
    Of more than two numbers the last bits depend on who begins, and that on the place in the bucket: the first step of
    a resumed run would differ from the same step of an uninterrupted one. So a pass of zeros comes before any step.
    """
    trained = [parameter for parameter in parallel.module.parameters() if parameter.requires_grad]
    parallel.reducer.prepare_for_backward([])  # as DDP does after a forward pass
    torch.stack([(0 * parameter).sum(dtype=torch.float32) for parameter in trained]).sum().backward()
    for parameter in trained:
        parameter.grad = None


def _portable(error: Exception) -> Exception:
    """The error, or one of its message where the other processes could not make it anew."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its constructor asks for
        return ValueError(str(error))
