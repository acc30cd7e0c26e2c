import gc

import torch

from hssl_hf.engine import memory


def test_the_peak_allocation_of_a_call_is_exact():
    """Two tensors at once, then one: the larger sum counts, whatever was there before."""
    before = torch.ones(1000)

    def call():
        first = before * 2
        second = torch.cat([first, first])
        del first
        return second.sum()

    assert memory.peak_allocation(call) == 12_000


def test_the_process_peaks_with_each_call():
    """Tensors of 64 and of 256 MiB, which a process cannot hold without holding their pages, after an earlier peak.

    The system may reclaim pages of libraries at any time, so the first peak alone is certain to some 50 MiB only.
    """
    torch.ones(320 * 2**18)
    calls = [lambda size=size: torch.ones(size * 2**18).sum() for size in (64, 256)]
    small, large = memory.process_peaks(calls)
    assert 0 < small < 160 * 2**20 and 150 * 2**20 < large - small < 250 * 2**20
    assert [memory.peak_allocation(call) // 2**20 for call in calls] == [64, 256]


def test_garbage_from_before_does_not_lower_a_peak():
    """A cycle that holds 256 MiB and is collected while a call runs."""
    cycle = [torch.ones(256 * 2**18)]
    cycle.append(cycle)
    del cycle

    def call():
        gc.collect()
        return torch.ones(64 * 2**18).sum()

    (peak,) = memory.process_peaks([call])
    assert 0 < peak < 160 * 2**20


def test_the_peak_of_a_process_is_reset():
    device = torch.device("cpu")
    block = torch.ones(64 * 2**20)
    del block
    memory.reset_peak(device)
    low = memory.peak(device)
    block = torch.ones(64 * 2**20)
    high = memory.peak(device)
    assert 200 * 2**20 < high - low < 400 * 2**20 and low < high < memory.total(device)
    del block
    memory.reset_peak(device)
    assert memory.peak(device) < low + 100 * 2**20
