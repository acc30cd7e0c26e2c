"""How much memory is held: by a process, by a device, by the tensors of one step."""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch.profiler import ProfilerActivity, profile

GIB = 2**30
TURNS = 3  # until an allocator has warmup_end


def reset_peak(device: torch.device) -> None:
    """Reset the peak, where the system can (accelerators; Linux for processors)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Bytes: most that was allocated on a device since `reset_peak`; for a processor, that this process held in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return psutil.Process().memory_info().rss


def total(device: torch.device) -> int:
    """Bytes of a device's memory; of the machine's for a processor."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else psutil.virtual_memory().total


def held_by(function: Callable[[], object]) -> int:
    """Largest sum of tensors on the processor that a call allocates at once, exact to the byte."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def held_in_turn(calls: list[Callable[[], object]]) -> list[int]:
    """`held_by` of each."""
    return [held_by(call) for call in calls]


def process_held_in_turn(calls: list[Callable[[], object]]) -> list[int]:
    """Peak memory of this process during each call, beyond that before all of them.

    With what allocator and libraries keep for themselves, which they do not give back: begin with the smallest call.
    """
    device, before, found = torch.device("cpu"), psutil.Process().memory_info().rss, []
    for call in calls:
        reset_peak(device)
        for _ in range(TURNS):
            call()
        found.append(peak(device) - before)
    return found
