"""What differs between Accelerate's engines: DDP, FSDP2, DeepSpeed ZeRO-1 and ZeRO-2; on CPUs too, over gloo.

The training loop uses an accelerator, a backward pass and a step, whatever the engine.
"""

import os
from collections.abc import Collection

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hssl_hf.engine.launch import LaunchError
from hssl_hf.engine.optim import CLIPS, drop_gradients, gradient_norms


def make_accelerator(bf16: bool, accumulate: int, images_per_process: int, **more) -> Accelerator:
    """The accelerator of the engine that the launcher requested.

    Args:
        bf16: autocast; weights stay in fp32 under every engine.
        accumulate: parts of a process's batch.
        images_per_process: images in a part.
        more: passed on to `Accelerator`.
    Raises:
        LaunchError: for an engine under which the teacher would not be right.
    """
    if _asked("DEEPSPEED"):
        return _deepspeed(bf16, accumulate, images_per_process, more)
    if not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # else several processes would not find each other
    if _asked("FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise LaunchError("FSDP 1 cannot run student and teacher in one model; use training/accelerate/fsdp2.yaml")
    accelerator = Accelerator(mixed_precision="no", gradient_accumulation_steps=accumulate, **more)  # `Engine` autocasts
    if _asked("FSDP") and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate shards on accelerators alone, though PyTorch can on CPUs, and everything behind this switch is the same.
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    return accelerator


def _asked(engine: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def _deepspeed(bf16: bool, accumulate: int, images_per_process: int, more: dict) -> Accelerator:
    try:
        plugin = DeepSpeedPlugin(gradient_accumulation_steps=accumulate)
    except ImportError as error:
        raise LaunchError(f"DeepSpeed is not installed; pip install 'hssl-hf[deepspeed]' ({error})") from error
    if plugin.zero_stage not in (1, 2):
        raise LaunchError(
            f"ZeRO-{plugin.zero_stage} is not supported: the teacher follows full weights, which stage 3 keeps in pieces, and "
            "gathering them in every step costs more than it saves. Use training/accelerate/deepspeed_zero1.yaml or "
            "deepspeed_zero2.yaml, or fsdp2.yaml, which shards the weights of the teacher alike"
        )
    config = plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = images_per_process
    config["gradient_accumulation_steps"] = accumulate
    config["gradient_clipping"] = 0.0  # clipped here, by the rule of the recipe
    config["zero_allow_untested_optimizer"] = True
    config["torch_autocast"] = {"enabled": bf16, "dtype": "bfloat16"}
    config["communication_data_type"] = "fp32"
    if torch.cuda.is_available():
        handlers = []
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        handlers = [InitProcessGroupKwargs(backend="gloo")]
    return Accelerator(
        mixed_precision="no", deepspeed_plugin=plugin, gradient_accumulation_steps=accumulate, kwargs_handlers=handlers, **more
    )


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
        method._no_split_modules = repeated_blocks(method.student)
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=method.has_unused_parameters)
        self.model, self.optimizer = accelerator.prepare(method, optimizer)
        self.bad_step = torch.tensor(-1, device=accelerator.device)
        self.is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED

    def check_processes(self, before: int) -> None:
        """Refuse to resume a checkpoint of another number of processes where the engine cannot.

        Raises:
            LaunchError: under DeepSpeed, whose checkpoints hold one piece of the optimizer per process.
        """
        now = self.accelerator.num_processes
        if self.is_deepspeed and before != now:
            raise LaunchError(
                f"the checkpoint is of {before} processes under DeepSpeed, which keeps one piece of the optimizer's state for "
                f"each, and this run has {now}. Resume with --num_processes {before}"
            )

    def unsharded_model(self) -> nn.Module | None:
        """The model with full weights: itself, or where it is sharded a copy on the main process, and None on the others.

        To be called by all processes.
        """
        if self.accelerator.distributed_type != DistributedType.FSDP:
            return self.method
        state = self.accelerator.get_state_dict(self.model)
        if not self.accelerator.is_main_process:
            return None
        copy = type(self.method)(self.method.config)
        copy.load_state_dict(state)
        return copy.train()

    def forward(self, **arguments):
        """What the model returns."""
        autocast = self.bf16 and not self.is_deepspeed  # which autocasts by itself
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=autocast):
            return self.model(**arguments)

    def backward(self, loss: Tensor) -> None:
        if not self.is_deepspeed:
            self.accelerator.backward(loss)
            return
        self.model.set_gradient_accumulation_boundary(is_boundary=self.accelerator.sync_gradients)
        self.model.backward(loss)

    def clip_and_step(self, number: int, frozen: Collection[str], max_grad_norm: float | None, grad_clip: str) -> None:
        """An optimizer step once all parts of a batch have passed, nothing before.

        From the first step on whose gradients are not finite nothing moves any more; `bad_step` holds its number.

        Args:
            number: of the step.
            frozen: names in `freezable_parameters` whose parameters are not updated, not even by weight decay.
            max_grad_norm: largest norm of a gradient, or None.
            grad_clip: "per_parameter" or "global", of `CLIPS`.
        """
        if not self.accelerator.sync_gradients:
            return
        if self.is_deepspeed:
            self._deepspeed_step(number, frozen, max_grad_norm, grad_clip)
            return
        drop_gradients(self._parameters(frozen))
        gradients = [p.grad for p in self.method.student.parameters() if p.grad is not None]
        bad = self._judge(
            number, gradient_norms(gradients) if max_grad_norm is None else CLIPS[grad_clip](gradients, max_grad_norm)
        )
        if self.accelerator.distributed_type == DistributedType.FSDP:
            _clear(gradients, bad)
        else:
            self.optimizer.optimizer.found_inf = bad.float()  # on the device: the fused kernel passes the step over
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _judge(self, number: int, norms: Tensor) -> Tensor:
        """Whether this step or an earlier one is bad, without waiting for the device."""
        first = (self.bad_step < 0) & ~norms.isfinite().all()
        self.bad_step = torch.where(first, number, self.bad_step)
        return self.bad_step >= 0

    def _parameters(self, parts: Collection[str]) -> list[nn.Parameter]:
        return [p for part, parameters in self.method.freezable_parameters().items() if part in parts for p in parameters]

    def _deepspeed_step(self, number: int, frozen: Collection[str], max_grad_norm: float | None, grad_clip: str) -> None:
        from deepspeed.utils import safe_get_full_grad, safe_set_full_grad

        trained = [p for p in self.method.student.parameters() if p.requires_grad]
        gradients = {p: safe_get_full_grad(p).clone() for p in trained}
        for p in self._parameters(frozen):
            gradients[p].zero_()
        full = list(gradients.values())
        _clear(
            full, self._judge(number, gradient_norms(full) if max_grad_norm is None else CLIPS[grad_clip](full, max_grad_norm))
        )
        for p, gradient in gradients.items():
            safe_set_full_grad(p, gradient)
        self.model.step()
        if frozen:  # as if they had not been there: the step count of their moments does not advance either
            zero = self.model.optimizer
            for group, partition in zip(zero.param_groups, zero.single_partition_of_fp32_groups, strict=True):
                if group["name"] in frozen:
                    zero.optimizer.state[partition]["step"].zero_()


def _clear(gradients: list[Tensor], bad: Tensor) -> None:
    """Set gradients to zero if they are bad."""
    for gradient in gradients:
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        local.masked_fill_(bad, 0)


def repeated_blocks(network: nn.Module) -> list[str]:
    """Classes of the blocks that a network stacks: the units in which an engine shards it."""
    names = set()
    for module in network.modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and len(module) > 1:
            kinds = {type(child) for child in module}
            if len(kinds) == 1 and any(module[0].children()):
                names.add(kinds.pop().__name__)
    return sorted(names)
