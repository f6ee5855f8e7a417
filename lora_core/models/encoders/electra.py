"""ELECTRA (Clark et al. 2020, https://arxiv.org/abs/2003.10555): BERT's layers over embeddings that may be narrower,
without a pooler.

Shapes: B sentences, T tokens (padded), E embedding size, H hidden size, L labels.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.dropout import Dropout
from lora_core.models.checks import check_input
from lora_core.models.encoder import Encoder
from lora_core.models.encoders.bert import BertConfig, BertModel
from lora_core.models.heads import TokenClassifier
from lora_core.models.layers import MICROSOFT, GraphBuilder, additive_mask
from lora_core.models.task_model import ClassifierHead


@dataclass(frozen=True)
class ElectraConfig(BertConfig):
    """Sizes of an ELECTRA encoder; the defaults are electra-small-discriminator."""

    model_type = "electra"

    hidden_size: int = 256
    """Width H of the hidden states."""
    num_attention_heads: int = 4
    """Attention heads a layer; divides hidden_size."""
    intermediate_size: int = 1024
    """Width F of the feed-forward layers."""
    embedding_size: int = 128
    """Width E of the embeddings; where it is not hidden_size, a linear layer projects them."""


class ElectraClassificationHead(ClassifierHead):
    """Two linear layers over the first token, with dropout before each and GELU between."""

    tokens_read = 1

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        first = self.dropout(hidden[:, 0])  # (B, H)
        return self.out_proj(self.dropout(F.gelu(self.dense(first))))  # (B, L)

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        inner = graph.op("Gelu", graph.dense(hidden, self.dense), domain=MICROSOFT)
        return graph.label_layer(inner, self.out_proj)


class ElectraModel(BertModel):
    """The encoder without a head."""

    config_class = ElectraConfig
    base_model_prefix = "electra"
    architecture_stem = "Electra"
    heads = (TokenClassifier, ElectraClassificationHead)
    has_pooler = False
    other_heads = Encoder.other_heads | {
        "discriminator_predictions",
        "generator_predictions",
        "generator_lm_head",
        "sequence_summary",
    }

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(config)
        self.embeddings_project: nn.Linear | None = None
        if config.embedding_size != config.hidden_size:
            self.embeddings = self.embeddings_class(
                vocab_size=config.vocab_size,
                hidden_size=config.embedding_size,
                max_position_embeddings=config.max_position_embeddings,
                type_vocab_size=config.type_vocab_size,
                pad_token_id=config.pad_token_id,
                layer_norm_eps=config.layer_norm_eps,
                dropout=config.hidden_dropout_prob,
            )
            self.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        check_input(input_ids, attention_mask, self.config.max_tokens)
        hidden = self.embeddings(input_ids, token_type_ids)  # (B, T, E)
        if self.embeddings_project is not None:
            hidden = self.embeddings_project(hidden)  # (B, T, H)
        return self.encoder["layer"](hidden, additive_mask(attention_mask, hidden.dtype))

    def onnx_embeddings(self, graph: GraphBuilder, inputs: str) -> str:
        return self._onnx_projected(graph, self.embeddings.onnx(graph, inputs))

    def onnx_segments(self, graph: GraphBuilder, inputs: str, segments: str) -> str:
        return self._onnx_projected(graph, self.embeddings.onnx(graph, inputs, segments))

    def _onnx_projected(self, graph: GraphBuilder, hidden: str) -> str:
        return hidden if self.embeddings_project is None else graph.dense(hidden, self.embeddings_project)
