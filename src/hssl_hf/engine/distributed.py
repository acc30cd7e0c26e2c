"""What differs between Accelerate's engines: DDP, FSDP2, DeepSpeed ZeRO-1 and ZeRO-2; on CPUs too, over gloo.

The training loop uses an accelerator, a backward pass and a step, whatever the engine.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import PartialState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    is_deepspeed_available,
)
from torch import Tensor, nn
from torch.distributed import DistBackendError, DistNetworkError

from hssl_hf.engine.launch import LaunchError
from hssl_hf.engine.optim import CLIPS, drop_gradients, gradient_norms, local_tensors
from hssl_hf.errors import EndedPeerError, UserError

Result = TypeVar("Result")


def make_accelerator(bf16: bool, accumulate: int, images_per_process: int, **kwargs) -> Accelerator:
    """The accelerator of the engine that the launcher requested.

    Args:
        bf16: autocast; weights stay in fp32 under every engine.
        accumulate: micro-batches of a process's batch.
        images_per_process: images of a micro-batch.
        kwargs: passed on to `Accelerator`.
    Raises:
        LaunchError: for an engine under which the teacher would not be right.
    """
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns wherever it is installed
    if _requested("DEEPSPEED"):
        _forget_cpu()
        kwargs["deepspeed_plugin"] = _deepspeed_plugin(bf16, accumulate, images_per_process)
        if not torch.cuda.is_available():
            kwargs["kwargs_handlers"] = [InitProcessGroupKwargs(backend="gloo")]
    elif not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # else several processes would not find each other
    if _requested("FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise LaunchError("FSDP 1 cannot run student and teacher in one model; use FSDP 2: --config_file fsdp2")
    accelerator = Accelerator(mixed_precision="no", gradient_accumulation_steps=accumulate, **kwargs)  # `Engine` autocasts
    if _requested("FSDP") and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate shards on accelerators alone, though PyTorch can on CPUs, and everything behind this switch is the same.
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    return accelerator


def on_main_process(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Call a function on the main process while the others wait.

    Returns:
        its result, which can be pickled, in all processes.
    Raises:
        UserError: what the function has raised, in all processes, so that none waits for one that has ended.
    """
    outcome = [(None, None)]
    if accelerator.is_main_process:
        try:
            outcome = [(function(), None)]
        except UserError as error:
            outcome = [(None, error)]
    ((result, error),) = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result


@contextmanager
def ended_peers_as_errors() -> Iterator[None]:
    """Convert what a backend raises when another process does not respond any more.

    Raises:
        EndedPeerError: instead.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, DistBackendError | DistNetworkError) and "/gloo/" not in str(error):
            raise
        raise EndedPeerError(
            f"another process of the run has ended, or cannot be reached any more: {str(error).splitlines()[0]}\nStart again "
            "with resume_from_checkpoint=auto"
        ) from error


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in one of the processes, which all have to call this."""
    return accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)).item() > 0


def gather_rows(accelerator: Accelerator, rows: Tensor, chunk: int = 65_536) -> Tensor:
    """The rows of all processes, each of them once, on the CPU.

    Args:
        rows: (n, ...) of this process; n differs between processes and may be 0 in some, where further axes do not count.
        chunk: rows that are exchanged at once, through the memory of the device.
    Returns:
        those of the first process, then those of the second, and so on.
    """
    if accelerator.num_processes == 1:
        return rows.cpu()
    device = accelerator.device
    shapes = accelerator.gather(torch.tensor([rows.shape], device=device))
    counts, shape = shapes[:, 0].tolist(), shapes[:, 1:].amax(0).tolist()
    rows = rows if len(rows) else rows.new_empty(0, *shape)
    pieces: list[list[Tensor]] = [[] for _ in counts]
    for first in range(0, max(counts), chunk):
        length = min(chunk, max(counts) - first)
        own = rows[first : first + length].to(device)
        padded = torch.cat([own, own.new_zeros(length - len(own), *shape)])
        for number, piece in enumerate(accelerator.gather(padded).cpu().split(length)):
            pieces[number].append(piece[: max(0, counts[number] - first)])
    return torch.cat([rows[:0].cpu(), *(piece for of_process in pieces for piece in of_process)])


def _requested(engine: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def _forget_cpu() -> None:
    """Leave the choice of devices to DeepSpeed: where CPUs are requested, Accelerate takes DDP instead, without a word.

    Raises:
        LaunchError: if there are other devices, which DeepSpeed would use.
    """
    if _requested("CPU") and torch.accelerator.is_available():
        raise LaunchError(
            "DeepSpeed and use_cpu are requested together, but DeepSpeed uses the accelerators of this machine; remove "
            "use_cpu from the configuration, or hide the accelerators (CUDA_VISIBLE_DEVICES='')"
        )
    os.environ.pop("ACCELERATE_USE_CPU", None)


def _deepspeed_plugin(bf16: bool, accumulate: int, images_per_process: int) -> DeepSpeedPlugin:
    if not is_deepspeed_available():
        raise LaunchError("DeepSpeed is not installed; pip install 'hssl-hf[deepspeed]'")
    plugin = DeepSpeedPlugin(gradient_accumulation_steps=accumulate)
    if plugin.zero_stage not in (1, 2):
        raise LaunchError(
            f"ZeRO-{plugin.zero_stage} is not supported: the teacher follows full weights, which stage 3 partitions, and "
            "gathering them in every step costs more than it saves. Use --config_file deepspeed_zero1 or "
            "deepspeed_zero2, or fsdp2, which shards the weights of the teacher, too"
        )
    config = plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = images_per_process
    config["gradient_accumulation_steps"] = accumulate
    config["gradient_clipping"] = 0.0  # clipped here, by the rule of the recipe
    config["zero_allow_untested_optimizer"] = True
    config["torch_autocast"] = {"enabled": bf16, "dtype": "bfloat16"}
    config["communication_data_type"] = "fp32"
    return plugin


class Engine:
    """Model and optimizer under the accelerator's engine.

    Args:
        accelerator: from `make_accelerator`.
        method: the model; its `student` is optimized.
        optimizer: over the student's parameters.
        bf16: autocast the forward passes.
    """

    def __init__(self, accelerator: Accelerator, method: nn.Module, optimizer: torch.optim.Optimizer, bf16: bool):
        self.accelerator, self.method, self.bf16 = accelerator, method, bf16
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=method.has_unused_parameters)
        self.model, self.optimizer = accelerator.prepare(method, optimizer)
        self.bad_step = torch.tensor(-1, device=accelerator.device)
        self.is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        self.is_sharded = accelerator.distributed_type == DistributedType.FSDP  # the model's weights

    def forward(self, **arguments):
        """What the model returns."""
        autocast = self.bf16 and not self.is_deepspeed  # which autocasts by itself
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=autocast):
            return self.model(**arguments)

    def backward(self, loss: Tensor) -> None:
        if self.is_deepspeed:
            self.model.set_gradient_accumulation_boundary(is_boundary=self.accelerator.sync_gradients)
            self.model.backward(loss)
        else:
            self.accelerator.backward(loss)

    def clip_and_step(self, number: int, frozen: Collection[str], max_grad_norm: float | None, grad_clip: str) -> None:
        """An optimizer step once all micro-batches of a batch have passed, nothing before.

        From the first step on whose gradients are not finite nothing is updated; `bad_step` holds its number.

        Args:
            number: of the step.
            frozen: names in `freezable_parameters` whose parameters are not updated, not even by weight decay.
            max_grad_norm: largest norm of a gradient, or None.
            grad_clip: "per_parameter" or "global", of `CLIPS`.
        """
        if not self.accelerator.sync_gradients:
            return
        freezable = self.method.freezable_parameters() if frozen else {}
        frozen_parameters = [p for name, parameters in freezable.items() if name in frozen for p in parameters]
        if self.is_deepspeed:
            by_parameter = self._full_gradients(frozen_parameters)
            gradients = list(by_parameter.values())
        else:
            drop_gradients(frozen_parameters)
            gradients = [p.grad for p in self.method.student.parameters() if p.grad is not None]
        norms = gradient_norms(gradients) if max_grad_norm is None else CLIPS[grad_clip](gradients, max_grad_norm)
        first_bad = (self.bad_step < 0) & ~norms.isfinite().all()
        self.bad_step = torch.where(first_bad, number, self.bad_step)
        bad = self.bad_step >= 0  # on the device, which is not waited for
        if self.is_sharded or self.is_deepspeed:
            for gradient in local_tensors(gradients):
                gradient.masked_fill_(bad, 0)
        else:
            self.optimizer.optimizer.found_inf = bad.float()  # the fused kernel skips the step
        if self.is_deepspeed:
            self._deepspeed_step(by_parameter, frozen)
        else:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _full_gradients(self, frozen_parameters: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
        """Copies of DeepSpeed's gradients of all trained parameters, zero for frozen ones."""
        from deepspeed.utils import safe_get_full_grad

        trained = [p for p in self.method.student.parameters() if p.requires_grad]
        gradients = {p: safe_get_full_grad(p).clone() for p in trained}
        for p in frozen_parameters:
            gradients[p].zero_()
        return gradients

    def _deepspeed_step(self, gradients: dict[nn.Parameter, Tensor], frozen: Collection[str]) -> None:
        from deepspeed.utils import safe_set_full_grad

        for p, gradient in gradients.items():
            safe_set_full_grad(p, gradient)
        self.model.step()
        if frozen:  # as if they had not been there: the step count of their moments does not advance either
            zero = self.model.optimizer
            for group, partition in zip(zero.param_groups, zero.single_partition_of_fp32_groups, strict=True):
                if group["name"] in frozen:
                    zero.optimizer.state[partition]["step"].zero_()
