"""Figures of what was learned and of the images in training.

All but the views read an export, as users load it, and labeled images.
"""

from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from transformers import AutoConfig, AutoModel, BitImageProcessor

from hssl_hf.data.augmentation import ViewConfig
from hssl_hf.data.files import write_below
from hssl_hf.data.views import Views
from hssl_hf.evaluation.encoder import Encoder, load_encoder
from hssl_hf.evaluation.features import Representation
from hssl_hf.evaluation.images import LabeledImages
from hssl_hf.visualization.curves import png_of

SHOWN, NEIGHBORS, CANDIDATES, ENCODED_AT_ONCE = 8, 5, 2000, 256


def draw_export(
    export: Path,
    processor: BitImageProcessor,
    train: LabeledImages,
    test: LabeledImages,
    folder: Path,
    representation: Representation,
) -> None:
    """Principal components, attention and nearest neighbors, as far as the architecture has them.

    Args:
        export: folder of the stock model.
        processor: that goes with it.
        train: images among which neighbors are searched; the first 2000 are used.
        test: images to show; the first 8 are.
        folder: of the run; figures go to `figures/` in it.
        representation: what stands for an image.
    """
    encoder, _ = load_encoder(export)
    folder = folder / "figures"
    shown = list(islice(test, SHOWN))
    config = AutoConfig.from_pretrained(export)
    fixed_size = config.model_type == "swin" or (getattr(config, "pretrained_cfg", None) or {}).get("fixed_input_size", False)
    sizes = _enlarged(processor, 1 if fixed_size else 2)
    pixels = processor([image for image, _ in shown], return_tensors="pt", **sizes)["pixel_values"]
    images = _denormalized(pixels, processor.image_mean, processor.image_std)
    _components(encoder, pixels, images, folder / "components.png")
    if config.model_type == "vit":
        _attention(export, pixels, images, folder / "attention.png")
    _neighbors(encoder, processor, list(islice(train, CANDIDATES)), shown, representation, folder / "neighbors.png")


def draw_views(views: Views, config: ViewConfig, path: Path) -> None:
    """The first images of a batch as the student sees them: global views with hidden patches in gray, and local views.

    Args:
        views: after `Views.augment_and_normalize`.
        config: whose mean and std are taken back.
        path: where to.
    """
    rows = {
        f"{kind} view {number}": _denormalized(view[:SHOWN].float().cpu(), config.mean, config.std)
        for kind, pixels in (("global", views.pixel_values), ("local", views.local_pixel_values))
        if pixels is not None
        for number, view in enumerate(pixels, 1)
    }
    for row, masks in zip(rows.values(), [] if views.bool_masked_pos is None else views.bool_masked_pos, strict=False):
        hidden = F.interpolate(masks[:SHOWN, None].float(), size=row.shape[1:3], mode="nearest")[:, 0].bool().cpu()
        row[hidden.numpy()] = 0.5
    _grid(rows, path)


@torch.no_grad()
def _components(encoder: Encoder, pixels: Tensor, images: np.ndarray, path: Path) -> None:
    """The three directions in which patches differ most, over all shown images together, as red, green and blue."""
    patches = encoder(pixels)[1]
    flat = patches.flatten(0, 2)
    if len(flat) <= 3 or flat.shape[1] < 3:
        return
    _, _, directions = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    values = (flat - flat.mean(0)) @ directions[:3].T
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    colors = ((values - low) / (high - low).clamp_min(1e-9)).clamp(0, 1).unflatten(0, patches.shape[:3])
    _grid({"image": images, "components": colors.numpy()}, path)


@torch.no_grad()
def _attention(export: Path, pixels: Tensor, images: np.ndarray, path: Path) -> None:
    """From the class token to the patches, in the last block."""
    model = AutoModel.from_pretrained(export, attn_implementation="eager").eval()
    attention = model(pixels, output_attentions=True, interpolate_pos_encoding=True).attentions[-1][:, :, 0, 1:]
    side = pixels.shape[-1] // model.config.patch_size
    maps = attention.unflatten(2, (side, side)).transpose(0, 1)
    rows = {f"head {number}": (head / head.amax((1, 2), keepdim=True)).numpy() for number, head in enumerate(maps, 1)}
    _grid({"image": images, **rows}, path)


@torch.no_grad()
def _neighbors(
    encoder: Encoder, processor: BitImageProcessor, candidates: list, shown: list, representation: Representation, path: Path
) -> None:
    """Every shown image beside the most similar candidates; both are lists of image and label."""

    def features(pairs: list) -> Tensor:
        chunks = [pairs[first : first + ENCODED_AT_ONCE] for first in range(0, len(pairs), ENCODED_AT_ONCE)]
        pixels = (processor([image for image, _ in chunk], return_tensors="pt")["pixel_values"] for chunk in chunks)
        return F.normalize(torch.cat([representation(encoder, chunk) for chunk in pixels]), dim=1)

    nearest = (features(shown) @ features(candidates).T).topk(min(NEIGHBORS, len(candidates)), dim=1).indices
    columns = {"image": [image for image, _ in shown]}
    for number, indices in enumerate(nearest.T.tolist(), 1):
        columns[f"neighbor {number}"] = [candidates[index][0] for index in indices]
    pixels = {name: processor(images, return_tensors="pt")["pixel_values"] for name, images in columns.items()}
    _grid({name: _denormalized(value, processor.image_mean, processor.image_std) for name, value in pixels.items()}, path)


def _enlarged(processor: BitImageProcessor, factor: int) -> dict[str, dict[str, int]]:
    """Sizes of the same crop with more pixels, so that its patches are finer."""
    size = {"shortest_edge": processor.size["shortest_edge"] * factor}
    crop = {side: processor.crop_size[side] * factor for side in ("height", "width")}
    return {"size": size, "crop_size": crop}


def _denormalized(pixels: Tensor, mean, std) -> np.ndarray:
    """(B, C, H, W) normalized -> (B, H, W, 3) in [0, 1]: the first three channels, or the mean of fewer in gray."""
    mean, std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    values = (pixels * std + mean).clamp(0, 1)
    shown = values[:, :3] if values.shape[1] >= 3 else values.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return shown.permute(0, 2, 3, 1).numpy()


def _grid(rows: dict[str, np.ndarray], path: Path) -> None:
    """One column per image, one row per kind of image; in a folder of the run, `figures/`, which may be no link."""
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.1 * count + 1.0, 1.15 * len(rows)), layout="constrained")
    for (name, images), axes in zip(rows.items(), figure.subplots(len(rows), count, squeeze=False), strict=True):
        for axis, image in zip(axes, images, strict=True):
            axis.imshow(image, cmap="magma", interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[0].set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
    write_below(path.parents[1], f"{path.parent.name}/{path.name}", png_of(figure))
