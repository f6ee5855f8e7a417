"""EVA: start A with the directions in which a layer's inputs vary most, and give ranks to the layers that need them.

Paischer et al. 2024, https://arxiv.org/abs/2410.07170. The inputs' covariance is accumulated, so the directions are
exact for the batches given, whatever their order.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_core.adapters import disable_adapters, hosts, record_of, set_adapter, state_of
from lora_core.checkpoint import explicit_config, explicit_targets
from lora_core.layers import LoRALayer, model_modules
from lora_core.targets import attention_outputs
from lora_core.updates import LinearUpdate


@torch.no_grad()
def initialise_eva(
    model: nn.Module,
    batches: Iterable[Any],
    adapter_name: str = "default",
    *,
    rho: float = 2.0,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> nn.Module:
    """Set A of every linear layer's fresh adapter from the inputs that the layer sees; returns ``model``.

    Scalings stay as they are. Layers whose inputs say little may lose their adapter altogether.

    Args:
        batches: some tens of training batches on the model's device. Of a mapping with an "attention_mask" (B, T), only
            the unmasked positions count.
        rho: a layer gets at most rho times its rank, the sum of all ranks staying the same; 1 keeps every rank.
        forward: how to call the model on a batch; by default a mapping gives its keyword arguments.

    Raises:
        ValueError: the adapter has been trained already, adapts no linear layer, or the batches hold too little.
    """
    record = record_of(model, adapter_name)
    outputs = set(attention_outputs(model).values())
    layers: dict[str, LoRALayer] = {}
    old: dict[str, LinearUpdate] = {}
    for path, host in hosts(model):
        update = host.lora[adapter_name] if adapter_name in host.lora and path not in outputs else None
        if type(update) is LinearUpdate:
            layers[path], old[path] = host, update
    if not layers:
        raise ValueError(f"Adapter {adapter_name!r} adapts no linear layer, so EVA has nothing to set.")
    if any(update.lora_B.weight.any() or update.has_start for update in old.values()):
        raise ValueError(
            f'Adapter {adapter_name!r} is not fresh: inject it with init_lora_weights="eva" and set it before training.'
        )
    if rho < 1:
        raise ValueError(f"rho must be at least 1, but it is {rho}.")
    ranks = {path: update.r for path, update in old.items()}
    moments, same = _observe(model, layers, batches, forward or _call)
    directions = {path: moment.directions() for path, moment in moments.items()}
    new_ranks = _redistribute({path: directions[same[path]][0] for path in layers}, ranks, rho)
    for path, host in layers.items():
        if new_ranks[path] > 0:
            host.lora[adapter_name] = _started(host, old[path], directions[same[path]][1][: new_ranks[path]])
        else:
            del host.lora[adapter_name]
            if not host.lora:
                host.release()
    left = {path: host.update_of(adapter_name) for path, host in hosts(model) if adapter_name in host.lora}
    record.targets = tuple(path for path in record.targets if path in left)
    sizes = {path: (left[path].r, float(left[path].scaling)) for path in record.targets if path not in outputs}
    record.config = explicit_config(record.config, sizes)
    if not all(new_ranks.values()):
        record.config = explicit_targets(record.config, sizes, [path for path, _ in model_modules(model)])
    set_adapter(model, state_of(model).active)
    return model


class _Moments:
    """Count, sum and second moments of a layer's input vectors."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0
        self.outer: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """``x`` (n, in)."""
        self.count += len(x)
        self.total = self.total + x.sum(0, dtype=torch.float64)
        self.outer = self.outer + (x.T @ x).double()

    def directions(self) -> tuple[Tensor, Tensor]:
        """Each principal direction's share of the variance, (in,), and the directions as rows; largest first."""
        if self.count < 2:
            raise ValueError("EVA saw fewer than two input vectors. Give batches of training data.")
        mean, square = self.total / self.count, self.outer / self.count
        assert isinstance(mean, Tensor)
        assert isinstance(square, Tensor)
        values, vectors = torch.linalg.eigh(square - torch.outer(mean, mean))
        values = values.clamp(min=0)
        if values.sum() <= 1e-6 * square.trace():  # no more than fp32's rounding
            raise ValueError("EVA saw one input vector again and again. Give batches of training data.")
        return (values / values.sum()).flip(0), vectors.T.flip(0)


def _observe(
    model: nn.Module, layers: Mapping[str, LoRALayer], batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any]
) -> tuple[dict[str, _Moments], dict[str, str]]:
    """Moments by path, and for every path the one whose inputs are the very same (query, key and value share them)."""
    moments: dict[str, _Moments] = {}
    same: dict[str, str] = {}
    last: list[tuple[Tensor, str]] = []
    mask: list[Tensor] = []

    def watch(path: str) -> Callable[[nn.Module, tuple], None]:
        def hook(_: nn.Module, args: tuple) -> None:
            x = args[0]
            if last and last[0][0] is x and same.get(path, last[0][1]) == last[0][1]:
                same[path] = last[0][1]
                return
            same[path] = path
            last[:] = [(x, path)]
            kept = x[mask[0]] if mask and mask[0].shape == x.shape[:2] else x.flatten(0, -2)
            moments.setdefault(path, _Moments()).add(kept.float())

        return hook

    modes = [(module, module.training) for module in model.modules()]
    handles = [host.register_forward_pre_hook(watch(path)) for path, host in layers.items()]
    try:
        model.eval()
        with disable_adapters(model):
            for batch in batches:
                masked = isinstance(batch, Mapping) and "attention_mask" in batch
                mask[:] = [batch["attention_mask"].bool()] if masked else []
                forward(model, batch)
                last.clear()
    finally:
        for module, training in modes:
            module.training = training
        for handle in handles:
            handle.remove()
    unseen = [path for path in layers if path not in same]
    if unseen:
        raise ValueError(f"EVA saw no input of {unseen[0]}. Give batches that reach every adapted layer.")
    return moments, same


def _redistribute(shares: Mapping[str, Tensor], ranks: Mapping[str, int], rho: float) -> dict[str, int]:
    """Ranks with the same sum that take the directions of the largest shares first."""
    if rho == 1:
        return dict(ranks)
    candidates = []
    for path, rank in ranks.items():
        candidates += [(float(share), path) for share in shares[path][: round(rank * rho)]]
    candidates.sort(key=lambda candidate: -candidate[0])
    counts = Counter(path for _, path in candidates[: sum(ranks.values())])
    return {path: counts[path] for path in ranks}


def _started(host: LoRALayer, old: LinearUpdate, directions: Tensor) -> LinearUpdate:
    """A fresh update as ``old``, but with the rows of ``directions`` (r, in) as A."""
    new = host.new_update_like(old, len(directions))
    assert isinstance(new, LinearUpdate)
    new.lora_A.weight.copy_(directions)
    nn.init.zeros_(new.lora_B.weight)
    if new.lora_B.bias is not None:
        nn.init.zeros_(new.lora_B.bias)
    if new.lora_magnitude_vector is not None and old.lora_magnitude_vector is not None:
        new.lora_magnitude_vector.copy_(old.lora_magnitude_vector)
    return new


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)
