"""Data in: read tagged sentences, tokenise them into windows, and batch the windows by length."""

from trainers.data.batches import epoch_batches, evaluation_batches, share, share_by_tokens, total_steps
from trainers.data.preprocess import load_windows
from trainers.data.readers import TokenDataset, load_token_datasets, token_files
from trainers.data.token_files import TokenFile
from trainers.data.tokenizer import check_vocabulary, load_tokenizer
from trainers.data.windows import IGNORED_LABEL, TokenWindows, encode_tokens

__all__ = [
    "IGNORED_LABEL",
    "TokenDataset",
    "TokenFile",
    "TokenWindows",
    "check_vocabulary",
    "encode_tokens",
    "epoch_batches",
    "evaluation_batches",
    "load_token_datasets",
    "load_tokenizer",
    "load_windows",
    "share",
    "share_by_tokens",
    "token_files",
    "total_steps",
]
