"""Names, adapters that processes share, and the pipelines that a model keeps."""

import pytest

from trainers.service.models import KEPT_PIPELINES, Models, named_models
from trainers.service.settings import Refusal, ServiceSettings


def test_names():
    given = ("runs/ner", "runs/cells/model.int8.onnx", "exports/films.onnx", "own=runs/x/model.onnx", "org/name")
    assert list(named_models(given)) == ["ner", "cells", "films", "own", "name"]
    with pytest.raises(ValueError, match=r"are both called ner; write NAME=b/ner"):
        named_models(("a/ner", "b/ner"))
    for wrong in ("a b=runs/x", ".", "=x", "a+b=x"):
        with pytest.raises(ValueError, match="cannot name a model"):
            named_models((wrong,))


def test_what_one_process_loads_another_does(base, tmp_path):
    settings = ServiceSettings((f"base={base / 'base.onnx'}",))
    one, two = Models(settings, tmp_path), Models(settings, tmp_path)
    one.load_adapter(one.by_name["base"], "a", base / "a.onnx_adapter")
    two.sync()
    assert list(two.by_name["base"].adapters) == ["a"]
    late = Models(settings, tmp_path)  # as a process that takes the place of a dead one
    assert list(late.by_name["base"].adapters) == ["a"]
    two.remove_adapter(two.by_name["base"], "a")
    one.sync()
    assert not one.by_name["base"].adapters
    assert not one.by_name["base"].served.model.adapters
    assert one.synced
    with pytest.raises(Refusal, match="no adapter 'a'"):
        one.by_name["base"].prepare(one.by_name["base"].reader.of_json({"inputs": ["il2"]}), "a")


def test_pipelines_of_many_options_do_not_pile_up(exported, tmp_path):
    models = Models(ServiceSettings((f"text={exported['text'] / 'model.onnx'}",)), tmp_path)
    model = models.by_name["text"]
    for top_k in range(1, 3 * KEPT_PIPELINES):
        request = model.reader.of_json({"inputs": ["il2"], "options": {"top_k": top_k}})
        assert model.prepare(request, None).key == model.job(request, None).key
    assert len(model._pipelines) == KEPT_PIPELINES
    assert model.job(model.reader.of_json({"inputs": ["il2"]}), None) is not None
    tokenizers = {id(pipeline.tokenizer) for pipeline in model._pipelines.values()}
    assert len(tokenizers) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models": ()}, "serve needs a model"),
        ({"workers": 0}, "--workers is 0; expected at least 1"),
        ({"max_queue": 10}, "--max-queue is 10, below --max-inputs 256"),
        ({"timeout": 0}, "--timeout is 0; expected more than 0"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        ServiceSettings(**{"models": ("runs/ner",), **wrong})


def test_wrong_adapters_at_the_start(base, tmp_path):
    for given in ("a.onnx_adapter", "base+a", "other+a=x", "base+a b=x"):
        settings = ServiceSettings((f"base={base / 'base.onnx'}",), adapters=(given,))
        with pytest.raises(ValueError, match=r"expected MODEL\+NAME=FILE, where MODEL is one of base"):
            Models(settings, tmp_path)
