import torch

from hssl_hf.engine import memory


def test_what_a_call_holds_is_exact():
    """Two tensors at once, then one: the larger sum counts, whatever was there before."""
    before = torch.ones(1000)

    def call():
        first = before * 2
        second = torch.cat([first, first])
        del first
        return second.sum()

    assert memory.held_by(call) == 12_000


def test_calls_in_turn_are_seen_by_the_process():
    """Tensors of 64 and of 256 MiB, which a process cannot hold without holding their pages."""
    calls = [lambda size=size: torch.ones(size * 2**18).sum() for size in (64, 256)]
    small, large = memory.process_held_in_turn(calls)
    assert 50 * 2**20 < small < 160 * 2**20 < 200 * 2**20 < large < 400 * 2**20
    assert [held // 2**20 for held in memory.held_in_turn(calls)] == [64, 256]


def test_the_peak_of_a_process_is_forgotten_and_seen_again():
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
