import numpy as np
import pytest
import torch

from hssl_hf.objectives import pixel_targets, reconstruction


def test_patches_are_cut_row_by_row_with_channels_last():
    pixels = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    target = pixel_targets(pixels, (2, 3), normalize=False)
    assert target.shape == (2, 4, 18)
    for patch, (top, left) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
        expected = pixels[1, :, top : top + 2, left : left + 3].permute(1, 2, 0).flatten()
        assert torch.equal(target[1, patch], expected)


def test_normalized_patches_have_mean_0_and_unbiased_variance_1():
    target = pixel_targets(torch.randn(2, 3, 8, 8) * 4 + 1, (4, 4), normalize=True)
    np.testing.assert_allclose(target.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(target.var(-1), 1, atol=1e-4)


def test_reconstruction_is_the_mean_squared_error():
    output = reconstruction(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[0.0, 1.0]]]))
    assert output.loss.item() == pytest.approx(2.5) and output.losses["reconstruction"] is output.loss


@pytest.mark.parametrize("normalize", [False, True])
def test_loss_of_the_hidden_patches_written_out(normalize):
    """Section 3 of MAE (arXiv 2111.06377), patch by patch: the mean over pixels, then over hidden patches."""
    rng = np.random.default_rng(1)
    images, predictions, hidden = rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 4, 12)), rng.random((2, 4)) > 0.4
    errors = []
    for image, patch in zip(*np.nonzero(hidden), strict=True):
        top, left = 2 * (patch // 2), 2 * (patch % 2)
        pixels = [images[image, c, top + y, left + x] for y in range(2) for x in range(2) for c in range(3)]
        if normalize:
            pixels = (np.array(pixels) - np.mean(pixels)) / np.sqrt(np.var(pixels, ddof=1) + 1e-6)
        errors.append(np.mean((predictions[image, patch] - pixels) ** 2))
    target = pixel_targets(torch.from_numpy(images), (2, 2), normalize)
    loss = reconstruction(torch.from_numpy(predictions)[torch.from_numpy(hidden)], target[torch.from_numpy(hidden)]).loss
    assert loss.item() == pytest.approx(np.mean(errors), rel=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_equals_the_official_loss(golden, normalize):
    """MAE's own code on images of 64 pixels and patches of 16: over the hidden patches, with and without normalized pixels."""
    data = golden("base_methods")
    target = pixel_targets(torch.from_numpy(data["mae/imgs"]), (16, 16), normalize)
    if not normalize:
        np.testing.assert_allclose(target[0, :2], data["mae/patchify0"], atol=1e-6)
    hidden = torch.from_numpy(data["mae/mask"]) > 0
    loss = reconstruction(torch.from_numpy(data["mae/pred"])[hidden], target[hidden]).loss
    assert loss.item() == pytest.approx(float(data[f"mae/loss_normpix{int(normalize)}"]), rel=1e-5)
