from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from hssl_hf.engine import memory
from tests.processes import CONTEXT

MIB = 2**20
CALLS = [lambda size=size: torch.ones(size * MIB // 4).sum() for size in (64, 256)]


@pytest.fixture
def fresh():
    """Calls a function in a new process: in this one the allocator may reuse blocks that earlier tests have freed."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as processes:
        yield lambda function: processes.submit(function).result()


def test_the_peak_allocation_of_a_call_is_exact():
    """Two tensors at once, then one: the larger sum counts, whatever was there before."""
    before = torch.ones(1000)

    def call():
        first = before * 2
        second = torch.cat([first, first])
        del first
        return second.sum()

    assert memory.peak_allocation(call) == 12_000
    assert [memory.peak_allocation(call) // MIB for call in CALLS] == [64, 256]


def peaks_before_with_and_after_a_block() -> tuple[int, int, int]:
    device = torch.device("cpu")
    torch.ones(256 * MIB // 4)
    memory.reset_peak(device)
    low = memory.peak(device)
    block = torch.ones(256 * MIB // 4)
    high = memory.peak(device)
    del block
    memory.reset_peak(device)
    return low, high, memory.peak(device)


def test_the_peak_of_a_process_is_reset(fresh):
    low, high, after = fresh(peaks_before_with_and_after_a_block)
    assert 200 * MIB < high - low < 400 * MIB and low < high < memory.total(torch.device("cpu"))
    assert after < low + 100 * MIB
