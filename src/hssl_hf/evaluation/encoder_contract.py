"""The contract of the evaluations: normalized pixels -> one vector per image and one per patch, of any block."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hssl_hf.errors import UserError, reason


class Loaded(NamedTuple):
    """A network of a library, and how to build another with its configuration.

    Args:
        name: of the folder or repository, for messages.
        network: the model of transformers or timm.
        rebuild: makes an untrained network of the same architecture.
    """

    name: str
    network: nn.Module
    rebuild: Callable[[], nn.Module]


class Encoder(nn.Module):
    """A frozen backbone of any library. Parameters need no gradient, so that none is computed; dropout is off.

    Behind its last block a backbone normalizes and pools. With `norm` the same is applied to every block of the last one's
    width, and `cls` is the class token, or what the model pools where it is built to pool. Without `norm` the outputs of a
    block stay as they are, and `cls` is the class token or the mean of the patches. So are the stages before the last in
    hierarchical architectures, for which no model has a norm.

    Args:
        loaded: the network.
        widths: channels of the patches, per block.
        strides: side of a patch in pixels, per block.
        image_size: (height, width) in pixels that the model was made for.
        norm: whether the representation that the model was trained for went through its final norm.
    Attributes:
        name, network, rebuild: as in `Loaded`.
        num_blocks, width, stride: number of blocks (of hierarchical architectures: stages); values of the last one.
    """

    def __init__(
        self, loaded: Loaded, widths: Sequence[int], strides: Sequence[int], image_size: tuple[int, int], norm: bool = True
    ):
        super().__init__()
        self.name, self.network, self.rebuild = loaded
        self.widths, self.strides, self.image_size, self.norm = tuple(widths), tuple(strides), tuple(image_size), norm
        self.num_blocks, self.width, self.stride = len(self.widths), self.widths[-1], self.strides[-1]
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The representation of images.

        Args:
            pixels: (B, C, H, W) normalized images of any size that the model takes, on any device. Pixels beyond the last
                full patch are not seen by those models that accept such sizes.
        Returns:
            cls (B, D) and patches (B, h, w, D), float32 on the device of the parameters.
        Raises:
            UserError: for a size that the model does not take.
        """
        return self.forward_intermediates(pixels, [-1], self.norm)[0]

    def forward_intermediates(self, pixels: Tensor, blocks: Sequence[int], norm: bool = True) -> list[tuple[Tensor, Tensor]]:
        """The representations by several blocks, in one pass.

        Args:
            pixels: as for `forward`.
            blocks: numbers from 0; negative ones count from the end.
            norm: apply what the model applies behind its last block.
        Returns:
            cls (B, D) and patches (B, h, w, D) of every block, in the order of `blocks`.
        Raises:
            UserError: for a size that the model does not take, or a block that it does not have.
        """
        if wrong := [block for block in blocks if not -self.num_blocks <= block < self.num_blocks]:
            raise UserError(
                f"{self.name!r} has {self.num_blocks} blocks, expected numbers from {-self.num_blocks} to "
                f"{self.num_blocks - 1}, got {wrong}"
            )
        numbers, size = [block % self.num_blocks for block in blocks], tuple(pixels.shape[-2:])
        parameter = next(self.parameters())
        try:
            outputs = self._encode(pixels.to(parameter.device, parameter.dtype), sorted(set(numbers)), norm)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, UserError) or size == self.image_size:
                raise
            raise self.size_error(size, reason(error)) from error
        return [tuple(values.float() for values in outputs[number]) for number in numbers]

    def _encode(self, pixels: Tensor, blocks: list[int], norm: bool) -> dict[int, tuple[Tensor, Tensor]]:
        """cls and patches of some blocks, which are numbered from 0 and in ascending order."""
        raise NotImplementedError

    def size_error(self, size: tuple[int, int], why: str) -> UserError:
        """An error that names the size that came and the one that the model is made for."""
        return UserError(
            f"{self.name!r} does not take images of {size[0]} x {size[1]} pixels: {why}; resize them to its own "
            f"{self.image_size[0]} x {self.image_size[1]}"
        )


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """A size as (height, width), which configurations write as one number or two."""
    return (value, value) if isinstance(value, int) else tuple(value)
