"""MAE with and without an auxiliary head: who reconstructs what, from what, and with whose gradient."""

import pytest
import torch
import torch.nn.functional as F

from hssl_hf import HSSLMAEConfig, HSSLMAEForPreTraining, SiameseIMConfig, SiameseIMForPreTraining
from hssl_hf.modules.visible_patches import scatter_visible
from hssl_hf.objectives import pixel_targets
from tests.conftest import TINY_VIT

DECODER = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}


def tiny(seed: int = 0, **changes) -> HSSLMAEForPreTraining:
    torch.manual_seed(seed)
    values = {"backbone": "vit_tiny_patch16_224", "backbone_kwargs": TINY_VIT, "image_size": 32, "auxiliary_depth": 1}
    return HSSLMAEForPreTraining(HSSLMAEConfig(**{**values, **DECODER, **changes})).train()


def views(seed: int = 0, images: int = 4) -> dict:
    """16 patches per image, 12 of them hidden, others in every image."""
    generator = torch.Generator().manual_seed(seed)
    bool_masked_pos = torch.stack([torch.randperm(16, generator=generator) < 12 for _ in range(images)]).view(1, images, 4, 4)
    return {"pixel_values": torch.randn(1, images, 3, 32, 32, generator=generator), "bool_masked_pos": bool_masked_pos}


def step(model, seed: int = 0):
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=0.01)
    output = model(**views(seed))
    output.loss.backward()
    optimizer.step()
    model.zero_grad()
    model.update_teacher(0.9)
    return output


@pytest.mark.parametrize("target", ["teacher", "student", "decoder"])
@pytest.mark.parametrize(
    ("auxiliary", "filler"),
    [(None, "token"), ("convnext", "token"), ("convnext", "zero"), ("resmlp", "token"), (["swin", "vit"], "token")],
)
def test_every_trainable_parameter_moves_and_the_teacher_follows(target, auxiliary, filler):
    model = tiny(auxiliary=auxiliary, representation_target=target, auxiliary_mask_fill=filler)
    assert (model.teacher is not None) == (target == "teacher" and auxiliary is not None)
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad or name.startswith("teacher")}
    for seed in range(2):
        output = step(model, seed)
    assert set(output.losses) == ({"pixels", "representations"} if auxiliary else {"pixels"})
    fixed = {"teacher.base.model.pos_embed"}
    unchanged = [name for name, p in model.named_parameters() if name in before and torch.equal(p, before[name])]
    assert set(unchanged) <= fixed
    torch.testing.assert_close(output.loss, sum(output.losses.values()))


def test_without_a_head_it_is_mae():
    """The MAE of siamese image modeling, with the same weights, has the same loss."""
    model = tiny(auxiliary=None)
    arguments = {"target": "pixel", "views": "same", "decoder_norm": "layer", "projector_depth": 0, "final_norm": True}
    other = SiameseIMForPreTraining(
        SiameseIMConfig(
            backbone="vit_tiny_patch16_224", backbone_kwargs=TINY_VIT, image_size=32, freeze_patch_embed=False,
            **arguments, **DECODER,
        )
    )  # fmt: skip
    state = {name.replace("student.pixels.", "student."): value for name, value in model.state_dict().items()}
    other.load_state_dict(state)
    torch.testing.assert_close(model(**views()).loss, other(**views()).loss)


def test_the_head_reads_visible_patches_at_their_positions():
    """Hidden pixels reach neither the head's map nor the base; the filler is at the masked positions."""
    model, seen = tiny(), views()
    hidden = seen["bool_masked_pos"][0][..., None].expand(-1, -1, -1, 192).flatten(1, 2)
    changed = pixel_targets(seen["pixel_values"][0], (8, 8), False) + 9.0 * hidden
    pixels = changed.view(4, 4, 4, 8, 8, 3).permute(0, 5, 1, 3, 2, 4).reshape(1, 4, 3, 32, 32)
    maps = []
    model.student.auxiliary.register_forward_pre_hook(lambda _, arguments: maps.append(arguments[0]))
    for each in (seen["pixel_values"], pixels):
        model(each, seen["bool_masked_pos"])
    first, second = maps[0], maps[1]
    torch.testing.assert_close(first, second)
    assert (first[seen["bool_masked_pos"][0]] == 0).all() and (first[~seen["bool_masked_pos"][0]] != 0).any(-1).all()


def test_scattered_patches_return_to_their_positions():
    visible, kept = torch.arange(1.0, 5.0).view(1, 4, 1), torch.tensor([[5, 0, 3, 2]])
    dense = scatter_visible(visible, kept, (2, 3), torch.tensor([[-1.0]]))
    assert dense.flatten().tolist() == [2, -1, 4, 3, -1, 1]


def test_representations_teach_the_base_and_not_the_head():
    """The base's prediction carries gradient into the base alone; pixels reach base and head."""
    for target in ("teacher", "student", "decoder"):
        model = tiny(representation_target=target)
        losses = model(**views()).losses
        losses["representations"].backward()
        assert all(p.grad is None for p in model.student.auxiliary.parameters())
        assert all(p.grad is None for p in model.student.pixels.parameters())
        assert model.student.base.norm.weight.grad.abs().sum() > 0
    model = tiny()
    model(**views()).losses["pixels"].backward()
    assert model.student.representations.decoder.prediction.weight.grad is None
    for layer in (model.student.auxiliary.blocks[0].mlp.fc1, model.student.base.model.blocks[0].mlp.fc1):
        assert layer.weight.grad.abs().sum() > 0


def test_the_target_is_the_output_of_the_teachers_head_for_the_unmasked_image():
    model, seen = tiny(), views()
    with torch.no_grad():
        for p in model.teacher.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    hidden = seen["bool_masked_pos"][0].flatten(1)
    _, features = model.teacher.base(seen["pixel_values"][0])
    patches = model.teacher.auxiliary(features).patches.flatten(1, 2)
    expected = torch.stack([F.layer_norm(image[mask], (64,)) for image, mask in zip(patches, hidden, strict=True)])
    positions = torch.stack([mask.nonzero().flatten() for mask in hidden])
    target, _ = model._representation_target(seen["pixel_values"][0], positions, torch.empty(0))
    torch.testing.assert_close(target, expected.detach())


def test_variants_start_from_the_same_base():
    plain, with_head = tiny(auxiliary=None), tiny()
    for name, value in plain.student.base.state_dict().items():
        assert torch.equal(value, with_head.student.base.state_dict()[name]), name


def test_saved_and_loaded_it_continues_identically(tmp_path):
    model = tiny()
    step(model)
    model.save_pretrained(tmp_path)
    again, info = HSSLMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(model(**views(3)).loss, again.train()(**views(3)).loss)
    assert not any(p.requires_grad for p in again.teacher.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auxiliary_connection": "parallel", "auxiliary": "resnet18"}, "expected 'serial'"),
        ({"representation_decoder_depth": 0}, "expected a whole number from 1 to 256, got 0"),
        ({"backbone": "resnet18", "backbone_kwargs": None}, "are for vision transformers, got 'resnet18'"),
        ({"decoder_num_attention_heads": 5}, "expected a divisor of decoder_hidden_size=32, got 5"),
    ],
)
def test_invalid_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
