"""Published models, by their config.json and the layout of their files as the hub shows them: the table in
lora_core/README.md.

The weights cannot be had here. So at full size names and shapes are held against transformers' (on the meta device,
without memory), and a small model of the same layout is written in the same form and read by both libraries.
"""

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from lora_core.models import config_from_dict, load_pretrained
from lora_core.models.encoders.build import assemble_encoder

README = Path(__file__).resolve().parents[4] / "lora_core/README.md"

BERT = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
ROBERTA = {**BERT, "model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1,
           "layer_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}  # fmt: skip
DISTILBERT = {"model_type": "distilbert", "activation": "gelu", "dim": 768, "hidden_dim": 3072, "n_layers": 6,
              "n_heads": 12, "max_position_embeddings": 512, "pad_token_id": 0, "tie_weights_": True}  # fmt: skip
VIT = {"model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
       "intermediate_size": 3072, "hidden_act": "gelu", "image_size": 224, "patch_size": 16, "num_channels": 3,
       "qkv_bias": True, "layer_norm_eps": 1e-12}  # fmt: skip
DINOV2 = {"model_type": "dinov2", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
          "mlp_ratio": 4, "hidden_act": "gelu", "image_size": 518, "patch_size": 14, "num_channels": 3,
          "qkv_bias": True, "layer_norm_eps": 1e-6, "layerscale_value": 1.0, "drop_path_rate": 0.0,
          "use_swiglu_ffn": False, "apply_layernorm": True, "reshape_hidden_states": True}  # fmt: skip
DEBERTA = {**BERT, "model_type": "deberta-v2", "vocab_size": 128100, "type_vocab_size": 0, "layer_norm_eps": 1e-7,
           "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
           "pos_att_type": "p2c|c2p", "max_relative_positions": -1, "position_biased_input": False,
           "pooler_dropout": 0, "pooler_hidden_act": "gelu", "pooler_hidden_size": 768}  # fmt: skip
MODERNBERT = {"model_type": "modernbert", "vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152,
              "num_hidden_layers": 22, "num_attention_heads": 12, "hidden_activation": "gelu",
              "max_position_embeddings": 8192, "norm_eps": 1e-5, "norm_bias": False, "attention_bias": False,
              "mlp_bias": False, "global_attn_every_n_layers": 3, "local_attention": 128, "global_rope_theta": 160000.0,
              "local_rope_theta": 10000.0, "classifier_pooling": "mean", "classifier_bias": False,
              "pad_token_id": 50283, "bos_token_id": 50281, "cls_token_id": 50281, "eos_token_id": 50282,
              "sep_token_id": 50282, "decoder_bias": True}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One model of the hub."""

    config: dict[str, Any]
    """What config.json states of its sizes."""
    published_as: str
    """The class of transformers whose tensors the file holds."""
    weights: str = "safetensors"
    """safetensors, or bin."""
    old_norms: bool = False
    """Whether norms have TensorFlow's names gamma and beta."""
    counters: bool = True
    """Whether the buffer embeddings.position_ids was saved."""
    bare: bool = False
    """Whether the encoder's tensors have no prefix."""
    labels: tuple[str, ...] = field(default=())


FINBERT = ("positive", "negative", "neutral")
PUBLISHED = {
    "google-bert/bert-base-uncased": Published({**BERT, "vocab_size": 30522}, "BertForPreTraining", old_norms=True),
    "google-bert/bert-base-cased": Published({**BERT, "vocab_size": 28996}, "BertForPreTraining", old_norms=True),
    "google-bert/bert-base-multilingual-cased": Published(
        {**BERT, "vocab_size": 119547, "directionality": "bidi", "pooler_fc_size": 768}, "BertForMaskedLM"
    ),
    "dmis-lab/biobert-base-cased-v1.2": Published({**BERT, "vocab_size": 28996}, "BertForPreTraining", "bin"),
    "allenai/scibert_scivocab_uncased": Published(
        {**BERT, "vocab_size": 31090}, "BertForPreTraining", "bin", old_norms=True, counters=False
    ),
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract": Published(
        {**BERT, "vocab_size": 30522}, "BertForMaskedLM", "bin"
    ),
    "nlpaueb/legal-bert-base-uncased": Published({**BERT, "vocab_size": 30522}, "BertForPreTraining", "bin"),
    "ProsusAI/finbert": Published(
        {**BERT, "vocab_size": 30522}, "BertForSequenceClassification", "bin", labels=FINBERT
    ),
    "sentence-transformers/all-MiniLM-L6-v2": Published(
        {**BERT, "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
        "BertModel",
        bare=True,
    ),
    "FacebookAI/roberta-base": Published(ROBERTA, "RobertaForMaskedLM"),
    "distilbert/distilroberta-base": Published({**ROBERTA, "num_hidden_layers": 6}, "RobertaForMaskedLM"),
    "FacebookAI/xlm-roberta-base": Published(
        {**ROBERTA, "model_type": "xlm-roberta", "vocab_size": 250002}, "XLMRobertaForMaskedLM"
    ),
    "almanach/camembert-base": Published(
        {**ROBERTA, "model_type": "camembert", "vocab_size": 32005, "bos_token_id": 5, "eos_token_id": 6},
        "CamembertForMaskedLM",
    ),
    "distilbert/distilbert-base-uncased": Published(
        {**DISTILBERT, "vocab_size": 30522}, "DistilBertForMaskedLM", counters=False
    ),
    "distilbert/distilbert-base-cased": Published(
        {**DISTILBERT, "vocab_size": 28996}, "DistilBertForMaskedLM", counters=False
    ),
    "google/electra-base-discriminator": Published(
        {**BERT, "model_type": "electra", "vocab_size": 30522, "embedding_size": 768, "summary_activation": "gelu"},
        "ElectraForPreTraining",
        "bin",
    ),
    "google/electra-small-discriminator": Published(
        {**BERT, "model_type": "electra", "vocab_size": 30522, "embedding_size": 128, "hidden_size": 256,
         "intermediate_size": 1024, "num_attention_heads": 4},
        "ElectraForPreTraining",
        "bin",
    ),
    "albert/albert-base-v2": Published(
        {**BERT, "model_type": "albert", "vocab_size": 30000, "embedding_size": 128, "hidden_act": "gelu_new",
         "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "num_hidden_groups": 1, "inner_group_num": 1,
         "net_structure_type": 0, "gap_size": 0, "num_memory_blocks": 0, "down_scale_factor": 1},
        "AlbertForMaskedLM",
    ),
    "microsoft/mpnet-base": Published(
        {**BERT, "model_type": "mpnet", "vocab_size": 30527, "max_position_embeddings": 514, "layer_norm_eps": 1e-5,
         "pad_token_id": 1, "relative_attention_num_buckets": 32},
        "MPNetForMaskedLM",
        "bin",
    ),
    "microsoft/deberta-v3-base": Published(DEBERTA, "DebertaV2ForMaskedLM", "bin", counters=False),
    "microsoft/mdeberta-v3-base": Published(
        {**DEBERTA, "vocab_size": 251000}, "DebertaV2ForMaskedLM", "bin", counters=False
    ),
    "answerdotai/ModernBERT-base": Published(MODERNBERT, "ModernBertForMaskedLM", counters=False),
    "google/vit-base-patch16-224": Published(VIT, "ViTForImageClassification", labels=("tench", "goldfish")),
    "google/vit-base-patch16-224-in21k": Published(VIT, "ViTModel", bare=True),
    "facebook/deit-base-distilled-patch16-224": Published(
        {**VIT, "model_type": "deit"}, "DeiTForImageClassificationWithTeacher", labels=("tench", "goldfish")
    ),
    "facebook/dinov2-base": Published(DINOV2, "Dinov2Model", bare=True),
    "facebook/dinov2-giant": Published(
        {**DINOV2, "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
        "Dinov2Model",
        bare=True,
    ),
}  # fmt: skip

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "dim": 24,
         "hidden_dim": 40, "n_layers": 2, "n_heads": 2, "vocab_size": 60, "max_position_embeddings": 40,
         "image_size": 28, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2,
         "pooler_hidden_size": 24, "patch_size": 14, "position_buckets": 8}  # fmt: skip
"""In the place of what config.json states."""
NARROW = 16
"""Width of embeddings that are narrower than the hidden states."""


def small(config):
    sizes = {name: SMALL.get(name, value) for name, value in config.items()}
    sizes["pad_token_id"] = min(config.get("pad_token_id", 0), 3)
    if "embedding_size" in config:
        sizes["embedding_size"] = 24 if config["embedding_size"] == config["hidden_size"] else NARROW
    return sizes


def reference(config, cls, labels=()):
    """transformers' model of a published config."""
    known = {"id2label": dict(enumerate(labels))} if labels else {}
    made = transformers.AutoConfig.for_model(**copy.deepcopy(config), **known)
    return getattr(transformers, cls)(made)


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_at_full_size(name):
    published = PUBLISHED[name]
    encoder = assemble_encoder(config_from_dict(published.config), with_pooler=True)
    with torch.device("meta"):
        theirs = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**published.config))
    expected = {encoder.own_name(tensor): tuple(value.shape) for tensor, value in theirs.named_parameters()}
    expected.pop("embeddings.mask_token", None)  # ViT's stand-in of hidden patches in pretraining
    for place in [tensor for tensor in expected if "mlp.gate_proj" in tensor]:  # in files the two are one
        width, *rest = expected.pop(place)
        assert expected.pop(place.replace("gate_proj", "up_proj")) == (width, *rest)
        expected[place.replace("gate_proj", "weights_in")] = (2 * width, *rest)
    expected = {tensor.replace("mlp.down_proj", "mlp.weights_out"): shape for tensor, shape in expected.items()}
    assert {tensor: tuple(value.shape) for tensor, value in encoder.named_parameters()} == expected


def write(name, folder):
    """A small model in the published form; returns transformers' encoder with its weights."""
    published = PUBLISHED[name]
    torch.manual_seed(0)
    model = reference(small(published.config), published.published_as, published.labels).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)  # config.json, and the tensors under the names that files have
    file = next(folder.glob("*.safetensors"))
    tensors = {tensor: value.clone() for tensor, value in safe_tensors(file).items()}
    prefix = model.base_model_prefix
    if published.old_norms:
        tensors = {
            tensor.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
            for tensor, value in tensors.items()
        }
        assert any(tensor.endswith("gamma") for tensor in tensors)
    if published.counters and "image_size" not in published.config:
        place = "embeddings.position_ids" if published.bare else f"{prefix}.embeddings.position_ids"
        tensors[place] = torch.arange(40)[None]
    assert published.bare == all(not tensor.startswith(f"{prefix}.") for tensor in tensors)
    file.unlink()
    if published.weights == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return getattr(model, prefix, model)


def safe_tensors(path):
    from safetensors.torch import load_file

    return load_file(path)


@torch.no_grad()
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_small_model_in_the_published_form_gives_the_same_states(name, tmp_path, caplog):
    expected = write(name, tmp_path)
    model = load_pretrained(tmp_path)
    assert caplog.records == []
    if model.reads == "images":
        pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
        found, wanted = model(pixels), expected(pixels).last_hidden_state
    else:
        ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
        found, wanted = model(ids), expected(ids).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, published in PUBLISHED.items() if published.labels])
def test_heads_that_are_published_are_kept(name, tmp_path, caplog):
    write(name, tmp_path)
    task = "text-classification" if "finbert" in name else "image-classification"
    model = load_pretrained(tmp_path, task)
    assert model.labels == PUBLISHED[name].labels
    assert model.fresh_parameters == ()
    assert caplog.records == []


def test_the_readme_lists_these_models():
    listed = re.findall(r"^\| `([\w.-]+/[\w.-]+)` \|", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert listed == list(PUBLISHED)
