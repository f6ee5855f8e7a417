"""Reads files as an enemy would write them: `python hostile_files.py FOLDER MUTATIONS [SEED] [READER...]`.

Every reader gets so many mutations of a good file, each with its digests made anew where it has some, in this process,
whose memory is limited. FOLDER receives report.json: for each reader how many were read and refused, the slowest, and
every mutation that ended otherwise than in a ValueError or OSError that names the file.
"""

import copy
import hashlib
import io
import json
import math
import os
import random
import resource
import shutil
import struct
import sys
import time
import traceback
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from lora_core import inject_lora, load_adapter, save_adapter
from lora_core.export import OnnxModel, export_onnx, export_onnx_base, save_onnx_adapter
from lora_core.export.onnx_file import METADATA_DIGEST, MODEL_METADATA, fields, read_metadata, sha256_of
from lora_core.export.session import ADAPTER_FACTS
from lora_core.export.write import _entries
from lora_core.models import build_model, config_from_dict, load_pretrained, save_pretrained
from trainers.data.images.npz import read_npz
from trainers.data.images.processing import ImageProcessing
from trainers.data.sentencepiece import _message_class
from trainers.data.tokenizer import StatedLimits, load_tokenizer
from trainers.serve.served import load_served

EXTRA_MEMORY = 2 << 30
"""Bytes of address space that reading may take on top of what the libraries take."""
SLOWEST = 5.0
"""Seconds after which a mutation counts as one that does not end; a second is the aim, on a machine of one's own."""
DEEP = json.loads("[" * 90 + "]" * 90)
HOSTILE = [
    *(None, True, False, 0, -1, 1, 2, 7, 10**7, 2**31, 2**63, 10**400, -(10**400), 1.5, 1e-320, -0.0),
    *(math.inf, -math.inf, math.nan, "", "x", "é\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "\0"),
    *("(a*)*b", ".*", "(", "[[:alpha:]]", "x" * 100_000, "../../etc/passwd", "/dev/zero", "1e400", "LORA", "pissa"),
    *("pissa_niter_999999999", "olora", "encoder", "[MASK]", "\ud800"),
    *([], {}, [None], [[]], ["x"] * 1000, [0] * 100_000, {"x": {}}, {"type": "ByteLevel"}, {"type": "Sequence"}, DEEP),
]


def mutated_json(value, rng):
    """A copy with a few nodes replaced, removed, repeated or renamed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        node = value
        while isinstance(node, (dict, list)) and node:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = rng.choice(keys)
            inner = node[key]
            if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.3:
                action = rng.random()
                if action < 0.7:
                    node[key] = copy.deepcopy(rng.choice(HOSTILE))
                elif action < 0.85:
                    del node[key]
                elif isinstance(node, dict):
                    node[str(rng.choice(["", "x", "type", *keys]))] = copy.deepcopy(inner)
                else:
                    node.insert(0, copy.deepcopy(inner))
                break
            node = inner
    return value


def mutated_bytes(data, rng):
    """A copy with a few bytes changed, or a piece cut, repeated or put elsewhere."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data)) if data else 0
        size = rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(6):
            case 0 | 1:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                data[at : at + size] = rng.choice((b"\xff", b"\x00", b"\x7f", b"\x80")) * size
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size]
            case 5:
                del data[at:]
    return bytes(data)


def mutated_text(text, rng):
    """Text with its JSON changed, or its characters."""
    if rng.random() < 0.7:
        return dumped(mutated_json(json.loads(text), rng))
    return mutated_bytes(text.encode(), rng).decode("utf-8", "replace")


def dumped(value):
    return json.dumps(value).replace("Infinity", "1e999")


def write_json_file(path, value):
    path.write_text(dumped(value), encoding="utf-8", errors="surrogatepass")


def mutated_safetensors(data, rng):
    """A file whose header, or whose bytes, are others."""
    if rng.random() < 0.3:
        return mutated_bytes(data, rng)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.5:
        name = rng.choice(list(header))
        entry = header[name]
        entry[rng.choice(["dtype", "shape", "data_offsets"])] = rng.choice(
            ["F64", "F16", "BF16", "F8_E4M3", "F4", "I64", "BOOL", "C64", [], [2**62], [0, 0], [-1], [10**9, 0], [0, 4]]
        )
    else:
        header = mutated_json(header, rng)
    text = dumped(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    size = len(text) if rng.random() < 0.9 else rng.choice((0, 1, 2**40, 2**63))
    return struct.pack("<Q", size) + text + data[8 + length :]


class Adapter:
    """adapter_config.json and adapter_model.safetensors."""

    def __init__(self, folder):
        self.folder = folder
        model = inject_lora(bert("token-classification"), r=2, target_modules=["query", "value", "dense"])
        save_adapter(model, folder)
        self.config = json.loads((folder / "adapter_config.json").read_text())
        self.config |= {"rank_pattern": {"key": 3}, "alpha_pattern": {"key": 3}, "layers_to_transform": None}
        self.weights = (folder / "adapter_model.safetensors").read_bytes()

    def write(self, rng):
        config, weights = self.config, self.weights
        if rng.random() < 0.7:
            config = mutated_json(config, rng)
            if rng.random() < 0.5 and isinstance(config, dict):
                config[rng.choice(list(self.config))] = copy.deepcopy(rng.choice(HOSTILE))
        else:
            weights = mutated_safetensors(weights, rng)
        write_json_file(self.folder / "adapter_config.json", config)
        (self.folder / "adapter_model.safetensors").write_bytes(weights)

    def read(self):
        load_adapter(bert("token-classification"), self.folder)


class Model:
    """config.json and model.safetensors, or two files behind an index."""

    def __init__(self, folder, kind="bert", shards=False):
        self.folder, self.shards = folder, shards
        self.task = "image-classification" if kind == "vit" else "token-classification"
        model = bert(self.task) if kind == "bert" else other(kind, self.task)
        save_pretrained(model, folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = (folder / "model.safetensors").read_bytes()
        if shards:
            (folder / "model.safetensors").rename(folder / "part-1.safetensors")
            names = list(model.state_dict())
            self.index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "part-1.safetensors")}

    def write(self, rng):
        if self.shards:
            write_json_file(self.folder / "model.safetensors.index.json", mutated_json(self.index, rng))
            return
        config, weights = self.config, self.weights
        if rng.random() < 0.7:
            config = mutated_json(config, rng)
            if rng.random() < 0.5 and isinstance(config, dict):
                config[rng.choice(list(self.config))] = copy.deepcopy(rng.choice(HOSTILE))
        else:
            weights = mutated_safetensors(weights, rng)
        write_json_file(self.folder / "config.json", config)
        (self.folder / "model.safetensors").write_bytes(weights)

    def read(self):
        load_pretrained(self.folder, self.task)


class Onnx:
    """model.onnx, its digests made anew: the graph's bytes, or what the file says of itself."""

    def __init__(self, folder):
        self.folder = folder
        self.path = export_onnx(
            bert("token-classification"), folder / "model.onnx", metadata={"tokenizer.json": tokenizer().to_str()}
        )
        data = self.path.read_bytes()
        with self.path.open("rb") as file:
            end = next(part.start for part in fields(file, 0, len(data)) if part.number == MODEL_METADATA)
        self.body, self.metadata = data[:end], read_metadata(self.path)
        self.metadata |= {"decision.json": "{}", "text_processing.json": '{"max_length": 8}'}

    def write(self, rng):
        body, facts = self.body, dict(self.metadata)
        facts.pop(METADATA_DIGEST)
        if rng.random() < 0.5:
            body = mutated_bytes(body, rng)
        else:
            name = rng.choice(list(facts))
            if rng.random() < 0.2:
                del facts[name]
            else:
                facts[name] = rng.choice(
                    ["", "[]", "{}", "null", "-1", "10" * 300, "x", "[" * 100_000, "1e400", "NaN", "[0]", '"x"', "\0"]
                )
        facts["graph_sha256"] = hashlib.sha256(body).hexdigest()
        self.path.write_bytes(body + _entries(facts))

    def read(self):
        model = OnnxModel(self.path)
        model(torch.tensor([[1, 2, 3]]))
        load_served(self.path).tokenizer()


class OnnxAdapter:
    """A file of save_onnx_adapter: its bytes, or what it says of itself with a right digest of its values."""

    def __init__(self, folder):
        self.path = folder / "a.onnx_adapter"
        model: Any = inject_lora(bert("token-classification"), r=2, adapter_name="a")
        self.base = OnnxModel(export_onnx_base(model, folder / "base.onnx"))
        self.data = save_onnx_adapter(model, "a", self.path).read_bytes()
        self.values = onnxruntime.AdapterFormat.read_adapter(str(self.path)).get_parameters()
        self.values = {name: value.numpy().copy() for name, value in self.values.items()}
        self.facts = json.loads(self.values.pop(ADAPTER_FACTS).tobytes())

    def write(self, rng):
        if rng.random() < 0.3:
            self.path.write_bytes(mutated_bytes(self.data, rng))
            return
        facts, values = dict(self.facts), dict(self.values)
        if rng.random() < 0.6:
            facts = mutated_json(facts, rng)
        else:
            name = rng.choice(list(values))
            shape = rng.choice([(0,), (1, 1), (7, 3), (10**6,), (2, 8), ()])
            values[rng.choice([name, "x"])] = np.zeros(shape, rng.choice([np.float32, np.int64, np.uint8]))
            facts["sha256"] = sha256_of(values)
        text = np.frombuffer(dumped(facts).encode("utf-8", "surrogatepass"), np.uint8)
        file = onnxruntime.AdapterFormat()
        file.set_adapter_version(1)
        file.set_model_version(1)
        named = {**values, ADAPTER_FACTS: text}
        file.set_parameters({key: onnxruntime.OrtValue.ortvalue_from_numpy(each) for key, each in named.items()})
        file.export_adapter(str(self.path))

    def read(self):
        self.base.load_adapter(self.path, "a")(torch.tensor([[1, 2, 3]]))


class Npz:
    """An archive of arrays: its bytes, or an array's header in a right archive."""

    def __init__(self, folder):
        self.path = folder / "pictures.npz"
        rng = np.random.default_rng(0)
        self.arrays = {}
        for split in ("train", "val", "test"):
            self.arrays[f"{split}_images"] = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
            self.arrays[f"{split}_labels"] = np.array([[0], [1], [0], [1]])

    def write(self, rng):
        members = {}
        for name, array in self.arrays.items():
            stored = io.BytesIO()
            np.save(stored, array)
            members[f"{name}.npy"] = stored.getvalue()
        damaged = rng.random() < 0.5
        if damaged:
            name = rng.choice(list(members))
            data = members[name]
            head = data[: 10 + struct.unpack("<H", data[8:10])[0]]
            if rng.random() < 0.5:
                old = rng.choice(["'|u1'", "'<i8'", "False", "(4, 8, 8, 3)", "(4, 1)", "4", "'descr'", "{", "'"])
                new = rng.choice(
                    ["'O'", "'<U9999'", "'V8'", "-1", "()", "(((((", "9" * 400, "None", "1e9", "'x", "[1]"]
                )
                text = head[10:].decode().replace(old, new)[:60_000].encode()
                head = head[:8] + struct.pack("<H", len(text)) + text
            else:
                head = mutated_bytes(head, rng)
            members[name] = head + data[10 + struct.unpack("<H", data[8:10])[0] :]
        stored = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with zipfile.ZipFile(stored, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
                for name, data in members.items():
                    archive.writestr(name, data)
        data = stored.getvalue()
        self.path.write_bytes(data if damaged else mutated_bytes(data, rng))

    def read(self):
        read_npz(self.path)


class TokenizerFiles:
    """tokenizer.json and tokenizer_config.json, or vocab.txt."""

    def __init__(self, folder, kind="json"):
        self.folder, self.kind = folder, kind
        self.json = json.loads(tokenizer().to_str())
        self.json["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "BertPreTokenizer"},
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            ],
        }
        self.config = {
            "do_lower_case": True,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "add_prefix_space": False,
            "model_max_length": 512,
            "truncation_side": "right",
            **({"unk_token": {"content": "[UNK]"}} if kind != "merges" else {}),
            "added_tokens_decoder": {"0": {"content": "<pad>" if kind == "merges" else "[PAD]"}},
        }
        self.vocabulary = "\n".join(sorted(self.json["model"]["vocab"], key=self.json["model"]["vocab"].get)) + "\n"

    def write(self, rng):
        data, config = self.json, self.config
        if self.kind == "json" and rng.random() < 0.7:
            data = mutated_json(data, rng)
        else:
            config = mutated_json(config, rng)
        write_json_file(self.folder / "tokenizer_config.json", config)
        if self.kind == "json":
            write_json_file(self.folder / "tokenizer.json", data)
        elif self.kind == "merges":
            words = {
                word: id for id, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"aword", "wo", "wor"])
            }
            merges = b"#version: 0.2\nw o\nwo r\n"
            if rng.random() < 0.5:
                words = mutated_json(words, rng)
            else:
                merges = mutated_bytes(merges, rng)
            write_json_file(self.folder / "vocab.json", words)
            (self.folder / "merges.txt").write_bytes(merges)
        else:
            text = self.vocabulary.encode()
            (self.folder / "vocab.txt").write_bytes(mutated_bytes(text, rng) if rng.random() < 0.5 else text)

    def read(self):
        load_tokenizer(self.folder).encode("a word")
        StatedLimits.read(self.folder)


class SentencePiece:
    """spm.model and config.json."""

    def __init__(self, folder):
        self.folder = folder
        message = _message_class()()
        for number, piece in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "▁a", "▁", "word", *"word"]):
            message.pieces.add(piece=piece, score=-float(number), type=2 if piece == "[UNK]" else 1)
        message.normalizer_spec.add_dummy_prefix = True
        message.trainer_spec.model_type = 1
        self.data = message.SerializeToString()

    def write(self, rng):
        config = {"model_type": "deberta-v2"}
        write_json_file(self.folder / "config.json", mutated_json(config, rng) if rng.random() < 0.1 else config)
        (self.folder / "spm.model").write_bytes(mutated_bytes(self.data, rng))

    def read(self):
        load_tokenizer(self.folder).encode("a word")


class Pickled(Model):
    """pytorch_model.bin: its bytes, of which no digest is kept."""

    def __init__(self, folder):
        super().__init__(folder)
        (folder / "model.safetensors").unlink()
        stored = io.BytesIO()
        torch.save(bert(self.task).state_dict(), stored)
        self.weights = stored.getvalue()

    def write(self, rng):
        (self.folder / "pytorch_model.bin").write_bytes(mutated_bytes(self.weights, rng))


class Preprocessor:
    """preprocessor_config.json."""

    def __init__(self, folder):
        self.folder = folder
        self.values = ImageProcessing().to_dict()

    def write(self, rng):
        write_json_file(self.folder / "preprocessor_config.json", mutated_json(self.values, rng))

    def read(self):
        ImageProcessing.read(self.folder)


READERS = {
    "adapter": Adapter,
    "bert": Model,
    "vit": lambda folder: Model(folder, "vit"),
    "lstm": lambda folder: Model(folder, "lstm"),
    "index": lambda folder: Model(folder, shards=True),
    "pickle": Pickled,
    "onnx": Onnx,
    "onnx adapter": OnnxAdapter,
    "npz": Npz,
    "tokenizer.json": TokenizerFiles,
    "vocab.txt": lambda folder: TokenizerFiles(folder, "vocab"),
    "merges.txt": lambda folder: TokenizerFiles(folder, "merges"),
    "spm.model": SentencePiece,
    "preprocessor": Preprocessor,
}
SIZES = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 2}


def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "word", "##s", *"bcdefgh"]
    made = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = BertNormalizer()
    made.pre_tokenizer = BertPreTokenizer()
    made.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return made


def bert(task) -> Any:
    return build_model(
        config_from_dict({"model_type": "bert", "vocab_size": 40, "max_position_embeddings": 16, **SIZES}),
        task,
        ["O", "B"],
    )


def other(kind, task) -> Any:
    sizes = {"image_size": 8, "patch_size": 4, **SIZES} if kind == "vit" else {"vocab_size": 40, "hidden_size": 8}
    return build_model(config_from_dict({"model_type": kind, **sizes}), task, ["O", "B"])


def attack(name, folder, mutations, seed):
    """What one reader does with so many mutations."""
    folder.mkdir(parents=True, exist_ok=True)
    reader = READERS[name](folder)
    report = {"read": 0, "refused": 0, "slowest": 0.0, "escaped": []}
    for number in range(mutations):
        rng = random.Random(f"{seed} {name} {number}")
        reader.write(rng)
        (folder / "number").write_text(str(number))  # for one that ends the process
        started = time.perf_counter()
        try:
            reader.read()
            report["read"] += 1
        except (ValueError, OSError) as error:
            report["refused"] += 1
            if str(folder) not in str(error):
                report["escaped"].append([number, "names no file", f"{type(error).__name__}: {error}"[:300], ""])
        except BaseException as error:
            last = "".join(traceback.format_tb(error.__traceback__)[-2:])
            report["escaped"].append([number, type(error).__name__, str(error)[:300], last])
        seconds = time.perf_counter() - started
        report["slowest"] = max(report["slowest"], seconds)
        if seconds > SLOWEST:
            report["escaped"].append([number, "slow", f"{seconds:.1f} s", ""])
    shutil.rmtree(folder)
    return report


def main(root, mutations, seed="0", *names):
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY, used + EXTRA_MEMORY))
    root = Path(root)
    report = {}
    for name in names or READERS:
        report[name] = attack(name, root / name, int(mutations), seed)
        (root / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import logging

    logging.getLogger("lora_core").setLevel(logging.CRITICAL)
    main(*sys.argv[1:])
