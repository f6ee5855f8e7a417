"""Linear layers with their low-rank updates, forward and backward by hand, for a CPU; on a GPU by cuda/stacked.py.

    y = W x + b + alpha B A (keep * x)          alpha = scaling / (1 - p)

Several layers that read the same input, such as query, key and value, are one function: their input is cast once and
its gradient summed in place. Nothing is computed that no one needs (gradients of frozen weights, of the input of the
lowest adapted layer). What waits for the backward pass is the input, once for all layers and only if something is
trained on it, the rank-r tensor S = A (keep * x), and `keep` (dropout.py).

Shapes: N tokens, I in_features, O out_features, r rank.
"""

from operator import is_
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_core.dropout import too_sparse
from lora_core.kernels.cuda.stacked import Stack, project_stack
from lora_core.kernels.dropout import add_dropped, draw_keep, drop
from lora_core.kernels.int8 import Int8Weight, round_rows
from lora_core.layers import LoRALinear
from lora_core.updates import LinearUpdate, ThirdsUpdate

HALF = (torch.bfloat16, torch.float16)
ONE_BY_ONE = ("cpu",)
"""Devices that compute layers one by one, as below; the others compute `groups` of them as one, by cuda/stacked.py."""


class Products(NamedTuple):
    """How matrix products are computed."""

    dtype: torch.dtype | None = None
    """What they are computed and the results given in; None: the input's own."""
    frozen: torch.dtype | None = None
    """torch.int8: those with frozen weights are computed in int8 (int8.py), with results in ``dtype``."""


IN_ITS_OWN_DTYPE = Products()


class Update(NamedTuple):
    """The adapter that acts on a layer."""

    a: Tensor
    """(r, I)"""
    b: Tensor
    """(O, r)"""
    scaling: float
    dropout: float


def project(x: Tensor, layers: tuple[nn.Module, ...], products: Products = IN_ITS_OWN_DTYPE) -> tuple[Tensor, ...]:
    """The outputs (N, O) of linear layers for one input (N, I).

    A layer that is more than a Linear with one plain adapter (DoRA, PiSSA, several adapters at once, a class of the
    user's) is called as it stands.
    """
    dtype = products.dtype or x.dtype
    plain = [layer for layer in layers if is_plain(layer)]
    outputs: dict[nn.Module, Tensor] = {}
    if plain and x.device.type not in ONE_BY_ONE:
        for group in groups(plain, dtype):
            outputs |= zip(group, project_stack(x, stack_of(group, dtype), dtype), strict=True)
    elif plain:
        settings, tensors = [], []
        for layer in plain:
            update = acting_update(layer)
            copy = frozen_copy(layer, products.frozen or dtype)
            settings.append((copy, update and (update.scaling, update.dropout)))
            tensors += (layer.weight, layer.bias, *(update[:2] if update else (None, None)))
        outputs = dict(zip(plain, _Project.apply(x, dtype, settings, *tensors), strict=True))
    others = [layer for layer in layers if layer not in outputs]
    if others:
        with torch.autocast(x.device.type, dtype, enabled=dtype in HALF):
            outputs |= {layer: layer(x.float()).to(dtype) for layer in others}
    return tuple(outputs[layer] for layer in layers)


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the layer is a Linear in fp32 with at most one acting adapter of the plain kind."""
    if type(layer) is nn.Linear:
        return layer.weight.dtype == torch.float32
    if type(layer) is not LoRALinear or layer.weight.dtype != torch.float32:
        return False
    if layer.merged_adapters:
        return not layer.training  # in training the layer itself refuses
    adapters = [layer.update_of(name) for name in layer.active_adapters]
    return len(adapters) <= 1 and all(
        isinstance(adapter, LinearUpdate)
        and type(adapter) in (LinearUpdate, ThirdsUpdate)
        and adapter.start_A is None
        and adapter.lora_magnitude_vector is None
        and adapter.lora_B.bias is None
        and adapter.lora_A.weight.dtype == torch.float32
        and not too_sparse(adapter.lora_dropout.p)
        for adapter in adapters
    )


def acting_update(layer: nn.Linear) -> Update | None:
    """The adapter that acts on a layer for which ``is_plain``."""
    if not isinstance(layer, LoRALinear) or layer.merged_adapters or not layer.active_adapters:
        return None
    adapter = layer.update_of(layer.active_adapters[0])
    assert isinstance(adapter, LinearUpdate)
    dropout = adapter.lora_dropout.p if adapter.lora_dropout.training else 0.0
    return Update(*adapter.trained_factors(), float(adapter.scaling), dropout)


def groups(layers: list[nn.Linear], dtype: torch.dtype) -> list[list[nn.Linear]]:
    """The layers in the groups that a GPU computes as one each, those with an adapter first.

    All are one group where their adapters are alike, and products are in half precision, for which weights are copied
    anyway: to have them in fp32 one below the other would take their memory once more.
    """
    updates = {layer: update for layer in layers if (update := acting_update(layer)) is not None}
    kinds = {(update.a.shape, update.b.shape, *update[2:]) for update in updates.values()}
    if dtype not in HALF or len(kinds) > 1:
        return [[layer] for layer in layers]
    return [[*updates, *(layer for layer in layers if layer not in updates)]]


def stack_of(layers: list[nn.Linear], dtype: torch.dtype) -> Stack:
    """One of the `groups` as a stack."""
    updates = [update for layer in layers if (update := acting_update(layer)) is not None]
    copy = frozen_copy(layers[0], dtype, *layers[1:])
    assert not isinstance(copy, Int8Weight)
    return Stack(
        tuple((layer.weight, layer.bias) for layer in layers),
        copy,
        tuple((update.a, update.b) for update in updates),
        *(updates[0][2:] if updates else ()),
    )


class FrozenCopy(NamedTuple):
    """Frozen weights in another dtype, with what tells whether they have changed since."""

    of: tuple[Tensor, ...]
    versions: list[tuple[int, int]]
    dtype: torch.dtype
    copy: Tensor | Int8Weight


def frozen_copy(layer: nn.Linear, dtype: torch.dtype, *below: nn.Linear) -> Tensor | Int8Weight | None:
    """The layer's frozen weight in ``dtype``, with those of other layers below it; None where it must not be kept.

    It is made once and kept beside the weight, and made again when a weight has changed, unless that was in place and
    behind autograd's back (``.data.add_``).
    """
    weights = layer.weight, *(other.weight for other in below)
    if any(weight.dtype == dtype or weight.requires_grad for weight in weights):
        return None
    versions = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]
    kept: FrozenCopy | None = vars(layer).get(FROZEN_COPY)
    same = kept is not None and len(kept.of) == len(weights) and all(map(is_, kept.of, weights))
    if kept is None or not same or kept.versions != versions or kept.dtype != dtype:
        with torch.inference_mode(False):  # a copy made in inference could not be used in training
            if dtype == torch.int8:
                copy = Int8Weight(torch.cat(weights) if below else weights[0])
            else:
                copies = [weight.detach().to(dtype) for weight in weights]
                copy = torch.cat(copies) if below else copies[0]
            kept = FrozenCopy(weights, versions, dtype, copy)
        setattr(layer, FROZEN_COPY, kept)
    return kept.copy


FROZEN_COPY = "frozen_copy"


class _Project(Function):
    """For each layer the setting is (copy of the weight, (scaling, p)), and the tensors are weight, bias, A, B."""

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype, settings: list, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.input_dtype, ctx.dtype, x = x.dtype, dtype, x.to(dtype)
        needs_x, _, _, *needs = ctx.needs_input_grad
        rounded = round_rows(x) if any(isinstance(copy, Int8Weight) for copy, _ in settings) else None
        outputs, saved, ctx.alphas, ctx.int8 = [], [], [], []
        for number, (copy, update) in enumerate(settings):
            weight, bias, a, b = tensors[4 * number : 4 * number + 4]
            needs_a, needs_b = needs[4 * number + 2 : 4 * number + 4]
            assert weight is not None
            if isinstance(copy, Int8Weight):
                assert rounded is not None
                weight, y = None, copy.product(rounded, bias, dtype)  # (N, O)
            else:
                weight = weight.to(dtype) if copy is None else copy
                y = linear(x, weight, bias)
            s = keep = None
            alpha, p = update or (0.0, 0.0)
            if a is not None and b is not None:
                a, b, kept = a.to(dtype), b.to(dtype), x
                if p > 0:
                    keep, scale = draw_keep(x, p)
                    alpha, kept = alpha * scale, drop(x, keep)
                s = kept @ a.T  # (N, r)
                y.addmm_(s, b.T, alpha=alpha)
            outputs.append(y)
            saved += [weight, a, b, s if needs_b else None, keep if needs_x or needs_a else None]
            ctx.alphas.append(alpha)
            ctx.int8.append(copy if isinstance(copy, Int8Weight) else None)
        reads_x = any(needs[0::4]) or any(needs[2::4])
        ctx.save_for_backward(x if reads_x else None, *saved)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        needs_x, _, _, *needs = ctx.needs_input_grad
        dx, found = None, []
        for number, (g, alpha, int8) in enumerate(zip(grads, ctx.alphas, ctx.int8, strict=True)):
            weight, a, b, s, keep = saved[5 * number : 5 * number + 5]
            needs_weight, needs_bias, needs_a, needs_b = needs[4 * number : 4 * number + 4]
            g = g.to(ctx.dtype).contiguous()  # (N, O)
            ds = None if b is None else (g @ b).mul_(alpha)  # (N, r)
            kept = x if keep is None or not needs_a else drop(x, keep)
            found += [
                (g.T @ x).float() if needs_weight else None,
                g.sum(0).float() if needs_bias else None,
                (ds.T @ kept).float() if needs_a and ds is not None else None,
                (s.T @ g).mul_(alpha).T.float() if needs_b else None,
            ]
            if needs_x:
                dx = _add_input_gradient(dx, ctx.input_dtype, g, int8 or weight, ds, a, keep)
        return dx, None, None, *found


def _add_input_gradient(
    dx: Tensor | None,
    dtype: torch.dtype,
    g: Tensor,
    weight: Tensor | Int8Weight,
    ds: Tensor | None,
    a: Tensor | None,
    keep: Tensor | None,
) -> Tensor:
    """``dx`` plus one layer's gradient of the input, (N, I) in ``dtype``."""
    if isinstance(weight, Int8Weight):
        part = weight.input_gradient(round_rows(g), g.dtype)
    elif dx is not None and dx.dtype == weight.dtype and dx.dtype in ONEDNN:
        part = torch.ops.mkldnn._linear_pointwise.binary(g, dx, weight.T, None, "add")
        dx = None
    else:
        part = linear(g, weight.T, None)
    if ds is not None and a is not None:
        if keep is None:
            part.addmm_(ds, a)
        else:
            add_dropped(part, ds @ a, keep)
    return part.to(dtype) if dx is None else dx.add_(part)


def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return ()
    return (torch.float32, *([torch.bfloat16] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else []))


ONEDNN = _onednn_dtypes()
"""Dtypes in which oneDNN's product can be called by itself. It takes a bf16 input with an fp32 bias, and in fp32 it is
7% to 10% faster than the BLAS that torch's builds call, on AMD; elsewhere torch's own product does the same."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` (N, I) times the transpose of ``weight`` (O, I), plus ``bias`` (O,), which may be wider than they are."""
    if x.dtype in ONEDNN:
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
