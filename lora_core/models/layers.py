"""What encoders and heads are made of: activations, attention and its mask, an LSTM over padded texts, and how a
transformer layer says where its parts are.

Shapes: B texts or images, T tokens (padded), Q tokens that ask (T, or fewer), H hidden size, N attention heads,
D = H / N, F intermediate size.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from lora_core.dropout import Dropout
from lora_core.models.host import on_both, on_host, send

ACTIVATIONS: dict[str, tuple[type[nn.Module], dict[str, str]]] = {
    "gelu": (nn.GELU, {}),
    "gelu_new": (nn.GELU, {"approximate": "tanh"}),
    "gelu_fast": (nn.GELU, {"approximate": "tanh"}),
    "gelu_pytorch_tanh": (nn.GELU, {"approximate": "tanh"}),
    "relu": (nn.ReLU, {}),
    "silu": (nn.SiLU, {}),
    "swish": (nn.SiLU, {}),
}
"""Activations by the names that config.json uses. The three tanh forms of GELU are one formula."""

MASKED = -(2.0**15)
"""Added to the attention score of a padded token. exp() of it is 0, and unlike the least float32 it is finite
in float16 and bfloat16 too, where an infinity would turn a row of nothing but padding into NaN."""

OUTSIDE = 2 * MASKED
"""The same for a token outside the window: so much less that a padded token, too, attends to its window alone."""

MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators, for `GraphBuilder.op`."""


def activation(name: str) -> nn.Module:
    """Return the activation module that config.json calls `name`."""
    module, options = ACTIVATIONS[name]
    return module(**options)


def additive_mask(attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Turn a mask (B, T), zero or False at padding, into what is added to the scores (B, 1, 1, T)."""
    if attention_mask is None:
        return None

    def added(mask: Tensor) -> Tensor:
        padding = (mask == 0)[:, None, None, :]  # (B, 1, 1, T)
        return torch.zeros_like(padding, dtype=dtype).masked_fill_(padding, MASKED)

    return on_both(added, attention_mask)


def real_tokens(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """True at real tokens, (B, T)."""
    if attention_mask is None:
        return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    return attention_mask != 0


def multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, num_heads: int, dropout_p: float
) -> Tensor:
    """Scaled dot-product attention over `num_heads` slices of H.

    `query` and the result are (B, Q, H), `key` and `value` (B, T, H), `mask` is from `additive_mask`; `dropout_p` is
    applied to the attention weights as it stands, so pass 0 outside training.
    """
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    context = F.scaled_dot_product_attention(query, key, value, mask, dropout_p)  # (B, N, Q, D)
    return context.transpose(1, 2).flatten(2)  # (B, Q, H)


def outside_window(tokens: int, window: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """What is added to the scores of tokens that are more than `window` places apart, (T, T)."""
    places = torch.arange(tokens, device=device)
    outside = (places - places[:, None]).abs() > window
    return torch.zeros_like(outside, dtype=dtype).masked_fill_(outside, max(OUTSIDE, torch.finfo(dtype).min))


def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, num_heads: int, dropout_p: float, window: int
) -> Tensor:
    """`multi_head_attention` of T tokens to those that are at most `window` >= 1 places away.

    Blocks of `window` tokens attend to themselves and the tokens on either side, so time and memory grow with
    T * window and not with the square of T.
    """
    tokens = query.shape[1]
    blocks = -(-tokens // window)
    behind = blocks * window - tokens
    query = F.pad(query, (0, 0, 0, behind)).unflatten(1, (blocks, window)).flatten(0, 1)  # (B blocks, window, H)
    key, value = (
        F.pad(x, (0, 0, window, window + behind)).unfold(1, 3 * window, window).transpose(2, 3).flatten(0, 1)
        for x in (key, value)
    )  # (B blocks, 3 window, H)
    lowest = max(OUTSIDE, torch.finfo(query.dtype).min)
    padding = query.new_zeros(1, tokens) if mask is None else mask.flatten(1)  # (B or 1, T)
    padding = F.pad(padding, (window, window + behind), value=lowest).unfold(1, 3 * window, window)
    places = torch.arange(3 * window, device=query.device) - window
    outside = (places - torch.arange(window, device=query.device)[:, None]).abs() > window  # (window, 3 window)
    masks = padding[:, :, None].masked_fill(outside, lowest)  # (B or 1, blocks, window, 3 window)
    masks = masks.expand(len(query) // blocks, -1, -1, -1).flatten(0, 1)[:, None]
    context = multi_head_attention(query, key, value, masks, num_heads, dropout_p)  # (B blocks, window, H)
    return context.unflatten(0, (-1, blocks)).flatten(1, 2)[:, :tokens]


class GraphBuilder(Protocol):
    """What encoders and heads write their part of an ONNX graph on: lora_core.export.graph.Graph, which explains each.

    They say themselves what they compute: a method `onnx` is to the graph what `forward` is to torch. The values of a
    graph are known by their names.
    """

    def path(self, module: nn.Module) -> str: ...
    def array(self, module: nn.Module, name: str = "weight") -> np.ndarray: ...
    def constant(self, value: Any, dtype: Any = np.int64) -> str: ...
    def parameter(self, module: nn.Module, name: str = "weight", dims: Sequence[str | int] = ()) -> str: ...
    def derived(self, name: str, value: np.ndarray, sources: Sequence[tuple[nn.Module, str]]) -> str: ...
    def op(
        self, op_type: str, *inputs: str, domain: str = "", outputs: Sequence[str] = (), **attributes: Any
    ) -> str: ...
    def cast(self, x: str, dtype: Any) -> str: ...
    def linear(self, x: str, layers: nn.Module | Sequence[nn.Module]) -> str: ...
    def dense(self, x: str, layers: nn.Module | Sequence[nn.Module]) -> str: ...
    def table(self, table: nn.Module, norm: nn.Module | None = None) -> str: ...
    def projected_table(self, table: str, layer: nn.Module, heads: int) -> str: ...
    def label_layer(self, x: str, layer: nn.Module) -> str: ...
    def activate(self, x: str, activation: nn.Module) -> str: ...
    def normalise(self, x: str, norm: nn.Module) -> str: ...
    def tokens(self, x: str, token: int | Sequence[int]) -> str: ...
    def attention(
        self, x: str, query_key_value: Sequence[nn.Module], heads: int, mask: str = "", added: str = ""
    ) -> str: ...
    def embed(
        self,
        ids: str,
        words: nn.Module,
        places: Sequence[nn.Module],
        norm: nn.Module,
        position_ids: str = "",
        segment_ids: str = "",
    ) -> str: ...


Project = Callable[[Tensor, tuple[nn.Module, ...]], tuple[Tensor, ...]]
"""Computes linear layers on one input (..., in), each (..., out): the plain way or the fused layers' own."""


class MultiHeadAttention(nn.Module):
    """Attention without its output projection. A subclass adds the projections to query, key and value.

    A family whose scores are more than products (relative positions, rotated queries) overrides `attend` and `onnx`,
    and the fused layers and the export use its own.
    """

    attends_in_half: ClassVar[bool] = False
    """Whether `attend` is made for queries, keys and values in bfloat16 too, with its softmax in float32."""

    def __init__(self, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = Dropout(dropout)

    def project_shared(self, project: Project, *shared: Tensor) -> tuple[Tensor, ...]:
        """What `attend` takes as `shared`, from what `LayerStack` was given for all layers: the same, unless a layer
        has projections of its own for it."""
        return shared

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *shared: Tensor) -> Tensor:
        """The attended values (B, Q, H) for projected queries (B, Q, H), keys and values (B, T, H).

        `mask` is from `additive_mask`, `shared` from `project_shared`.
        """
        dropout_p = self.dropout.p if self.dropout.training else 0.0
        return multi_head_attention(query, key, value, mask, self.num_heads, dropout_p)

    def onnx(self, graph: GraphBuilder, x: str, query_key_value: Sequence[nn.Module], mask: str, *shared: str) -> str:
        """`attend` on the projections of x (B, T, H) as a graph.

        `query_key_value` is that of `LayerParts`, `mask` (B, T) int32 or "", `shared` from `Encoder.onnx_shared`.
        """
        return graph.attention(x, query_key_value, self.num_heads, mask)


class GatedActivation(nn.Module):
    """(..., 2 F) -> (..., F): the activation of the first half times the second half, then dropout.

    With a GELU it is GeGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202).
    """

    def __init__(self, activation: nn.Module, dropout: float) -> None:
        super().__init__()
        self.activation = activation
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return self.dropout(self.activation(value) * gate)

    def onnx(self, graph: GraphBuilder, x: str) -> str:
        """`forward` as a graph."""
        value, gate = (f"{graph.path(self)}.{part}" for part in ("value", "gate"))
        graph.op("Split", x, outputs=[value, gate], axis=-1, num_outputs=2)
        return graph.op("Mul", graph.activate(value, self.activation), gate)


class LayerParts(NamedTuple):
    """The modules of one transformer layer, for those who compute it in another way: fused layers and ONNX graphs."""

    attention: MultiHeadAttention
    query_key_value: tuple[nn.Module, ...]
    """The three projections; or one, whose outputs are those of the three side by side."""
    attention_output: nn.Module
    attention_output_dropout: nn.Dropout | None
    attention_norm: nn.Module
    """After the first residual sum, or before the attention (`norm_first`)."""
    intermediate: nn.Module
    activation: nn.Module
    output: nn.Module
    output_dropout: nn.Dropout | None
    output_norm: nn.Module
    """After the second residual sum, or before the feed-forward layers (`norm_first`)."""
    attention_scale: nn.Module | None = None
    """What scales the first half's output before the residual sum."""
    output_scale: nn.Module | None = None
    """The same of the second half."""


class TransformerLayer(nn.Module):
    """Base of all layers that consist of attention and two dense layers, each half with a residual sum.

    A subclass has `forward(hidden, mask, *shared)`, which says what is computed, and `parts`.
    """

    norm_first: ClassVar[bool] = False
    """Whether a norm stands before each half, instead of after each residual sum."""

    def parts(self) -> LayerParts:
        """Where this layer's modules are."""
        raise NotImplementedError


class LayerStack(nn.ModuleList):
    """Transformer layers, each on the output of the one before. `lora_core.kernels.fused.fuse` makes it faster.

    Args:
        layers: `TransformerLayer`s.
        times: how often they run, all of them in turn: more than once where a family shares its layers' weights.
    """

    def __init__(self, layers: Iterable[nn.Module] | None = None, times: int = 1) -> None:
        super().__init__(layers)
        self.times = times

    gradient_checkpointing: bool = False
    """Whether training keeps nothing of a layer but its input, and computes the layer again for the backward pass: less
    memory for a third more time (Chen et al. 2016, https://arxiv.org/abs/1604.06174)."""

    def sequence(self) -> list[TransformerLayer]:
        """The layers in the order in which they run."""
        layers: list[Any] = [*self]
        return layers * self.times

    def forward(self, hidden: Tensor, mask: Tensor | None, *shared: Tensor, read: int | None = None) -> Tensor:
        """Return the hidden states (B, T, H) after all layers.

        Args:
            hidden: (B, T, H).
            mask: from `additive_mask`.
            shared: what the layers' attention needs besides and is computed once, such as relative positions.
            read: the number of leading tokens whose states are wanted, for layers whose `forward` takes it; the last
                layer computes no others, and the result is (B, read, H).
        """
        *before, last = self.sequence()
        for layer in before:
            hidden = self.run(layer, hidden, mask, *shared)
        return self.run(last, hidden, mask, *shared, **({} if read is None else {"read": read}))

    def run(self, layer: Callable[..., Tensor], *inputs: Any, **options: Any) -> Tensor:
        """``layer(*inputs, **options)``, with `gradient_checkpointing` where gradients are wanted.

        The second time the layer meets the same random numbers, so its dropout is the same.
        """
        if not self.gradient_checkpointing or not torch.is_grad_enabled():
            return layer(*inputs, **options)
        output: Any = checkpoint(layer, *inputs, use_reentrant=False, **options)
        return output


class Pooler(nn.Module):
    """Dense layer over the first token, (B, T, H) -> (B, H)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = nn.Tanh()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden[:, 0]))


class PackedLSTM(nn.Module):
    """An LSTM over padded texts that gives what it would give to each text alone.

    Args:
        input_size: width E of the input.
        states: width of one direction's output.
    """

    def __init__(
        self, input_size: int, states: int, *, num_layers: int = 1, bidirectional: bool = False, dropout: float = 0.0
    ) -> None:
        between = dropout if num_layers > 1 else 0.0  # torch warns of a dropout that has no layer to follow
        super().__init__()
        self.lstm = nn.LSTM(
            input_size, states, num_layers, batch_first=True, bidirectional=bidirectional, dropout=between
        )

    def forward(self, x: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs of the last layer (B, T, H), 0 at padding, and its final states (B, H), the forward one first.

        A text of nothing but padding is read as its first token.

        Raises:
            ValueError: padding stands before a token.
        """
        lengths = _lengths(x, attention_mask)
        lengths, order = lengths.sort(descending=True, stable=True)  # torch would send the order itself, and wait
        sent = send(torch.stack([order, order.argsort()]), x.device)
        own = x.to(next(self.lstm.parameters()).dtype)  # an adapter's LSTM is trained in fp32 on half-precision states
        packed = pack_padded_sequence(own.index_select(0, sent[0]), lengths, batch_first=True)
        outputs, (states, _) = self.lstm(packed)
        padded, _ = pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])
        directions = 2 if self.lstm.bidirectional else 1
        last = states[-directions:].transpose(0, 1).flatten(1)  # (B, H)
        return padded.index_select(0, sent[1]).to(x.dtype), last.index_select(0, sent[1]).to(x.dtype)

    def onnx_last(self, graph: GraphBuilder, x: str, mask: str) -> str:
        """The final states (B, H) of a bidirectional LSTM of one layer as a graph; ``mask`` is (B, T) int32."""
        assert self.lstm.num_layers == 1
        assert self.lstm.bidirectional
        states = self.lstm.hidden_size

        def of_both(name: str, *kinds: str) -> str:
            """Parameters of both directions; ONNX has the gates in the order input, output, forget, cell."""
            names = [[f"{kind}_l0{side}" for kind in kinds] for side in ("", "_reverse")]
            value = []
            for each in names:
                gates = [np.split(graph.array(self.lstm, part), 4) for part in each]  # input, forget, cell, output
                value.append(np.concatenate([part[gate] for part in gates for gate in (0, 3, 1, 2)]))
            sources = [(self.lstm, part) for each in names for part in each]
            return graph.derived(f"{graph.path(self)}.{name}", np.stack(value), sources)

        lengths = graph.op("ReduceSum", mask, graph.constant([1]), keepdims=0)  # (B,)
        lengths = graph.op("Max", lengths, graph.constant(1, np.int32))
        steps = graph.op("Transpose", x, perm=[1, 0, 2])  # (T, B, E)
        weights = of_both("W", "weight_ih"), of_both("R", "weight_hh"), of_both("B", "bias_ih", "bias_hh")
        outputs = [f"{graph.path(self)}.{name}" for name in ("outputs", "states")]
        graph.op("LSTM", steps, *weights, lengths, outputs=outputs, hidden_size=states, direction="bidirectional")
        return graph.op("Reshape", graph.op("Transpose", outputs[1], perm=[1, 0, 2]), graph.constant([0, -1]))


def _lengths(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Tokens of each text, (B,) on the CPU, at least 1."""
    if attention_mask is None:
        return torch.full((x.shape[0],), x.shape[1], dtype=torch.int64)
    real = on_host(attention_mask) != 0
    lengths = real.sum(1)
    if not torch.equal(real, torch.arange(x.shape[1]) < lengths[:, None]):
        raise ValueError("attention_mask has padding before a token; an LSTM reads texts that are padded at their end")
    return lengths.clamp(min=1)
