"""Which device and exchange a process takes, without any GPU: all follows from the environment and a few numbers."""

from datetime import timedelta

import pytest
import torch

from trainers.processes import devices
from trainers.processes.devices import check_card, nccl_settings, placement, usable
from trainers.processes.distributed import distributed
from trainers.serve.served import load_served

CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU128 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
V100, T4, A100, A10, RTX_4090, H100, B200 = (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0)


def of_rank(rank, size=8, **more):
    """What torchrun tells a process of one machine."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), **more}


@pytest.mark.parametrize(
    ("environment", "gpus", "expected"),
    [
        ({}, 0, (0, 1, "cpu", "gloo")),
        ({}, 4, (0, 1, "cuda:0", "nccl")),
        (of_rank(0), 8, (0, 8, "cuda:0", "nccl")),
        (of_rank(5), 8, (5, 8, "cuda:5", "nccl")),
        (of_rank(1, 2), 0, (1, 2, "cpu", "gloo")),
        ({**of_rank(3), "RANK": "11", "WORLD_SIZE": "16"}, 8, (11, 16, "cuda:3", "nccl")),  # the second machine
        (of_rank(2, 4, CUDA_VISIBLE_DEVICES="0,1,2,3"), 4, (2, 4, "cuda:2", "nccl")),
        (of_rank(2, 4, CUDA_VISIBLE_DEVICES="2"), 1, (2, 4, "cuda:0", "nccl")),  # each sees its own
    ],
)
def test_the_device_and_the_exchange_of_a_process(environment, gpus, expected):
    place = placement(environment, gpus, has_nccl=True)
    assert (place.rank, place.size, str(place.device), place.backend) == expected


def test_without_nccl_gradients_travel_by_gloo():
    assert placement(of_rank(1, 2), 2, has_nccl=False).backend == "gloo"


@pytest.mark.parametrize("visible", [None, "0,1"])
def test_more_processes_than_gpus_are_refused(visible):
    more = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(ValueError, match=r"Rank 2 is process 2 .* of 3 on this machine, which has 2 GPUs") as error:
        placement(of_rank(2, 3, **more), 2, has_nccl=True)
    assert "torchrun --nproc-per-node 2" in str(error.value)
    assert ("CUDA_VISIBLE_DEVICES=0,1" in str(error.value)) == (visible is not None)


def test_what_the_group_is_told():
    wait = timedelta(seconds=600)
    assert placement(of_rank(1, 2), 0, has_nccl=True).group_options(wait) == {"backend": "gloo", "timeout": wait}
    nccl = placement(of_rank(1, 2), 2, has_nccl=True).group_options(wait)
    assert nccl.pop("timeout") > wait, "the exchange over the CPU must notice first"
    assert nccl == {"backend": "nccl", "device_id": torch.device("cuda", 1)}


def test_nccl_settings_of_the_user_stay():
    chosen = {"TORCH_NCCL_BLOCKING_WAIT": "1"}
    assert nccl_settings(chosen) == {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    assert nccl_settings({}) == {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "TORCH_NCCL_BLOCKING_WAIT": "0"}


@pytest.mark.parametrize(
    ("capability", "architectures"),
    [
        (V100, CU126),
        *((card, CU126) for card in (T4, A100, A10, RTX_4090, H100)),
        *((card, CU128) for card in (T4, A100, A10, RTX_4090, H100, B200)),
        ((12, 1), ["sm_90", "compute_90"]),  # translated by the driver
        ((10, 3), ["sm_90a", "sm_100a"]),
        (V100, []),
        ((9, 4), ["gfx90a", "gfx942"]),
    ],
)
def test_cards_that_a_build_has_code_for(capability, architectures):
    check_card("a card", capability, architectures)


@pytest.mark.parametrize(
    ("capability", "architectures", "remedy"),
    [
        (V100, CU128, r'CUDA 12.6.*pip install "torch<2.15" --index-url https://download.pytorch.org/whl/cu126\.'),
        ((6, 1), ["sm_70", "compute_70"], "CUDA 12.6"),
        (B200, CU126, "install a newer build"),
        ((8, 0), ["sm_86"], "install a newer build"),
    ],
)
def test_cards_that_a_build_has_no_code_for(capability, architectures, remedy):
    with pytest.raises(ValueError, match=remedy) as error:
        check_card("The card", capability, architectures, "2.13.0+cu128")
    said = str(error.value)
    number = ".".join(map(str, capability))
    assert said.startswith(f"The card has compute capability {number}, for which torch 2.13.0+cu128 has no code")
    assert ", ".join(architectures) in said


@pytest.fixture
def v100(monkeypatch):
    """A machine with a V100 and a build of torch for CUDA 12.8, as far as questions go."""
    answers = {
        "is_available": True,
        "device_count": 1,
        "get_device_name": "Tesla V100-SXM2-16GB",
        "get_device_capability": V100,
        "get_arch_list": CU128,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *device, answer=answer: answer)


def test_a_run_is_refused_before_its_first_step(v100):
    with pytest.raises(ValueError, match=r"Tesla V100-SXM2-16GB has compute capability 7\.0"), distributed():
        pytest.fail("it began")


def test_a_pipeline_is_refused(v100, finished):
    with pytest.raises(ValueError, match=r"Tesla V100-SXM2-16GB has compute capability 7\.0"):
        load_served(finished["lora"])
    assert load_served(finished["lora"], device="cpu").device == "cpu"


def test_the_cpu_asks_nothing_of_cuda(monkeypatch):
    monkeypatch.setattr(devices, "check_card", lambda *nothing: pytest.fail("asked"))
    assert usable(torch.device("cpu")).type == "cpu"
