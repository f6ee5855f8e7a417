"""A table of what is adapted, for people."""

from torch import nn

from lora_core.adapters import hosts, state_of, whole_tensors
from lora_core.inject import parameter_counts

_TITLES = ("layer", "kind", "shape", "adapter", "rank", "scaling", "trainable", "state")


def summary(model: nn.Module) -> str:
    """A line for each adapter of each layer and each tensor trained in full, and totals: ``print(summary(model))``."""
    state = state_of(model)
    rows = []
    for path, host in hosts(model):
        shape = "×".join(str(n) for n in getattr(host, host.weight_name).shape)
        for name in host.lora:
            update = host.update_of(name)
            trainable = sum(p.numel() for p in update.parameters() if p.requires_grad)
            acts = "merged" if name in host.merged_adapters else "active" if name in host.active_adapters else "waiting"
            kind, scaling = host.original_class.__name__, f"{float(update.scaling):g}"
            rows.append((path, kind, shape, name, update.r, scaling, trainable, acts))
    for name in state.adapters:
        for key, tensor in whole_tensors(model, name).items():
            shape = "×".join(str(n) for n in tensor.shape)
            trainable = tensor.numel() if tensor.requires_grad and name in state.active else 0
            acts = "active" if name in state.active else "waiting"
            rows.append((key, "in full", shape, name, "", "", trainable, acts))
    table: list[tuple[str, ...]] = [_TITLES]
    for row in rows:
        table.append(tuple(f"{cell:,}" if isinstance(cell, int) else cell for cell in row))
    widths = [max(len(row[column]) for row in table) for column in range(len(_TITLES))]
    lines = []
    for row in table:
        cells = []
        for title, cell, width in zip(_TITLES, row, widths, strict=True):
            cells.append(cell.rjust(width) if title in ("rank", "scaling", "trainable") else cell.ljust(width))
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    adapters = ", ".join(f"{name} ({'active' if name in state.active else 'waiting'})" for name in state.adapters)
    trainable, total = parameter_counts(model)
    counts = f"trainable: {trainable:,} of {total:,} parameters ({trainable / total:.4%})"
    return "\n".join([*lines, "", f"adapters: {adapters or 'none'}", counts])
