"""Figures of what was learned and of the images in training.

All but the views read an export, as users load it, and labeled or unlabeled images that it was not trained to please.
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
from hssl_hf.data.views import Views
from hssl_hf.evaluation.encoder import Encoder, load_encoder
from hssl_hf.evaluation.features import LabeledImages, image_features

FOLDER = "figures"
SHOWN, NEIGHBORS, BANK = 8, 5, 2000


def draw_export(
    export: Path, processor: BitImageProcessor, bank: LabeledImages, queries: LabeledImages, folder: Path, kind: str = "cls"
) -> None:
    """Principal components, attention and nearest neighbors, as far as the architecture has them.

    Args:
        export: folder of the stock model.
        processor: that goes with it.
        bank: images among which neighbors are looked for; the first 2000 are.
        queries: images that are shown; the first 8 are.
        folder: of the run; figures go to `figures/` in it.
        kind: features that stand for an image, `image_features`.
    """
    encoder, _ = load_encoder(export)
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    shown = [image for image, _ in islice(iter(queries), SHOWN)]
    large = _enlarged(processor, 2 if _takes_any_size(export) else 1)
    _components(encoder, large, shown, place / "components.png")
    _attention(export, large, shown, place / "attention.png")
    _neighbors(encoder, processor, [image for image, _ in islice(iter(bank), BANK)], shown, kind, place / "neighbors.png")


def draw_views(views: Views, config: ViewConfig, path: Path) -> None:
    """The first images of a batch as the student sees them: global views with hidden patches in gray, and local views.

    Args:
        views: after `Views.augment_and_normalize`.
        config: whose mean and std are taken back.
        path: where to.
    """
    images = min(SHOWN, views.pixel_values.shape[1])
    rows = [_pixels(view[:images], config) for view in views.pixel_values]
    for row, masks in zip(rows, [] if views.bool_masked_pos is None else views.bool_masked_pos, strict=False):
        hidden = F.interpolate(masks[:images, None].float(), size=row.shape[1:3], mode="nearest")[:, 0].bool().cpu()
        row[hidden.numpy()] = 0.5
    names = [f"global view {number + 1}" for number in range(len(rows))]
    if views.local_pixel_values is not None:
        rows += [_pixels(view[:images], config) for view in views.local_pixel_values]
        names += [f"local view {number + 1}" for number in range(len(views.local_pixel_values))]
    path.parent.mkdir(exist_ok=True)
    _grid(rows, path, names)


@torch.no_grad()
def _components(encoder: Encoder, processor: BitImageProcessor, images: list[Tensor], path: Path) -> None:
    """The three directions in which patches differ most, over all shown images together, as red, green and blue."""
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    patches = encoder(pixels)[1]
    flat = patches.flatten(0, 2)
    if len(flat) <= 3 or flat.shape[1] < 3:
        return
    _, _, directions = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    values = (flat - flat.mean(0)) @ directions[:3].T
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    colors = ((values - low) / (high - low).clamp_min(1e-9)).clamp(0, 1).unflatten(0, patches.shape[:3])
    _grid([_shown(pixels, processor), colors.numpy()], path, ["image", "components"])


@torch.no_grad()
def _attention(export: Path, processor: BitImageProcessor, images: list[Tensor], path: Path) -> None:
    """From the class token to the patches, in the last block; left out where the model has no such attention."""
    if AutoConfig.from_pretrained(export).model_type != "vit":
        return
    model = AutoModel.from_pretrained(export, attn_implementation="eager").eval()
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    attention = model(pixels, output_attentions=True, interpolate_pos_encoding=True).attentions[-1][:, :, 0, 1:]
    side = pixels.shape[-1] // model.config.patch_size
    maps = attention.unflatten(2, (side, side)).transpose(0, 1)
    rows = [(head / head.amax((1, 2), keepdim=True)).numpy() for head in maps]
    _grid([_shown(pixels, processor), *rows], path, ["image", *(f"head {number + 1}" for number in range(len(rows)))])


@torch.no_grad()
def _neighbors(encoder, processor, bank: list[Tensor], shown: list[Tensor], kind: str, path: Path) -> None:
    """Every shown image beside those of the bank that are most similar."""

    def features(images: list[Tensor]) -> Tensor:
        parts = [images[start : start + 256] for start in range(0, len(images), 256)]
        found = [image_features(*encoder(processor(part, return_tensors="pt")["pixel_values"]), kind) for part in parts]
        return F.normalize(torch.cat(found), dim=1)

    nearest = (features(shown) @ features(bank).T).topk(min(NEIGHBORS, len(bank)), dim=1).indices
    columns = [shown, *([bank[index] for index in column] for column in nearest.T.tolist())]
    rows = [_shown(processor(column, return_tensors="pt")["pixel_values"], processor) for column in columns]
    names = ["image", *(f"neighbor {number + 1}" for number in range(len(rows) - 1))]
    _grid(rows, path, names)


def _takes_any_size(export: Path) -> bool:
    config = AutoConfig.from_pretrained(export)
    fixed = (getattr(config, "pretrained_cfg", None) or {}).get("fixed_input_size", False)
    return config.model_type != "swin" and not fixed


def _enlarged(processor: BitImageProcessor, factor: int) -> BitImageProcessor:
    """The same crop with more pixels, so that its patches are finer."""
    size = {"shortest_edge": processor.size["shortest_edge"] * factor}
    crop = {side: processor.crop_size[side] * factor for side in ("height", "width")}
    return type(processor)(size=size, crop_size=crop, image_mean=processor.image_mean, image_std=processor.image_std)


def _shown(pixels: Tensor, processor: BitImageProcessor) -> np.ndarray:
    return _denormalized(pixels, processor.image_mean, processor.image_std)


def _pixels(pixels: Tensor, config: ViewConfig) -> np.ndarray:
    return _denormalized(pixels.float().cpu(), config.mean, config.std)


def _denormalized(pixels: Tensor, mean, std) -> np.ndarray:
    """(B, 3, H, W) normalized -> (B, H, W, 3) in [0, 1]."""
    shape = (1, 3, 1, 1)
    return (pixels * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _grid(rows: list[np.ndarray], path: Path, names: list[str]) -> None:
    """One column per image, one row per kind of image."""
    count = len(rows[0])
    figure = Figure(figsize=(1.1 * count + 1.0, 1.15 * len(rows)), layout="constrained")
    for line, axes, name in zip(rows, figure.subplots(len(rows), count, squeeze=False), names, strict=True):
        for axis, image in zip(axes, line, strict=True):
            axis.imshow(image, cmap="magma", interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            for edge in axis.spines.values():
                edge.set_visible(False)
        axes[0].set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=110)
