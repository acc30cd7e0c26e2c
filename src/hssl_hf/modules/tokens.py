"""The two small types that carry representations from the networks to the objectives."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Tokens(NamedTuple):
    """The representations of an image by a network.

    Args:
        cls: (..., C) the image-level representation: class token, or pooled patches.
        patches: (..., h, w, C) one representation per patch, or None where they are not needed.
    """

    cls: Tensor
    patches: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Tokens":
        return Tokens(function(self.cls), None if self.patches is None else function(self.patches))


class Branches(NamedTuple):
    """The heterogeneous pair: the base model and the auxiliary head behind it (None without a head).

    `shallow` are the tokens of an early block of the base, where later ones supervise it.
    """

    base: Tokens
    auxiliary: Tokens | None = None
    shallow: Tokens | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Branches":
        return Branches(*(None if tokens is None else tokens.map(function) for tokens in self))
