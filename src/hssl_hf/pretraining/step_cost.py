"""What a step costs beside memory: operations, bytes of logits, and seconds on this machine."""

import math
from dataclasses import replace
from functools import partial
from timeit import repeat

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hssl_hf.config.recipe import Recipe
from hssl_hf.data.views import Views, collate
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.pretraining.setup import build_model, forward_on_cpu
from hssl_hf.pretraining.step_memory import random_samples

MIN_IMAGES = 2  # images of a step; in-batch objectives compare them
OPERATIONS = 2e11  # of a step that is timed: a second or two on a few cores


def seconds_per_image(recipe: Recipe, operations: float, images: int) -> float:
    """Time steps with few images on this machine, with all cores.

    Args:
        operations: of an image.
        images: of a step of the run; the timed steps have fewer, so that they take a second or two.
    """
    model = build_model(recipe).train()
    count = max(2 * MIN_IMAGES, min(images, int(OPERATIONS / operations)))
    step = partial(_step, model, recipe, random_samples(recipe, model, count))
    return min(repeat(step, number=1, repeat=3)) / count  # the first call also allocates what libraries keep


def count_operations(recipe: Recipe) -> tuple[float, float]:
    """Floating point operations of an image, and bytes of its logits, without computing anything; no branch is dropped."""
    with torch.device("meta"):
        model = build_model(recipe).eval()
    views = collate(random_samples(recipe, model, MIN_IMAGES)).augment_and_normalize(recipe.views)
    logits = LogitBytes(getattr(model.config, "num_prototypes", None))
    corrected = {torch.ops.aten.convolution_backward: _convolution_backward}
    with (
        FlopCounterMode(display=False, custom_mapping=corrected) as counter,
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
    ):
        model.to_empty(device="cpu")
        views = replace(views, **{name: fake.from_tensor(value) for name, value in views.tensors().items()})
        with logits:
            loss = _loss(model, recipe, views)
        loss.backward()
    return counter.get_total_flops() / MIN_IMAGES, logits.bytes / MIN_IMAGES


def _convolution_backward(out, _, weight, *args, **kwargs) -> int:
    """Operations for the gradients of a convolution; PyTorch's own count takes grouped ones for dense.

    Args:
        out, weight: shapes (B, C', H, W) of the output and (C', C / groups, h, w) of the weights.
        args: the last one states which gradients are needed: of the input, of the weights, of the bias.
    """
    return 2 * math.prod(out) * math.prod(weight[1:]) * sum(args[-1][:2])


class LogitBytes(TorchDispatchMode):
    """Adds up the outputs of matrix products that have one column per prototype."""

    def __init__(self, prototypes: int | None):
        super().__init__()
        self.prototypes, self.bytes = prototypes, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        product = function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)
        if product and isinstance(output, Tensor) and output.shape[-1] == self.prototypes:
            self.bytes += output.nbytes
        return output


def _step(model: StudentTeacherPreTrainedModel, recipe: Recipe, samples: list[dict]) -> None:
    """Views, forward and backward as in training; gradients are then freed, as after an optimizer step."""
    _loss(model, recipe, collate(samples).augment_and_normalize(recipe.views)).backward()
    model.zero_grad(set_to_none=True)


def _loss(model: StudentTeacherPreTrainedModel, recipe: Recipe, views: Views) -> Tensor:
    return forward_on_cpu(model, recipe, views, recipe.optim.teacher_temperature[-1]).loss
