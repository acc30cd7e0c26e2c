"""Operations and logits are counted exactly, and steps are timed."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hssl_hf.pretraining.step_cost import _convolution_backward, count_operations, seconds_per_image
from tests.pretraining.test_estimate import recipe


def test_logits_are_counted_where_there_are_prototypes():
    """iBOT: one class token per view and branch, and the hidden patches, of student and teacher: K columns of 4 bytes each."""
    changes = ["model.objective=ibot", "model.num_prototypes=37", "model.cls_supervision=[base->base]", "model.auxiliary=null"]
    operations, logits = count_operations(recipe(*changes, "model.patch_supervision=[]"))
    assert logits == pytest.approx(4 * 37 * (2 + 2)) and operations > 1e6


def test_steps_are_timed():
    assert seconds_per_image(recipe(), operations=1e11, images=64) > 0


@pytest.mark.parametrize("groups", [1, 4])
def test_operations_of_convolutions_are_counted_with_their_groups(groups):
    """Forward 2 · outputs · weights per output; each of the two gradients as much again."""
    layer, x = torch.nn.Conv2d(4, 4, 3, padding=1, groups=groups), torch.randn(2, 4, 5, 5, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 4 * 5 * 5) * (4 // groups * 9)
