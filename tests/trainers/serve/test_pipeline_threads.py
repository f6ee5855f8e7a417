"""A pipeline gives several threads, and processes forked from its own, what it gives one."""

import logging
import multiprocessing
import random
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from trainers.data.tokenizer import load_tokenizer
from trainers.data.tokens.pieces import WordTable
from trainers.serve import pipeline
from trainers.serve.export import export_run

THREADS = 8


@pytest.fixture(scope="module")
def exported(finished, finished_text, finished_image, tmp_path_factory):
    """The folders of the runs by task, with their ONNX files."""
    root = tmp_path_factory.mktemp("exported")
    runs = {"ner": finished["full"], "text": finished_text, "image": finished_image}
    folders = {task: shutil.copytree(run, root / task) for task, run in runs.items()}
    for folder in folders.values():
        export_run(folder, points_lost=100)
    return folders


@pytest.fixture
def quick_switches():
    """Threads take turns as often as Python lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def inputs_of(task, tiny, count=40):
    """Lists of inputs, which share few words: every thread meets words that are new to the table."""
    chance = random.Random(4)
    if task == "image":
        return [
            [np.frombuffer(chance.randbytes(20 * 16), np.uint8).reshape(20, 16) for _ in range(5)] for _ in range(count)
        ]
    known = [word for words in tiny.WORDS.values() for word in words]

    def text():
        fresh = ["".join(chance.choices("abcdefgh", k=4)) for _ in range(4)]
        return " ".join(chance.sample([*fresh, *chance.choices(known, k=8)], 12))

    return [[text() for _ in range(5)] for _ in range(count)]


@pytest.mark.parametrize("file", ["", "model.onnx", "model.int8.onnx"])
@pytest.mark.parametrize("task", ["ner", "text", "image"])
def test_threads_get_what_one_thread_gets(task, file, exported, tiny, quick_switches):
    source = exported[task] / file
    jobs = inputs_of(task, tiny)
    expected = [pipeline(None, source, device="cpu")(job) for job in jobs]
    shared = pipeline(None, source, device="cpu")
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(shared, jobs * 2))
    assert found == expected * 2
    assert [shared(job) for job in jobs] == expected  # nothing stayed behind
    assert len({str(result) for result in expected}) > len(jobs) / 2


def test_a_table_is_shared_by_threads(checkpoint, quick_switches):
    tokenizer = load_tokenizer(checkpoint)
    chance = random.Random(0)
    jobs = [[["".join(chance.choices("abcdefgh", k=3)) for _ in range(50)]] for _ in range(200)]
    expected = [WordTable(tokenizer, 24).split(job) for job in jobs]
    table = WordTable(tokenizer, 24)
    together = threading.Barrier(THREADS)

    def work(part):
        together.wait()
        return [table.split(job) for job in jobs[part::THREADS]]

    with ThreadPoolExecutor(THREADS) as pool:
        for part, found in enumerate(pool.map(work, range(THREADS))):
            for pieces, right in zip(found, expected[part::THREADS], strict=True):
                np.testing.assert_array_equal(pieces.counts, right.counts)
                for place, start, size in zip(right.first, pieces.first, pieces.counts, strict=True):
                    np.testing.assert_array_equal(pieces.ids[start:][:size], right.ids[place:][:size])


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def forked(target, *arguments):
    """What a forked process puts into a queue."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=target, args=(queue, *arguments))
    process.start()
    try:
        return queue.get(timeout=60)
    finally:
        process.kill()
        process.join()


def answer(queue, serve, text, records):
    with records.at_level(logging.WARNING):
        try:
            result = serve(text)
        except ValueError as error:
            result = str(error)
    queue.put((result, torch.get_num_threads(), records.text))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_computes_with_one_thread(exported, two_threads, caplog):
    serve = pipeline("ner", exported["ner"], device="cpu")
    text = "il2 gene of the junb promoter " * 200
    expected = serve(text)
    found, threads, said = forked(answer, serve, text, caplog)
    assert [entity["word"] for entity in found] == [entity["word"] for entity in expected]
    assert threads == 1
    assert "torch computes with one thread here" in said


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_needs_its_own_onnx_file(exported, two_threads, caplog):
    source = exported["ner"] / "model.onnx"
    serve = pipeline("ner", source)
    serve("il2 gene")
    found, *_ = forked(answer, serve, "il2 gene", caplog)
    assert "was loaded with 2 threads before this process was forked" in found
    torch.set_num_threads(1)
    single = pipeline("ner", source)
    assert forked(answer, single, "il2 gene", caplog)[0] == single("il2 gene")
