"""ViT and DeiT against transformers: logits, gradients, image sizes, both sets of names, files both ways."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from lora_core.models import ViTConfig, build_model, config_from_dict, load_pretrained, save_pretrained
from lora_core.models.encoders.patches import resize_positions

LABELS = ("cat", "dog", "newt")
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
CLASSES = {
    "vit": (transformers.ViTConfig, transformers.ViTForImageClassification),
    "deit": (transformers.DeiTConfig, transformers.DeiTForImageClassificationWithTeacher),
}


def oracle(family="vit", model_class=None, labels=LABELS, **fields):
    """A random transformers model in eval mode, every weight of which matters."""
    config_class, default_class = CLASSES[family]
    config = config_class(**{**SIZES, "image_size": 64, **fields}, id2label=dict(enumerate(labels)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (model_class or default_class)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
    return model


def images(height, width=None, channels=3, count=2):
    generator = torch.Generator().manual_seed(height)
    return torch.randn(count, channels, height, width or height, generator=generator)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("size", [224, 128, (96, 160)])
def test_logits_equal_transformers_at_every_size(tmp_path, family, size):
    """A checkpoint for 224 pixels; transformers interpolates at each call, we when loading."""
    reference = oracle(family, image_size=224)
    reference.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "image-classification", image_size=size)
    pixels = images(*((size,) if isinstance(size, int) else size))
    with torch.no_grad():
        assert_close(model(pixels), reference(pixels, interpolate_pos_encoding=True).logits)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"qkv_bias": False, "num_channels": 1, "hidden_act": "gelu_new", "num_hidden_layers": 1},
        {"patch_size": 8, "image_size": [16, 40], "num_hidden_layers": 3},
    ],
    ids=["plain", "grey without bias", "oblong"],
)
def test_gradients_equal_transformers(tmp_path, family, fields):
    """Of every parameter; the last layer, which only computes what the classifier reads, is no exception."""
    reference = oracle(family, **fields)
    reference.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "image-classification")
    pixels = images(*model.config.image_shape, channels=model.config.num_channels, count=3)
    expected, logits = reference(pixels).logits, model(pixels)
    assert_close(logits, expected)
    F.cross_entropy(expected, torch.arange(3)).backward()
    F.cross_entropy(logits, torch.arange(3)).backward()
    gradients = load_in_our_names(reference, tmp_path)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def load_in_our_names(reference, folder):
    """The gradients of transformers' model under the names of its checkpoint: written in place of the weights."""
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(parameter.grad)
    reference.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("read", [None, 1, 5, 17])
def test_the_encoder_equals_transformers(tmp_path, read):
    reference = oracle(model_class=transformers.ViTModel)
    reference.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    pixels = images(64)
    with torch.no_grad():
        expected = reference(pixels)
        hidden = model(pixels, read=read)
        assert_close(hidden, expected.last_hidden_state[:, :read])
        assert_close(model.pooler(hidden), expected.pooler_output)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("original", [True, False], ids=["checkpoint's names", "transformers 5's names"])
@pytest.mark.parametrize("sharded", [False, True])
def test_both_sets_of_names_load(tmp_path, caplog, family, original, sharded):
    reference = oracle(family)
    options = {"max_shard_size": "10KB"} if sharded else {}
    reference.save_pretrained(tmp_path, save_original_format=original, **options)
    names = {name for file in tmp_path.glob("*.safetensors") for name in load_file(file)}
    prefix = reference.base_model_prefix
    assert (f"{prefix}.encoder.layer.0.attention.attention.query.weight" in names) is original
    assert (f"{prefix}.layers.0.attention.q_proj.weight" in names) is not original
    model = load_pretrained(tmp_path, "image-classification")
    with torch.no_grad():
        assert_close(model(images(64)), reference(images(64)).logits)
    assert model.labels == LABELS
    assert model.fresh_parameters == ()
    assert not caplog.records


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("image_size", [None, 32])
def test_a_checkpoint_without_a_head_gets_a_new_one(tmp_path, caplog, original, image_size):
    """As vit-base-patch16-224-in21k: no prefix, a pooler that the classifier has no use for."""
    reference = oracle(model_class=transformers.ViTModel)
    reference.save_pretrained(tmp_path, save_original_format=original)
    with pytest.raises(ValueError, match=r"no head for image-classification .*ViTModel.*pass labels"):
        load_pretrained(tmp_path, "image-classification")
    model = load_pretrained(tmp_path, "image-classification", LABELS, image_size=image_size)
    assert model.fresh_parameters == ("classifier.weight", "classifier.bias")
    assert [record.args[-1] for record in caplog.records] == ["classifier.weight, classifier.bias"]
    pixels = images(image_size or 64)
    with torch.no_grad():
        hidden = reference(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        assert_close(model(pixels), model.classifier(hidden))


def test_a_checkpoint_of_masked_images_serves(tmp_path, caplog):
    reference = oracle(model_class=transformers.ViTForMaskedImageModeling)
    reference.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "image-classification", LABELS)
    assert len(caplog.records) == 1  # the fresh head; mask_token and decoder need no word
    with torch.no_grad():
        assert_close(model.vit(images(64)), reference.vit(images(64)).last_hidden_state)


@pytest.mark.parametrize("family", CLASSES)
def test_rows_of_every_head_follow_the_labels(tmp_path, family):
    reference = oracle(family)
    reference.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "image-classification", ["newt", "cat", "dog"])
    with torch.no_grad():
        assert_close(model(images(64)), reference(images(64)).logits[:, [2, 0, 1]])
    other = load_pretrained(tmp_path, "image-classification", ["yes", "no"], fresh_head=True)
    assert other(images(64)).shape == (2, 2)
    assert {name.split(".")[0] for name in other.fresh_parameters} == set(other.head_names)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("image_size", [None, 32, (32, 80)])
def test_transformers_reads_what_we_write(tmp_path, family, image_size):
    oracle(family).save_pretrained(tmp_path / "theirs")
    model = load_pretrained(tmp_path / "theirs", "image-classification", image_size=image_size)
    save_pretrained(model, tmp_path / "ours")
    again = load_pretrained(tmp_path / "ours", "image-classification")
    reference, report = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values())
    assert isinstance(reference, CLASSES[family][1])
    assert reference.config.id2label == dict(enumerate(LABELS))
    assert (again.config, again.labels) == (model.config, LABELS)
    pixels = images(*model.config.image_shape)
    with torch.no_grad():
        assert torch.equal(again(pixels), model(pixels))
        assert_close(reference(pixels).logits, model(pixels))


def test_transformers_reads_a_bare_encoder(tmp_path):
    reference = oracle(model_class=transformers.ViTModel)
    reference.save_pretrained(tmp_path / "theirs")
    save_pretrained(load_pretrained(tmp_path / "theirs"), tmp_path / "ours")
    again, report = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        assert_close(again(images(64)).pooler_output, reference(images(64)).pooler_output)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(3, 64, 64), r"has shape \(3, 64, 64\); expected \(images, channels, height, width\)"),
        (torch.zeros(2, 1, 64, 64), r"have 1 channels, the model reads 3; .*expand\(-1, 3, -1, -1\)"),
        (torch.zeros(2, 3, 64, 48), r"have 64 x 48 pixels, the model reads 64 x 64; .*image_size=\(64, 48\)"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), r"is torch\.uint8; expected normalised floating point"),
    ],
)
def test_images_that_do_not_fit_are_refused(pixels, message):
    model = build_model(
        ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, image_size=64),
        "image-classification",
        LABELS,
    )
    with pytest.raises(ValueError, match=message):
        model(pixels)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 25}, "hidden_size 25 is not a multiple of num_attention_heads 3"),
        ({"image_size": 100}, "image_size is 100; expected multiples of patch_size 16"),
        ({"image_size": (64, 100)}, r"image_size is \(64, 100\); expected multiples"),
        ({"image_size": 0}, "image_size is 0; expected multiples"),
        ({"image_size": (64, 64, 3)}, r"image_size is \(64, 64, 3\); expected pixels, or \(height, width\)"),
        ({"image_size": True}, "image_size is True, but it should be"),
        ({"patch_size": [16, 16]}, r"patch_size is \[16, 16\], but it should be a whole number"),
        ({"qkv_bias": 1}, "qkv_bias is 1, but it should be true or false"),
    ],
)
def test_malformed_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**{**SIZES, **fields})


def test_an_image_size_must_be_of_use(tmp_path, batch):
    oracle().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="image_size is 100; expected multiples of patch_size 16"):
        load_pretrained(tmp_path, "image-classification", image_size=100)
    with pytest.raises(ValueError, match="bert models read text; leave out image_size=64"):
        load_pretrained("embedded", image_size=64)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "image_size": 96}))
    with pytest.raises(ValueError, match=r"position_embeddings \(1, 17, 24\) instead of \(1, 37, 24\)"):
        load_pretrained(tmp_path, "image-classification", image_size=128)


@pytest.mark.parametrize("family", CLASSES)
def test_the_defaults_are_those_of_transformers(family):
    reference = CLASSES[family][0]().to_dict()
    fields = config_from_dict({"model_type": family}).to_dict()
    assert {name: reference[name] for name in fields} == fields


def test_texts_are_not_for_vit():
    config = ViTConfig(**SIZES)
    with pytest.raises(ValueError, match="vit models do not do text-classification; they do encoder, image-class"):
        build_model(config, "text-classification", LABELS)
    assert (config.image_shape, config.grid) == ((224, 224), (14, 14))


def test_new_weights_are_distributed_as_in_transformers():
    config = ViTConfig(
        hidden_size=240, num_hidden_layers=1, num_attention_heads=2, image_size=64, initializer_range=0.9
    )
    model = build_model(config, "image-classification", LABELS)
    for part in (model.vit.embeddings.cls_token, model.vit.embeddings.position_embeddings):
        assert part.abs().max() <= 2
    expected = torch.nn.init.trunc_normal_(torch.empty(100_000), std=0.9).std()
    torch.testing.assert_close(model.vit.embeddings.position_embeddings.std(), expected, rtol=0.03, atol=0)
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            assert not layer.bias.any()
    weight = model.vit.embeddings.patch_embeddings.projection.weight
    assert weight.abs().max() > 3
    torch.testing.assert_close(weight.std(), torch.tensor(0.9), rtol=0.02, atol=0)
    again = build_model(config, "image-classification", LABELS).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_dropout_acts_in_training_only():
    model = build_model(ViTConfig(**SIZES, image_size=64), "image-classification", LABELS)
    dropouts = {name: module for name, module in model.named_modules() if name.endswith("dropout")}
    assert len(dropouts) == 1 + 3 * model.config.num_hidden_layers
    expected = model(images(64))
    for acting in dropouts:
        for name, module in dropouts.items():
            module.p = 0.5 if name == acting else 0.0
        assert torch.equal(model.eval()(images(64)), expected)
        assert not torch.allclose(model.train()(images(64)), expected), acting


class Halve(nn.Module):
    """Stands in for dropout where random numbers would make two models differ."""

    p = 0.0

    def forward(self, x):
        return x / 2


def test_dropout_is_applied_where_transformers_applies_it(tmp_path):
    reference = oracle()
    reference.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "image-classification")
    for each in (model, reference):
        for name in [name for name, _ in each.named_modules() if name.endswith("dropout")]:
            each.set_submodule(name, Halve())
    with torch.no_grad():
        assert_close(model(images(64)), reference(images(64)).logits)


def test_half_precision_takes_wide_images(tmp_path):
    oracle().save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "image-classification")
    expected = model(images(64))
    assert model.bfloat16()(images(64)).dtype == torch.bfloat16
    torch.testing.assert_close(model(images(64)).float(), expected, rtol=0.1, atol=0.3)


def test_positions_of_special_tokens_stay():
    positions = torch.arange(2 * 10.0).view(1, 10, 2)
    resized = resize_positions(positions.half(), (2, 4), (4, 8))
    assert resized.shape == (1, 2 + 32, 2)
    assert torch.equal(resized[:, :2], positions[:, :2])
    assert resize_positions(positions, (2, 4), (2, 4)) is positions
