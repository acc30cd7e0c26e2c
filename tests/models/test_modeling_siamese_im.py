import copy

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeCopyMode, FakeTensorMode
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from hssl_hf import SiameseIMConfig, SiameseIMForPreTraining, SiameseIMModel
from hssl_hf.modules.position_embeddings import sincos_position_embedding
from tests.conftest import MAE, checkpointing, siamese_views, tiny_siamese

VARIANTS = {
    "siamese_im": {},
    "layer norm": {"decoder_norm": "layer"},
    "moco normalization": {"loss_normalization": "batch_norm_l2"},
    "same view": {"views": "same"},
    "global": {"level": "global"},
    "global same view": {"level": "global", "views": "same"},
    "moco v3 with a mask": {"level": "global", "loss_normalization": "batch_norm_l2"},
    "pixels of another view": {"target": "pixel"},
    "mae": MAE,
    "predictions normalized": {"normalize_prediction": True},
    "patch embedding learned": {"freeze_patch_embed": False},
    "narrow decoder": {"decoder_hidden_size": 32, "final_norm": True},
}


def views_of(model, seed: int = 0, images: int = 4) -> dict:
    views = siamese_views(seed, images, model.num_views)
    return views if model.num_views == 2 else {k: v for k, v in views.items() if k != "crop_boxes"}


def step(model, views) -> torch.Tensor:
    optimizer = torch.optim.SGD([p for p in model.student.parameters() if p.requires_grad], lr=0.1)
    model.zero_grad()
    loss = model(**views).loss
    loss.backward()
    optimizer.step()
    model.update_teacher(0.9)
    return loss


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_student_parameter_moves_and_the_teacher_follows(variant):
    model = tiny_siamese(**VARIANTS[variant]).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    for seed in range(2):
        step(model, views_of(model, seed))
    fixed = ("base.model.pos_embed",) if not model.config.freeze_patch_embed else ("base.model.pos_embed", "patch_embed")
    unchanged = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert unchanged == {name for name in before if any(part in name for part in fixed)}
    assert all(p.grad is None and not p.requires_grad for n, p in model.named_parameters() if n.startswith("teacher"))
    assert (model.teacher is None) == (model.config.target == "pixel")


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_it_continues_identically(tmp_path, variant):
    model = tiny_siamese(**VARIANTS[variant]).train()
    step(model, views_of(model))
    model.save_pretrained(tmp_path)
    loaded, info = SiameseIMForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert [n for n, p in loaded.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    loaded.train()
    assert torch.equal(step(model, views_of(model, 1)), step(loaded, views_of(model, 1)))
    assert torch.equal(model(**views_of(model, 2)).loss, loaded(**views_of(model, 2)).loss)


def test_auto_classes_know_the_model(tmp_path):
    tiny_siamese().save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), SiameseIMConfig)
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path), SiameseIMForPreTraining)
    assert isinstance(AutoModel.from_pretrained(tmp_path), SiameseIMModel)


def test_hidden_patches_never_enter_the_student():
    """Masked pixels of the first view change nothing; visible ones do."""
    model = tiny_siamese().eval()
    views = siamese_views()
    expected = model(**views).prediction
    hidden = views["bool_masked_pos"][0].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    for region, same in ((hidden, True), (~hidden, False)):
        pixels = views["pixel_values"].clone()
        pixels[0] = torch.where(region, torch.randn_like(pixels[0]), pixels[0])
        prediction = model(**{**views, "pixel_values": pixels}).prediction
        assert torch.allclose(prediction, expected, atol=1e-6) == same


def test_visible_patches_are_encoded_as_among_all_patches():
    """Only the patches that are kept are embedded, and to the same values as by the convolution over all."""
    model = tiny_siamese(freeze_patch_embed=False)
    base, pixels, kept = model.student.base, torch.randn(2, 3, 32, 32), torch.tensor([[1, 6, 7], [0, 2, 15]])
    embedded = (base.model.patch_embed.proj(pixels).permute(0, 2, 3, 1) + base.positions((4, 4))).flatten(1, 2)
    chosen = torch.stack([row[index] for row, index in zip(embedded, kept, strict=True)])
    expected = base.norm(base.run_blocks(chosen))
    tokens, _ = base.encode_visible(pixels, kept)
    torch.testing.assert_close(torch.cat([tokens.cls[:, None], tokens.patches], 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["siamese_im", "same view", "global"])
def test_targets_come_from_the_teacher_and_the_second_view(variant):
    model = tiny_siamese(**VARIANTS[variant]).eval()
    with torch.no_grad():
        model.teacher.base.model.cls_token.add_(1.0)
    views = views_of(model)
    tokens, _ = model.teacher.base(views["pixel_values"][-1])
    tokens = model.teacher.projector(torch.cat([tokens.cls[:, None], tokens.patches.flatten(1, 2)], 1))
    expected = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
    expected = {"siamese_im": expected[:, 1:], "global": expected[:, :1]}.get(variant, expected[:, 1:])
    if variant == "same view":
        expected = torch.stack([row[mask.flatten()] for row, mask in zip(expected, views["bool_masked_pos"][0], strict=True)])
    output = model(**views)
    torch.testing.assert_close(output.target, expected, atol=1e-5, rtol=1e-5)
    assert output.prediction.shape == output.target.shape and not output.target.requires_grad


def test_mae_is_mae():
    """The student predicts the normalized pixels of the masked patches of its own view; nothing else enters the loss."""
    model, views = tiny_siamese(**MAE), siamese_views(views=1)
    output = model(pixel_values=views["pixel_values"], bool_masked_pos=views["bool_masked_pos"])
    pixels = views["pixel_values"][0].unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(4, 16, -1)
    hidden = pixels[views["bool_masked_pos"][0].flatten(1)].view(4, 10, -1)
    expected = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(output.target, expected)
    torch.testing.assert_close(output.loss, (output.prediction - expected).square().mean())
    decoder = model.student.decoder
    assert isinstance(model.student.base.norm, torch.nn.LayerNorm) and isinstance(decoder.norm, torch.nn.LayerNorm)
    assert model.student.base.model.patch_embed.proj.weight.requires_grad and decoder.prediction.out_features == 192


def test_predictions_depend_on_the_position_of_the_second_view():
    """The same pixels and mask with another geometry give other predictions."""
    model, views = tiny_siamese().eval(), siamese_views()
    elsewhere = {
        **views,
        "crop_boxes": views["crop_boxes"] + torch.tensor([0.0, 15.0, 0.0, 0.0, 0.0]) * torch.tensor([0, 1]).view(2, 1, 1),
    }
    assert not torch.allclose(model(**views).prediction, model(**elsewhere).prediction, atol=1e-4)


def test_initial_values_are_the_released_ones():
    """Xavier on fused queries, keys and values, zero biases, fixed positions, a random frozen patch embedding."""
    model = tiny_siamese(backbone_kwargs={"patch_size": 8, "embed_dim": 192, "depth": 1, "num_heads": 2})
    base = model.student.base.model
    bound = (6 / (4 * 192)) ** 0.5
    qkv = base.blocks[0].attn.qkv
    assert 0.99 * bound < qkv.weight.abs().max() <= bound and not qkv.bias.any()
    torch.testing.assert_close(base.pos_embed[0, 1:], sincos_position_embedding((4, 4), 192).flatten(0, 1), atol=0, rtol=0)
    assert not base.pos_embed[0, 0].any() and not base.pos_embed.requires_grad
    projection, fan = base.patch_embed.proj, 3 * 8 * 8
    assert 0.99 * (6 / (192 + fan)) ** 0.5 < projection.weight.abs().max() <= (6 / (192 + fan)) ** 0.5
    assert 0.9 * fan**-0.5 < projection.bias.abs().max() <= fan**-0.5 and not projection.weight.requires_grad
    for token in (base.cls_token, model.student.decoder.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.25)
    last = model.student.decoder.position_projection
    assert 0.99 * (6 / (3 * 192)) ** 0.5 < last.weight.abs().max() <= (6 / (3 * 192)) ** 0.5 and not last.bias.any()
    assert isinstance(model.student.base.norm, torch.nn.Identity)


def test_base_does_not_depend_on_projector_and_decoder():
    """Variants of a comparison start from the same base."""
    states = [tiny_siamese(seed=3, **variant).student.base.model.state_dict() for variant in VARIANTS.values()]
    assert all(torch.equal(state[name], value) for state in states for name, value in states[0].items())


def test_projector_and_decoder_do_not_depend_on_the_base():
    shallow = tiny_siamese(seed=3, backbone_kwargs={"patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2})
    for part in ("projector", "decoder"):
        pair = [model.student.get_submodule(part).state_dict() for model in (shallow, tiny_siamese(seed=3))]
        assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0]), part
    longer = tiny_siamese(seed=3, projector_depth=2)
    assert torch.equal(longer.student.decoder.prediction.weight, shallow.student.decoder.prediction.weight)


def test_predictions_are_normalized_where_the_variant_requires_it():
    """Layer norm without scale and shift, or batch norm and length 1; by default not at all."""
    lengths = {}
    for variant in ("siamese_im", "predictions normalized", "moco normalization"):
        output = tiny_siamese(**VARIANTS[variant])(**siamese_views())
        prediction = output.prediction.flatten(0, 1)
        lengths[variant] = prediction.square().sum(1)
        covariance = output.target.flatten(0, 1).T @ output.target.flatten(0, 1) / 64
        by_hand = (prediction - output.target.flatten(0, 1)).square().sum(1) + 0.02 * (
            prediction @ covariance * prediction
        ).sum(1)
        torch.testing.assert_close(output.loss, by_hand.mean() / 64, rtol=1e-4, atol=1e-5)
        assert (prediction.mean(1).abs().max() < 1e-5) == (variant == "predictions normalized")
    torch.testing.assert_close(lengths["moco normalization"], torch.ones(64), rtol=1e-4, atol=0)
    assert lengths["siamese_im"].std() > 1


def test_any_resolution_patch_and_size():
    kwargs = {"patch_size": 12, "embed_dim": 32, "depth": 1, "num_heads": 4}
    model = tiny_siamese(backbone_kwargs=kwargs, image_size=60, decoder_num_attention_heads=2)
    bool_masked_pos = (torch.rand(3, 25).argsort(1) < 11).view(1, 3, 5, 5)
    output = model(torch.randn(2, 3, 3, 60, 60), bool_masked_pos, crop_boxes=siamese_views(images=3)["crop_boxes"])
    assert output.prediction.shape == (3, 25, 32) and output.loss.isfinite()


def test_nothing_in_a_step_waits_for_the_device():
    """Fake tensors have no values: a step that needed one would fail."""
    mode, views = FakeTensorMode(), siamese_views()
    views["mask_indices"] = views["bool_masked_pos"].flatten().nonzero().flatten()
    with FakeCopyMode(mode):
        model, views = copy.deepcopy(tiny_siamese().train()), copy.deepcopy(views)
    with mode:
        model(**views).loss.backward()
        model.update_teacher(0.9)
        with pytest.raises(DynamicOutputShapeException):
            model(**{**views, "mask_indices": None})


def test_positions_from_the_loader_equal_computed_ones():
    model, views = tiny_siamese(), siamese_views()
    indices = views["bool_masked_pos"].flatten().nonzero().flatten()
    assert torch.equal(model.eval()(**views).loss, model(**views, mask_indices=indices).loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_boxes": None}, "two views need crop_boxes"),
        ({"pixel_values": torch.randn(1, 4, 3, 32, 32)}, "takes 2 global views, got 1"),
        ({"bool_masked_pos": torch.arange(64).view(1, 4, 4, 4) < 21}, "as many masked patches in every image, got"),
        ({"mask_indices": torch.arange(9)}, "in each of 4 images, got 9 altogether"),
        ({"pixel_values": torch.randn(2, 4, 3, 30, 30)}, "do not divide into patches"),
    ],
)
def test_invalid_inputs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_siamese()(**{**siamese_views(), **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet18", "backbone_kwargs": None}, "needs a vision transformer with a class token, got 'resnet18'"),
        ({"target": "pixel", "level": "global"}, "pixels are predicted patch by patch"),
        ({"decoder_num_hidden_layers": 0}, "decoder_num_hidden_layers: expected a whole number from 1 to 256, got 0"),
        ({"decoder_num_attention_heads": 7}, "set decoder_num_attention_heads"),
        ({"decoder_hidden_size": 18, "decoder_num_attention_heads": 2}, "decoder_hidden_size: expected a multiple of 4"),
    ],
)
def test_configurations_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_siamese(**arguments)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for enabled in (False, True):
        model = tiny_siamese(drop_path_rate=0.2).train()
        if enabled:
            checkpointing(model, "enable")()
            assert model.student.decoder.grad_checkpointing and model.student.projector.grad_checkpointing
        torch.manual_seed(0)
        model(**siamese_views()).loss.backward()
        gradients.append([p.grad for p in model.student.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("variant", ["siamese_im", "mae", "global"])
def test_bf16_stays_near_fp32(variant):
    model = tiny_siamese(**VARIANTS[variant])
    full = model(**views_of(model)).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(**views_of(model)).loss
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.03, atol=0.03)


def test_teacher_normalizes_with_its_own_batch():
    """In training the teacher's batch norms use its own batch and keep statistics of their own."""
    model = tiny_siamese().train()
    views = siamese_views()
    model(**views)
    student, teacher = (dict(net.projector.named_buffers()) for net in (model.student, model.teacher))
    name = "blocks.0.norm1.bn.running_mean"
    assert teacher[name].abs().sum() > 0 and not torch.allclose(student[name], teacher[name])
    before = teacher[name].clone()
    model.update_teacher(0.5)
    assert torch.equal(before, model.teacher.projector.get_buffer(name))


def test_pixels_have_no_teacher():
    model = tiny_siamese(target="pixel")
    with pytest.raises(ValueError, match="this method has no teacher"):
        model.encode(torch.randn(1, 3, 32, 32), "teacher")
    assert model.encode(torch.randn(1, 3, 32, 32)).patches.shape == (1, 4, 4, 64)


def test_accumulated_halves_of_mae_equal_the_full_batch():
    """Without statistics of the batch, two halves give the gradients of the full batch."""
    full, halves = tiny_siamese(**MAE), tiny_siamese(**MAE)
    views = views_of(full, images=6)
    full(**views).loss.backward()
    for half in (slice(0, 3), slice(3, 6)):
        (halves(**{name: value[:, half] for name, value in views.items()}).loss / 2).backward()
    for a, b in zip(full.student.parameters(), halves.student.parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_sizes_are_those_of_the_released_models():
    """Parameters of SiameseIM's and MAE's ViT-B/16, counted in the released code, without any storage."""
    with torch.device("meta"):
        siamese = SiameseIMForPreTraining(SiameseIMConfig())
        mae = SiameseIMForPreTraining(SiameseIMConfig(**{**MAE, "decoder_hidden_size": 512, "decoder_num_hidden_layers": 8}))
    count = lambda module, trained=(True, False): sum(p.numel() for p in module.parameters() if p.requires_grad in trained)  # noqa: E731
    positions = siamese.student.base.model.pos_embed.numel()
    assert count(siamese.student, (True,)) == 129_944_832
    assert count(siamese.student.base.model.patch_embed) == 590_592
    assert count(siamese.teacher) - positions == 100_412_928 - 768, "the released teacher has a mask token that nothing reads"
    assert count(mae.student) + 197 * 512 == 111_907_840, "ours keeps the decoder's fixed positions in a buffer"
