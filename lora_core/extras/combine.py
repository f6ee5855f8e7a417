"""One adapter out of several, by arithmetic on their updates.

"cat" and "svd" add the updates themselves: sum of weight * scaling * B A, exactly or as its best approximation of a
given rank. The others mix the factors, A with A and B with B, which costs no rank but is only a rough sum:
"linear" adds them; "magnitude_prune" keeps the largest entries first; "dare_linear" random ones, scaled up; "ties"
and "dare_ties" then average, entry by entry, those that agree in sign with the majority.

TIES: https://arxiv.org/abs/2306.01708. DARE: https://arxiv.org/abs/2311.03099. Names and results are PEFT's.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_core.adapters import AdapterRecord, hosts, record_of, whole_tensors
from lora_core.checkpoint import explicit_config, explicit_targets
from lora_core.inject import check_new_name, install
from lora_core.layers import LoRALayer, model_modules
from lora_core.targets import attention_outputs
from lora_core.updates import TokenRows, Update

PRUNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
COMBINATIONS = ("linear", "cat", "svd", *PRUNING)


@torch.no_grad()
def combine_adapters(
    model: nn.Module,
    adapter_names: Sequence[str],
    weights: Sequence[float],
    new_name: str,
    combination: str = "linear",
    *,
    density: float | None = None,
    rank: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """Add the adapter ``new_name``, a weighted combination of others, without making it act; returns ``model``.

    Args:
        weights: one per adapter; they may be negative.
        combination: "linear", "cat", "svd", "ties", "dare_linear", "dare_ties" or "magnitude_prune"; see above.
        density: share of the entries that the last four keep, above 0 and at most 1.
        rank: rank of the result of "svd"; None means the largest of the adapters'.
        seed: of the random choice in "dare_linear" and "dare_ties".

    Raises:
        ValueError: an unknown name or combination, adapters of a kind that has no sum (DoRA, lora_bias, token rows),
            two that own the same head or bias, or factors to mix that differ in rank. Nothing is changed then.
    """
    names = list(adapter_names)
    _check(names, weights, combination, density, rank)
    check_new_name(model, new_name)
    records = {name: record_of(model, name) for name in names}
    saved = _saved_once(model, records)
    generator = torch.Generator().manual_seed(seed)
    updates: dict[str, Update] = {}
    for path, host in hosts(model):
        parts = [
            (host.update_of(name), weight) for name, weight in zip(names, weights, strict=True) if name in host.lora
        ]
        if parts:
            try:
                a, b = _combined(parts, combination, density, rank, generator)
                updates[path] = _plain_update(host, a, b, like=parts[0][0])
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
    first = records[names[0]]
    outputs = set(attention_outputs(model).values())  # adapted with their attention, which is the target
    paths = [path for path, _ in model_modules(model)]
    sizes = {path: (update.r, 1.0) for path, update in updates.items() if path not in outputs}
    config = explicit_targets(explicit_config(dataclasses.replace(first.config, use_rslora=False), sizes), sizes, paths)
    configs = [record.config for record in records.values()]
    modules = [module for each in configs for module in each.modules_to_save or ()]
    config = dataclasses.replace(
        config,
        init_lora_weights=True,
        modules_to_save=tuple(dict.fromkeys(modules)),
        bias=next((each.bias for each in configs if each.bias != "none"), "none"),
    )
    trainable = all(record.trainable for record in records.values())
    install(model, new_name, AdapterRecord(config, tuple(updates), tuple(saved), trainable), updates, saved)
    return model


def _combined(
    parts: Sequence[tuple[Update, float]],
    combination: str,
    density: float | None,
    rank: int | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) of the weighted updates' combination, in fp32; its scaling is 1."""
    updates = [update for update, _ in parts]
    for update in updates:
        if isinstance(update, TokenRows) or update.lora_magnitude_vector is not None or update.bias is not None:
            raise ValueError("Adapters with DoRA, lora_bias or trainable_token_indices cannot be combined.")
    a_s, b_s = zip(*(update.factors() for update in updates), strict=True)
    a_s, b_s = [a.float() for a in a_s], [b.float() for b in b_s]
    factors = [weight * float(update.scaling) for update, weight in parts]
    if combination in ("cat", "svd"):
        a = torch.cat([f * a for f, a in zip(factors, a_s, strict=True)])
        b = torch.cat(b_s, dim=1)
        return (a, b) if combination == "cat" else _truncated(a, b, rank or max(part.shape[0] for part in a_s))
    if len({a.shape[0] for a in a_s}) > 1:
        raise ValueError(
            f"{combination!r} mixes factors, which must have one rank, but they have {[a.shape[0] for a in a_s]}. "
            'Use "cat" or "svd".'
        )
    if any(update.has_start for update in updates):
        raise ValueError(f'{combination!r} cannot mix factors that PiSSA or OLoRA started. Use "cat" or "svd".')
    roots = [math.sqrt(abs(f)) for f in factors]
    signed = [math.copysign(root, f) for root, f in zip(roots, factors, strict=True)]
    a = _mixed(a_s, signed, combination, density, generator)
    return a, _mixed(b_s, roots, combination, density, generator)


def _mixed(
    tensors: list[Tensor], weights: list[float], combination: str, density: float | None, generator: torch.Generator
) -> Tensor:
    """The weighted factors, all A or all B, as one."""
    if density is not None and density < 1 and combination != "linear":
        if combination.startswith("dare"):
            masks = [torch.bernoulli(torch.full(t.shape, density), generator=generator) for t in tensors]
            tensors = [t * mask.to(t.device) / density for t, mask in zip(tensors, masks, strict=True)]
        else:
            tensors = [_largest(t, density) for t in tensors]
    stacked = torch.stack(tensors)  # (number of adapters, ...)
    weighted = stacked * torch.tensor(weights, device=stacked.device).view(-1, *[1] * (stacked.dim() - 1))
    if not combination.endswith("ties"):
        return weighted.sum(0)
    majority = torch.where(stacked.sum(0) >= 0, 1, -1)
    agrees = stacked.sign() == majority
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _largest(tensor: Tensor, density: float) -> Tensor:
    """``tensor`` with all but the share ``density`` of its entries, the largest in magnitude, set to 0."""
    flat = tensor.flatten()
    kept = flat.abs().topk(int(density * flat.numel())).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(tensor)


def _truncated(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of B A of a lower rank, by the SVD of a matrix of the factors' rank only."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    return vh[:rank] @ q_a.T, q_b @ (u[:, :rank] * s[:rank])


def _plain_update(host: LoRALayer, a: Tensor, b: Tensor, like: Update) -> Update:
    update = host.new_update_like(like, a.shape[0], scaling=1.0)
    tensors = update.named_tensors()
    for name, factor in zip(update.factor_names, (a, b), strict=True):
        tensors[name].copy_(factor.view_as(tensors[name]))
    return update


def _saved_once(model: nn.Module, records: dict[str, AdapterRecord]) -> dict[str, Tensor]:
    """Copies of what the adapters own in full, which only one of them may own."""
    saved: dict[str, Tensor] = {}
    for name, record in records.items():
        shared = sorted(set(saved) & set(record.saved))
        if shared:
            raise ValueError(
                f"Adapter {name!r} and another both own {shared[0]!r}: heads and biases have no sum. "
                "Combine adapters that share none."
            )
        for key, tensor in whole_tensors(model, name).items():
            copied = tensor.detach().clone()
            saved[key] = nn.Parameter(copied) if isinstance(tensor, nn.Parameter) else copied
    return saved


def _check(
    names: list[str], weights: Sequence[float], combination: str, density: float | None, rank: int | None
) -> None:
    if not names or len(names) != len(weights) or len(set(names)) < len(names):
        raise ValueError(f"Give different adapters and one weight for each, not {names} and {list(weights)}.")
    if combination not in COMBINATIONS:
        raise ValueError(f"combination must be one of {', '.join(COMBINATIONS)}, but it is {combination!r}.")
    if combination in PRUNING and (density is None or not 0 < density <= 1):
        raise ValueError(f"{combination!r} needs a density above 0 and at most 1, but it is {density!r}.")
    if combination not in PRUNING and density is not None:
        raise ValueError(f"density is for {', '.join(PRUNING)}; {combination!r} keeps every entry.")
    if rank is not None and (combination != "svd" or rank < 1):
        raise ValueError(f'rank is for "svd" and must be at least 1, but it is {rank!r} for {combination!r}.')
