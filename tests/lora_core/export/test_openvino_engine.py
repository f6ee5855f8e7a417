"""OpenVINO against onnxruntime on the same files: what it reads, what it refuses, and the check before it serves."""

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch

import lora_core
from lora_core.export import OnnxModel, OnnxSession, export_onnx, export_onnx_base, openvino_engine, quantize_onnx
from lora_core.export.openvino_engine import without_fused_int8
from lora_core.export.write import read_model, write_model

TOKEN, TEXT, IMAGE = "token-classification", "text-classification", "image-classification"


@pytest.fixture(scope="module")
def openvino():
    return pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'lora-core[openvino]'")


@pytest.fixture
def files(make, batch, tmp_path):
    """`files(family, task, **options)`: the model and its fp32, dynamic and static files."""

    def build(family, task, **options):
        model = make(family, task, **options)
        path = export_onnx(model, tmp_path / "model.onnx")
        batches = [batch(model), batch(model, (16, 5, 2))]
        dynamic = quantize_onnx(path, tmp_path / "dynamic.onnx")
        return model, path, dynamic, quantize_onnx(path, tmp_path / "static.onnx", batches)

    return build


def arrays(inputs):
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@pytest.mark.parametrize(
    ("family", "task", "head"),
    [
        ("roberta", TOKEN, "crf"),
        ("deberta-v2", TEXT, "default"),
        ("vit", IMAGE, "default"),
    ],
)
def test_every_file_gives_what_onnxruntime_gives(openvino, files, batch, family, task, head):
    model, *paths = files(family, task, head=head)
    inputs = batch(model)
    with torch.no_grad():
        expected = model(**inputs).numpy() if head != "crf" else OnnxSession(paths[0]).run(**arrays(inputs))
    for path, most in zip(paths, (1e-4, 0.1, 0.1), strict=True):
        found = OnnxModel(path, threads=1, backend="openvino")
        assert found.providers == ["OpenVINO"]
        difference = np.abs(found(**inputs).numpy() - expected).mean()
        assert difference <= most * expected.std(), path


def test_an_lstm_is_refused(openvino, files):
    """OpenVINO reads the padding of shorter texts, so that their results would depend on the batch."""
    _, *paths = files("bert", TEXT, head="lstm")
    for path in paths:
        with pytest.raises(ValueError, match=r"has an LSTM, of which OpenVINO reads the padding.*--backend onnx"):
            OnnxSession(path, threads=1, backend="openvino")


def test_int8_products_are_computed_in_int8(openvino, files, batch):
    _, _, _, static = files("bert", TOKEN)
    engine = OnnxSession(static, threads=1, backend="openvino").engine
    kinds = [node.get_rt_info() for node in engine._compiled.get_runtime_model().get_ops()]
    kinds = [(kind["layerType"].astype(str), kind["runtimePrecision"].astype(str)) for kind in kinds]
    assert kinds.count(("FullyConnected", "u8")) == 4 * 2
    assert "MatMulIntegerToFloat" in {node.op_type for node in onnx.load(static).graph.node}
    assert "MatMulIntegerToFloat" not in {node.op_type for node in without_fused_int8(onnx.load(static)).graph.node}


def test_the_dequantised_graph_is_the_file_in_fp32_arithmetic(files, batch, tmp_path):
    """onnxruntime itself, on the graph that OpenVINO is given, gives the int8 file's logits."""
    model, _, _, static = files("bert", TOKEN)
    plain = without_fused_int8(read_model(static))
    facts = {name: text for name, text in OnnxSession(static).metadata.items() if name not in ("graph_sha256",)}
    path = write_model(plain, tmp_path / "plain.onnx", facts)
    inputs = arrays(batch(model))
    found, expected = OnnxSession(path).run(**inputs), OnnxSession(static).run(**inputs)
    assert np.abs(found - expected).mean() < 0.01 * expected.std()  # a value on the edge may be rounded the other way


def test_bfloat16_rounds(openvino, files, batch):
    model, path, *_ = files("bert", TOKEN)
    if not openvino_engine.computes_bf16():
        with pytest.raises(ValueError, match="this CPU has no bfloat16"):
            OnnxSession(path, backend="openvino-bf16")
        return
    inputs = arrays(batch(model))
    expected = OnnxSession(path).run(**inputs)
    difference = np.abs(OnnxSession(path, backend="openvino-bf16").run(**inputs) - expected)
    assert difference.max() > 1e-4
    assert difference.mean() < 0.05 * expected.std()


def test_a_graph_that_is_read_wrongly_is_not_served(openvino, files, monkeypatch):
    _, path, dynamic, static = files("bert", TOKEN)
    right = openvino_engine.OpenVino.logits
    monkeypatch.setattr(openvino_engine.OpenVino, "logits", lambda self, given: right(self, given) + np.float32(2e-4))
    with pytest.raises(
        ValueError, match=r"differ from onnxruntime's by up to 0\.0002, more than 0\.0001; use --backend"
    ):
        OnnxSession(path, backend="openvino")
    monkeypatch.setattr(openvino_engine.OpenVino, "logits", lambda self, given: right(self, given)[..., ::-1])
    for file in (dynamic, static):
        with pytest.raises(ValueError, match="in the mean by"):
            OnnxSession(file, backend="openvino")
    monkeypatch.setattr(openvino_engine.OpenVino, "logits", lambda self, given: right(self, given) * np.float32("nan"))
    with pytest.raises(ValueError, match="OpenVINO gives NaN"):
        OnnxSession(static, backend="openvino")


def test_what_it_cannot_run_is_refused_in_one_line(openvino, make, tmp_path):
    path = export_onnx(make("modernbert", TOKEN), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"OpenVINO .* cannot run .*RotaryEmbedding.*; use --backend onnx") as error:
        OnnxSession(path, backend="openvino")
    assert "\n" not in str(error.value)
    model = make("bert", TOKEN)
    lora_core.inject_lora(model, adapter_name="a", r=2, target_modules="all-linear")
    with pytest.raises(ValueError, match="base for adapters"):
        OnnxSession(export_onnx_base(model, tmp_path / "base.onnx"), backend="openvino")
    with pytest.raises(ValueError, match="backend is 'tvm'; an ONNX file runs on one of onnx, openvino"):
        OnnxSession(path, backend="tvm")


def test_without_the_package_the_error_says_how_to_install_it(make, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    path = export_onnx(make("bert", TOKEN), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"OpenVINO is not installed: pip install 'lora-core\[openvino\]'"):
        OnnxSession(path, backend="openvino")


def test_threads_share_a_session_and_have_the_number_that_is_set(openvino, files, batch):
    model, path, *_ = files("bert", TOKEN)
    session = OnnxSession(path, threads=2, backend="openvino")
    assert session.engine._compiled.get_property("INFERENCE_NUM_THREADS") == 2
    inputs = [arrays(batch(model, lengths)) for lengths in ((9, 4, 1), (5,), (16, 2), (7, 7, 7, 1))] * 8
    expected = [session.run(**each) for each in inputs]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda each: session.run(**each), inputs))
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


SIGNALS = """
import gc, mmap, signal, subprocess, sys
from lora_core.export import OnnxSession
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
first = OnnxSession(sys.argv[1], threads=1, backend="openvino")
for _ in range(3):  # models come and go, the older one first
    second = OnnxSession(sys.argv[1], threads=1, backend="openvino")
    first = second
    del second
    gc.collect()
del first
gc.collect()
taken = [mmap.mmap(-1, 4096) for _ in range(200)]
for each in taken:
    each.close()
subprocess.run(["true"])
signal.raise_signal(signal.SIGUSR1)
print("alive", caught)
"""


def test_signals_are_survived_when_models_have_come_and_gone(openvino, files):
    _, path, *_ = files("bert", TOKEN)
    done = subprocess.run([sys.executable, "-c", SIGNALS, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive [1]\n"), done.stderr


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_is_told_to_load_its_own(openvino, files, batch):
    model, path, *_ = files("bert", TOKEN)
    session, inputs = OnnxSession(path, threads=1, backend="openvino"), arrays(batch(model))
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def child():
        try:
            session.run(**inputs)
        except ValueError as error:
            sender.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert receiver.poll(30)
    assert "before this process was forked" in receiver.recv()
    process.join(30)
    assert process.exitcode == 0
