"""The parts of gpu.sh, each `python gpu_parts.py NAME DEVICE SETTINGS`; the last line that it prints is its result.

Training: a token classifier on sentences of JNLPBA's lengths in random words, or an image classifier on random
pictures. LoRA has rank 16 on query and value and dropout 0.1, full trains every parameter; weights are random, which
costs as much. Ours and the peer's (transformers with SDPA, PEFT) take the same batches, sorted by length and on the
device already, in the same loop with AdamW and, in fp16, a GradScaler; neither drops attention weights. A rate counts
real tokens, not padding.

The share of the matrix product is useful work over what the GPU's best product does; useful work is 2 operations for
each weight of the encoder's linear layers and each real token: in the forward pass, for the gradient of the inputs, and
in full training for that of the weights.
"""

import contextlib
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path += [folder for folder in os.environ.get("GPU_PYTHONPATH", "").split(os.pathsep) if folder]

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
RANK = 16
LABELS = tuple("abcdefghijk")
QUANTILES = {0: 4, 0.05: 16, 0.1: 20, 0.2: 25, 0.3: 29, 0.4: 33, 0.5: 37, 0.6: 41, 0.7: 46, 0.8: 52, 0.9: 63,
             0.95: 73, 0.98: 86, 0.99: 97, 0.995: 110, 0.999: 152, 0.9999: 224, 1: 402}  # fmt: skip
"""Tokens of JNLPBA's training sentences: at most so many in this share of them."""
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PICTURE, TINY_PICTURE = 224, 32
SIZES = {"MiniLM-L6": ("bert", MINILM), "BERT-base": ("bert", BASE), "ViT-base": ("vit", BASE)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Inputs = dict[str, Tensor]


def machine(device: torch.device) -> dict[str, Any]:
    """What is here, and its best matrix product in each precision, in operations a second."""
    side = 8192 if device.type == "cuda" else 256
    rates = {}
    for name, dtype in DTYPES.items():
        if is_slow(name, device):
            continue
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        torch.mm(a, b)
        best = float("inf")
        for _ in range(10):
            seconds = timed(lambda a=a, b=b: torch.mm(a, b), device)
            best = min(best, seconds)
        rates[name] = 2 * side**3 / best
    if device.type == "cuda":
        gpu, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        name = f"{gpu} ({capability[0]}.{capability[1]}), CUDA {torch.version.cuda}"
    else:
        name = platform.processor() or platform.machine()
    return {"machine": f"{name}, torch {torch.__version__}, Python {platform.python_version()}", "product_rates": rates}


def tests(device: torch.device) -> dict[str, Any]:
    """The tests that are marked `cuda`."""
    import pytest

    class Count:
        """What became of the tests."""

        def __init__(self) -> None:
            self.outcomes = {"passed": 0, "failed": 0, "skipped": 0}
            self.failures: list[str] = []

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                self.outcomes[report.outcome] += 1
            if report.failed:
                self.failures.append(f"{report.nodeid}: {str(report.longrepr)[-600:]}")

    folder = ROOT / "tests"
    files = [str(path) for path in sorted(folder.rglob("test_*.py")) if "mark.cuda" in path.read_text("utf-8")]
    count = Count()
    options = ["-q", "-m", "cuda", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "--timeout", "60", "-W", "default"]
    if device.type == "cpu":
        options += ["-k", "device"]
    status = pytest.main([*options, *files], plugins=[count])
    return {**count.outcomes, "error": "" if status in (0, 1) else f"pytest ended with {status}",
            "failures": count.failures[:20]}  # fmt: skip


def training(
    device: torch.device,
    size: str,
    ours: bool,
    precision: str,
    full: bool = False,
    compile: bool = False,
    plain: bool = False,
    unpadded: bool = False,
    gradient_checkpointing: bool = False,
) -> dict[str, Any]:
    """Rate and memory of training.

    Args:
        size: of `SIZES`.
        ours: this library's model, else transformers' with PEFT.
        full: every parameter, else LoRA.
        compile: with torch.compile.
        plain: ours, with the plain layers.
        unpadded: the peer's, without padding, through flash attention, if that is installed.
        gradient_checkpointing: ours, with layers that are computed again.
    """
    if is_slow(precision, device):
        return {"skipped": f"this GPU has no fast {precision}"}
    if unpadded and not has_flash_attention(device):
        return {"skipped": "flash_attn, with which the peer leaves out padding, is not installed"}
    torch.manual_seed(0)
    family, fields = SIZES[size]
    fields = fields if device.type == "cuda" else TINY
    if family == "vit":
        fields = {**fields, "image_size": picture_side(device)}
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    batches = images(device) if family == "vit" else sentences(device)
    if ours:
        model, forward = our_model(family, fields, full, precision, compile, plain, gradient_checkpointing, device)
    else:
        model, forward = peer_model(family, fields, full, precision, compile, unpadded, device)
    real = [count_real(inputs) for inputs, _ in batches]
    slots = sum(labels.numel() for _, labels in batches)
    if unpadded:
        batches = [flattened(*batch) for batch in batches]
    rate, peak = train(model, forward, batches, real, precision, device)
    tokens = (picture_side(device) // 16) ** 2 + 1 if family == "vit" else 1
    passes = 3 if full else 2
    hidden, inner = fields["hidden_size"], fields["intermediate_size"]
    operations = 2 * passes * fields["num_hidden_layers"] * (4 * hidden**2 + 2 * hidden * inner) * tokens
    padding = 0.0 if unpadded else 1 - sum(real) / slots
    return {"rate": rate, "operations": rate * operations, "peak_bytes": peak, "padding": padding}


def our_model(
    family: str, fields: dict[str, int], full: bool, precision: str, compile: bool, plain: bool,
    gradient_checkpointing: bool, device: torch.device,
) -> tuple[nn.Module, Callable[[Inputs], Tensor]]:  # fmt: skip
    """This library's model, as its loop prepares it."""
    import lora_core
    from lora_core.models import build_model, config_from_dict
    from trainers.config import TrainConfig
    from trainers.training.precision import autocast, choose_kernels, compile_layers

    config = config_from_dict({"model_type": family, **fields}).with_dropout(attention=0.0, hidden=None)
    model = build_model(config, "image-classification" if family == "vit" else "token-classification", LABELS)
    if not full:
        lora_core.inject_lora(model, r=RANK, lora_dropout=0.1, target_modules="qv")
    kind: Any = precision
    settings = TrainConfig(precision=kind, compile=compile, kernels="plain" if plain else "fused",
                           gradient_checkpointing=gradient_checkpointing)  # fmt: skip
    choose_kernels(model, settings, device)
    compile_layers(model, settings, backend_for(device))

    def forward(inputs: Inputs) -> Tensor:
        with autocast(model, precision, device):
            return model(**inputs)

    return model.to(device).train(), forward


def peer_model(
    family: str, fields: dict[str, int], full: bool, precision: str, compile: bool, unpadded: bool, device: torch.device
) -> tuple[nn.Module, Callable[[Inputs], Tensor]]:
    """transformers' model, with PEFT's adapters."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    config = transformers.AutoConfig.for_model(
        family, **fields, num_labels=len(LABELS), attention_probs_dropout_prob=0.0
    )
    kind: Any = transformers.AutoModelForTokenClassification
    if family == "vit":
        kind = transformers.AutoModelForImageClassification
    attention = "flash_attention_2" if unpadded else "sdpa"
    model: Any = kind.from_config(config, attn_implementation=attention)
    if not full:
        import peft

        names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        targets = ["query", "value"] if "query" in names else ["q_proj", "v_proj"]
        adapter = peft.LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.1, target_modules=targets,
                                  modules_to_save=["classifier"])  # fmt: skip
        model = peft.get_peft_model(model, adapter)
    model = model.to(device).train()
    called = torch.compile(model, dynamic=family != "vit", backend=backend_for(device)) if compile else model

    def forward(inputs: Inputs) -> Tensor:
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            return called(**inputs).logits

    return model, forward


def train(
    model: nn.Module,
    forward: Callable[[Inputs], Tensor],
    batches: list[tuple[Inputs, Tensor]],
    real: list[int],
    precision: str,
    device: torch.device,
) -> tuple[float, int]:
    """Real tokens (or images) a second, and the peak memory in bytes of model, optimiser and step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=device.type == "cuda")
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def epoch() -> None:
        for inputs, labels in batches:
            logits = forward(inputs)
            loss = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    wanted = 4.0 if device.type == "cuda" else 0.1
    for _ in range(2):  # the first makes kernels and takes memory
        once = timed(epoch, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    epochs = max(1, round(wanted / once))
    seconds = timed(lambda: [epoch() for _ in range(epochs)], device)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return epochs * sum(real) / seconds, peak


def onnx(device: torch.device, size: str) -> dict[str, Any]:
    """Tokens a second of our ONNX file on the CUDA provider, and of the model in torch, in fp32."""
    import onnxruntime

    from lora_core.export import OnnxModel, export_onnx
    from lora_core.models import build_model, config_from_dict

    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        return {"skipped": "onnxruntime-gpu is not installed"}
    family, fields = SIZES[size]
    config = config_from_dict({"model_type": family, **(fields if device.type == "cuda" else TINY)})
    model: Any = build_model(config, "token-classification", LABELS).eval()
    batches = [inputs for inputs, _ in sentences(torch.device("cpu"))]
    real = sum(count_real(inputs) for inputs in batches)
    with tempfile.TemporaryDirectory() as folder:
        served = OnnxModel(export_onnx(model, Path(folder) / "model.onnx"), providers=[provider])
        served(**batches[0])
        seconds = min(timed(lambda: [served(**inputs) for inputs in batches], device) for _ in range(3))
    model.to(device)
    with torch.inference_mode():
        moved = [{name: tensor.to(device) for name, tensor in inputs.items()} for inputs in batches]
        model(**moved[0])
        torch_seconds = min(timed(lambda: [model(**inputs) for inputs in moved], device) for _ in range(3))
    return {"rate": real / seconds, "torch_rate": real / torch_seconds, "providers": served.providers}


def sentences(device: torch.device) -> list[tuple[Inputs, Tensor]]:
    """Batches of sentences of like length, as our loop loads them."""
    from trainers.data.batches import load_batches
    from trainers.data.tokens.windows import TokenWindows

    each, count = (256, 8) if device.type == "cuda" else (4, 2)
    generator = np.random.default_rng(0)
    lengths = np.interp(generator.random(each * count), list(QUANTILES), list(QUANTILES.values())).round().astype(int)
    offsets = np.concatenate([[0], lengths.cumsum()])
    total = int(offsets[-1])
    windows = TokenWindows(
        generator.integers(1000, 30000, total).astype(np.int32), generator.integers(0, len(LABELS), total),
        (np.arange(total) - offsets[:-1].repeat(lengths)).astype(np.int32), offsets,
        np.arange(len(lengths), dtype=np.int32), pad_token_id=0,
    )  # fmt: skip
    sorted_by_length = np.split(np.argsort(-lengths, kind="stable"), count)
    return list(load_batches(windows, sorted_by_length, device))


def images(device: torch.device) -> list[tuple[Inputs, Tensor]]:
    """Batches of pictures."""
    count, side = 64 if device.type == "cuda" else 2, picture_side(device)
    pixels = torch.randn(count, 3, side, side, device=device)
    return [({"pixel_values": pixels}, torch.arange(count, device=device) % len(LABELS))]


def count_real(inputs: Inputs) -> int:
    """Tokens that are no padding, or pictures."""
    return len(inputs["pixel_values"]) if "pixel_values" in inputs else int(inputs["attention_mask"].sum())


def flattened(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    """A batch as transformers takes it without padding: all sentences one after another, and where each begins."""
    real = inputs["attention_mask"].bool()
    lengths = real.sum(1)
    starts = F.pad(lengths.cumsum(0), (1, 0)).int()
    places = torch.arange(real.shape[1], device=real.device).expand_as(real)[real]
    longest = int(lengths.max())
    flat: dict[str, Any] = {
        "input_ids": inputs["input_ids"][real][None], "position_ids": places[None], "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest,
    }  # fmt: skip
    return flat, labels[real][None]


def picture_side(device: torch.device) -> int:
    return PICTURE if device.type == "cuda" else TINY_PICTURE


def backend_for(device: torch.device) -> str:
    """Of torch.compile: on the CPU its parts are tried, but no C++ is compiled."""
    return "inductor" if device.type == "cuda" else "eager"


def has_flash_attention(device: torch.device) -> bool:
    """Whether transformers can leave out padding."""
    with contextlib.suppress(ImportError):
        import flash_attn  # pyright: ignore[reportMissingImports] # noqa: F401

        return device.type == "cuda"
    return False


def is_slow(precision: str, device: torch.device) -> bool:
    """Whether a GPU has no arithmetic for a precision."""
    return precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that some work takes, until the GPU has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


MEASURES = {"machine": machine, "tests": tests, "training": training, "onnx": onnx}

if __name__ == "__main__":
    measure, device_name, settings = sys.argv[1:]
    if device_name == "cpu":
        torch.set_num_threads(1)
    found = MEASURES[measure](torch.device(device_name), **json.loads(settings))
    print("\n" + json.dumps(found), flush=True)
    os._exit(0)  # what is left, compilers among it, has nothing more to say
