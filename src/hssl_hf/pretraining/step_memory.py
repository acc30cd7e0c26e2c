"""The memory of a step, from its tensors.

They are followed through forward and backward passes on fake tensors, which have shapes but no values. So the step is one with
the images of the run, whatever time and memory it would take, and no part of it is hidden by a larger one.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from weakref import finalize

import timm
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from hssl_hf.config.recipe import Recipe
from hssl_hf.data.views import Views, collate
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.pretraining.setup import build_augmentation, build_model, forward_on_cpu

PHOTOGRAPH = (375, 500)
MASKS_DRAWN = 64  # images whose masks are drawn for the mean number of masked patches
WEIGHT, OTHER = "weight", "other"


@dataclass(frozen=True)
class Moment:
    """Bytes that exist at one time of a step, beside weights, buffers and optimizer.

    Args:
        other: activations, views, outputs and what is needed for the next operation.
        blocks: gradients of parameters in the blocks that a network stacks.
        rest: gradients of all other parameters.
    """

    other: int
    blocks: int
    rest: int


class LiveTensors(TorchDispatchMode):
    """Follows which tensors exist while fake ones are computed. Operations on real tensors, on the host, are carried out.

    Stochastic depth keeps as many samples of every block as it does on average.

    Args:
        model: whose weights and buffers are not counted.
        blocks: names of the classes of stacked blocks.
    """

    def __init__(self, model: StudentTeacherPreTrainedModel, blocks: Iterable[str]):
        super().__init__()
        self.kinds: dict[int, str] = {}  # by storage
        self.live = {WEIGHT: 0, OTHER: 0, "blocks": 0, "rest": 0}
        self.peaks: dict[tuple[int, int], int] = {}  # of the others, by bytes of gradients
        for tensor in (*model.parameters(), *model.buffers()):
            self._follow(tensor, WEIGHT)
        stacked = {p for module in model.modules() if type(module).__name__ in blocks for p in module.parameters()}
        for p in model.parameters():
            if p.requires_grad:
                kind = "blocks" if p in stacked else "rest"
                p.register_post_accumulate_grad_hook(lambda p, kind=kind: self._classify(p.grad, kind))

    @property
    def moments(self) -> tuple[Moment, ...]:
        """For every amount of gradients the moment with the most of all else."""
        return tuple(Moment(other, *gradients) for gradients, other in self.peaks.items())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        drops = function is torch.ops.aten.rand.default and len(args[0]) == 1  # which samples stochastic depth keeps
        if drops or (inputs and not any(isinstance(value, FakeTensor) for value in inputs)):
            with _disable_current_modes():
                return torch.linspace(0, 1, args[0][0]) if drops else function(*args, **(kwargs or {}))
        outputs = function(*args, **(kwargs or {}))
        behind = inputs[0].nbytes if function is torch.ops.aten.mse_loss.default else 0  # its result, before the mean
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor):
                self._follow(output, OTHER, behind)
        self._record()
        return outputs

    def _follow(self, tensor: Tensor, kind: str, behind: int = 0) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() + behind
        if key not in self.kinds:
            self.kinds[key] = kind
            self.live[kind] += size
            finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self.live[self.kinds.pop(key)] -= size

    def _classify(self, gradient: Tensor, kind: str) -> None:
        storage = gradient.untyped_storage()
        self.live[self.kinds[storage._cdata]] -= storage.nbytes()
        self.live[kind] += storage.nbytes()
        self.kinds[storage._cdata] = kind
        self._record()

    def _record(self) -> None:
        gradients = self.live["blocks"], self.live["rest"]
        self.peaks[gradients] = max(self.peaks.get(gradients, 0), self.live[OTHER])


def follow_step(recipe: Recipe, images: int, processes: int = 1) -> tuple[Moment, ...]:
    """What exists in the course of a step of the training loop, in one process.

    Args:
        images: of a micro-batch of the process.
        processes: whose statistics and negatives are exchanged, in steps that take memory too.
    """
    with torch.device("meta"):
        model = build_model(recipe)
    sample = collate(random_samples(recipe, model, 1)).augment_and_normalize(recipe.views)
    masked = round(images * _mean_masked_patches(recipe, model))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model = model.to_empty(device="cpu").train()
    accumulates = recipe.optim.gradient_accumulation_steps > 1
    with _as_one_of(processes), fake, LiveTensors(model, model._no_split_modules) as live:
        for _ in range(2):  # the second micro-batch is computed beside the output of the first, as in the loop
            views = _enlarge(sample, images, masked)
            output = forward_on_cpu(model, recipe, views, recipe.optim.teacher_temperature[-1])
            output.loss.backward()
            if not accumulates:
                model.zero_grad(set_to_none=True)
    return live.moments


@contextmanager
def attention_as_in_training(recipe: Recipe, on_device: bool) -> Iterator[None]:
    """Build models with the attention that a run has; on processors in bf16 it is the one that keeps a table of weights."""
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(on_device or recipe.optim.mixed_precision != "bf16")
    try:
        yield
    finally:
        timm.layers.set_fused_attn(before)


@contextmanager
def _as_one_of(processes: int) -> Iterator[None]:
    """Let collective operations believe that there are so many processes; nothing is communicated."""
    if processes == 1:
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def random_samples(recipe: Recipe, model: StudentTeacherPreTrainedModel, count: int) -> list[dict]:
    """The samples of a loader for random photographs."""
    augmentation = build_augmentation(recipe, model)
    generator = torch.Generator().manual_seed(0)
    size = (model.config.num_channels, *PHOTOGRAPH)
    images = [torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for _ in range(count)]
    return [{**augmentation(image, 0, number), "corrupt": []} for number, image in enumerate(images)]


def _mean_masked_patches(recipe: Recipe, model: StudentTeacherPreTrainedModel) -> float:
    """Masked patches of an image, in all of its views."""
    augmentation = build_augmentation(recipe, model)
    masks = [augmentation.draw(PHOTOGRAPH, 0, number).masks for number in range(MASKS_DRAWN)]
    return sum(0 if mask is None else int(mask.sum()) for mask in masks) / MASKS_DRAWN


def _enlarge(sample: Views, images: int, masked: int) -> Views:
    """Empty views of so many images and masked patches, like those of one image."""
    sizes = {name: (value.shape[0], images, *value.shape[2:]) for name, value in sample.tensors().items()}
    sizes |= {"mask_indices": (masked,)} if sample.mask_indices is not None else {}
    values = {name: torch.empty(size, dtype=getattr(sample, name).dtype) for name, size in sizes.items()}
    return replace(sample, **values)
