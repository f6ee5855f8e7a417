"""Old checkpoints, pickles with word lists, and what `lora-core convert` makes of them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from lora_core.models import BertConfig, build_model, load_pretrained, save_pretrained
from trainers.cli import main
from trainers.convert import convert
from trainers.data.tokenizer import load_tokenizer

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "kinase", "##s", ".")


@pytest.fixture
def old_bert(tmp_path):
    """pytorch_model.bin under DataParallel's names, and vocab.txt."""
    folder = tmp_path / "old"
    model = build_model(BertConfig(len(WORDS), 24, 2, 3, 40), "token-classification", ["O", "B-x"])
    save_pretrained(model, folder)
    tensors = {f"module.{name}": tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    (folder / "README.md").write_text("not needed")
    return folder


def test_the_converted_model_is_the_same(old_bert, tmp_path, capsys):
    main(["convert", str(old_bert), "--output-dir", str(tmp_path / "new")])
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert capsys.readouterr().out.split() == [str(tmp_path / "new" / name) for name in names]
    tensors = load_file(tmp_path / "new/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert not any(name.startswith("module.") for name in tensors)
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    with torch.no_grad():
        logits = [load_pretrained(folder, "token-classification")(ids) for folder in (old_bert, tmp_path / "new")]
    assert torch.equal(*logits)
    text = "The kinases ."
    found = Tokenizer.from_file(str(tmp_path / "new/tokenizer.json")).encode(text).ids
    assert found == load_tokenizer(old_bert).encode(text).ids == [2, 5, 6, 7, 8, 3]


def test_a_folder_that_holds_something_is_left_alone(old_bert, tmp_path):
    before = {path: path.read_bytes() for path in old_bert.iterdir()}
    with pytest.raises(ValueError, match="exists and is not empty"):
        convert(str(old_bert), old_bert)
    assert {path: path.read_bytes() for path in old_bert.iterdir()} == before


def test_weights_that_are_no_numbers_are_not_converted(old_bert, tmp_path):
    tensors = torch.load(old_bert / "pytorch_model.bin")
    tensors["module.classifier.bias"][0] = float("nan")
    torch.save(tensors, old_bert / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"was not converted .*: classifier\.bias holds NaN or infinity"):
        convert(str(old_bert), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nothing_is_written_where_a_file_cannot_be_read(old_bert, tmp_path):
    (old_bert / "vocab.txt").write_text("\n".join(WORDS[2:]))
    with pytest.raises(ValueError, match=r"vocab\.txt lacks the special tokens"):
        convert(str(old_bert), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (old_bert / "config.json").write_text(json.dumps([]))
    with pytest.raises(ValueError, match=r"config\.json holds list"):
        convert(str(old_bert), tmp_path / "new")
    assert not (tmp_path / "new").exists()
