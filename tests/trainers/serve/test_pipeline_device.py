"""Pipelines on a GPU, as far as a machine without one can show it: on torch's meta device, where a tensor left on the
CPU raises, and with every wait of the host counted (device_watch.py)."""

import dataclasses

import numpy as np
import pytest
import torch

from lora_core.models import build_model
from trainers.serve import pipeline_for
from trainers.serve.served import load_served
from trainers.serve.served_torch import Logits

WAIT = "trainers/serve/served_torch.py __call__"
"""Where the logits of a batch are brought to the host."""
TEXTS = ["il2 binds nfkb", "the promoter of a gene in cells", "junb " * 40]


@pytest.fixture
def on_device(device_watch):
    """The number of batches that a pipeline computes on the meta device, and the waits of the host by place."""

    def run(served, inputs, **options):
        model = served.model.to(device_watch.META)
        served = dataclasses.replace(served, model=model, logits=Logits(model, device_watch.META), device="meta")
        computed = []
        served.model.register_forward_hook(lambda *anything: computed.append(1))
        with device_watch.DeviceWatch() as watch:
            results = pipeline_for(served, max_tokens=32, **options)(inputs)
        assert len(results) == len(inputs)
        return len(computed), watch.waits

    return run


@pytest.mark.parametrize("strategy", ["first", "average", "max"])
def test_entities(on_device, finished, strategy):
    batches, waits = on_device(load_served(finished["lora"], device="cpu"), TEXTS, aggregation_strategy=strategy)
    assert batches > 1
    assert waits == {WAIT: batches}


def test_entities_by_crf(on_device, finished):
    served = load_served(finished["lora"], device="cpu")
    model = build_model(served.model.config, "token-classification", served.labels, head="crf")
    batches, waits = on_device(dataclasses.replace(served, model=model), TEXTS)
    assert batches > 1
    assert waits == {WAIT: batches}


def test_texts(on_device, finished_text):
    batches, waits = on_device(load_served(finished_text, device="cpu"), TEXTS, top_k=None)
    assert batches > 1
    assert waits == {WAIT: batches}


def test_pictures(on_device, finished_image):
    pictures = list(np.zeros((60, 12, 12, 3), dtype=np.uint8))
    batches, waits = on_device(load_served(finished_image, device="cpu"), pictures)
    assert batches > 1
    assert waits == {WAIT: batches}


def test_a_recurrent_head(on_device, finished_text):
    """An LSTM is told the lengths of the texts by the host."""
    served = load_served(finished_text, device="cpu")
    model = build_model(served.model.config, "text-classification", served.labels, head="lstm")
    batches, waits = on_device(dataclasses.replace(served, model=model), TEXTS)
    assert waits == {WAIT: batches}


def test_a_tensor_that_was_left_behind_is_noticed(on_device, finished_text):
    served = load_served(finished_text, device="cpu")
    served.model.register_forward_hook(lambda module, inputs, logits: logits + torch.ones(2))
    with pytest.raises(RuntimeError, match="cpu"):
        on_device(served, TEXTS)
