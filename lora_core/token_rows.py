"""Rows of the input embedding that are trained in full: new tokens, without training the whole table."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.updates import Adapter


class TokenRows(Adapter):
    """``trainable_tokens_delta`` (n, embedding_dim): the rows themselves (in spite of PEFT's name) of n token ids."""

    row_of: Tensor

    def __init__(self, embedding: nn.Embedding, token_ids: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__(len(token_ids), 1.0, 0.0, None, dtype)
        table = embedding.weight.detach()
        if len(set(token_ids)) < len(token_ids) or max(token_ids) >= len(table):
            raise ValueError(
                f"trainable_token_indices must be different numbers below {len(table)}, the size of the embedding, "
                f"but they are {list(token_ids)}."
            )
        ids = torch.tensor(token_ids, device=table.device)
        row_of = torch.full((len(table),), -1, device=table.device).index_copy_(
            0, ids, torch.arange(len(ids), device=ids.device)
        )
        self.register_buffer("row_of", row_of, persistent=False)
        self.trainable_tokens_delta = nn.Parameter(table[ids].to(dtype, copy=True))

    def named_tensors(self) -> dict[str, Tensor]:
        return {"token_adapter.trainable_tokens_delta": self.trainable_tokens_delta}

    def file_tensors(self) -> dict[str, Tensor]:
        return self.named_tensors()

    def token_ids(self) -> Tensor:
        """The token ids in the order of the rows, (n,)."""
        ids = (self.row_of >= 0).nonzero().squeeze(1)
        return ids[self.row_of[ids].argsort()]

    def merged_matrix(self, matrix: Tensor) -> Tensor:
        return matrix.index_copy(1, self.token_ids(), self.trainable_tokens_delta.T.to(matrix.dtype))

    def forward(self, ids: Tensor, out: Tensor, host: nn.Module) -> Tensor:
        """Embeddings of ``ids`` (...), as (..., embedding_dim), own rows in place of the table's."""
        row = self.row_of[ids]  # (...), -1 for a token that is not ours
        own = F.embedding(row.clamp(min=0), self.trainable_tokens_delta)
        return torch.where((row >= 0)[..., None], own.to(out.dtype), out)


def input_embedding(model: nn.Module) -> str:
    """Path of the embedding that turns token ids into vectors: the model's own word for it, or its first one."""
    own = getattr(model, "get_input_embeddings", None)
    wanted = own() if callable(own) else None
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and (wanted is None or module is wanted):
            return path
    raise ValueError(f"{type(model).__name__} has no nn.Embedding, so trainable_token_indices has no rows to train.")
