"""What a recipe sets, in the words of the papers' tables: printed name of a setting -> its value as the tables print it."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import timm
import torch

from hssl_hf.config.recipe import Recipe
from hssl_hf.engine.optim import build_optimizer
from hssl_hf.modules.projection_heads import contrastive_mlp
from hssl_hf.pretraining.training_schedule import TrainingSchedule

FAMILIES = {
    "convnext": "ConvNext", "poolformer": "PoolFormer", "resmlp": "ResMLP", "resnet": "ResNet", "swin": "Swin", "vit": "ViT",
}  # fmt: skip
METHODS = {"dino": "DINO", "ibot": "iBOT", "moco_v3": "MoCo"}
SUBLAYERS = {"token_mixer": "Token Mixer", "mlp": "MLP"}
ARCHITECTURES = {"vit_small_patch16_224": "ViT-S/16", "vit_base_patch16_224": "ViT-B/16", "resnet50": "ResNet-50"}
MASKS = {"block": "blockwise", "fixed_count_block": "blockwise", "random": "random"}


def base_method(recipe: Recipe) -> str:
    config = recipe.model_config()
    return METHODS[config.objective] if recipe.model_type() == "hssl" else config.describe()[0].replace("HSSL", "MAE")


def method(recipe: Recipe) -> str:
    return base_method(recipe) + ("+HSSL" if heads(recipe) else "")


def heads(recipe: Recipe) -> tuple[str, ...]:
    return getattr(recipe.model_config(), "families", ())


def arrows(recipe: Recipe) -> str:
    letters = {"auxiliary": "A", "base": "B"}
    return " + ".join(sorted(f"{letters[teacher]}→{letters[learner]}" for teacher, learner in recipe.model_config().cls_arrows))


def data(recipe: Recipe) -> tuple[str, int]:
    """Name and number of classes of the data."""
    assert recipe.data.path == recipe.probe.path == "ILSVRC/imagenet-1k" and recipe.data.classes == recipe.probe.classes
    if recipe.data.classes is None:
        return "ImageNet-1K", 1000
    path = Path(recipe.data.classes)
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {"imagenet_s300": "ImageNet-S300"}.get(path.stem, path.stem), len(" ".join(lines).split())


def strategy(recipe: Recipe) -> str:
    if recipe.model_config().shallow_block is not None:
        return "+DTS"
    return "+HSSL" if heads(recipe) else "baseline"


def loss_norm(recipe: Recipe) -> str:
    config = recipe.model_config()
    if recipe.model_type() == "hssl":  # projector and predictor of MoCo v3 end with it
        return "MoCo-like"
    mae_like = config.norm_pix_loss if config.target == "pixel" else config.loss_normalization == "layer_norm"
    return "MAE-like" if mae_like else "MoCo-like"


def head_norm(recipe: Recipe) -> str:
    if recipe.model_type() == "hssl":
        return "BN" if any("BatchNorm" in type(module).__name__ for module in contrastive_mlp(2, 2, 2).modules()) else "LN"
    return {"batch": "BN", "layer": "LN"}[recipe.model_config().decoder_norm]


def augmentations(recipe: Recipe) -> list[str]:
    views = recipe.views
    chances = {
        "RandomResizedCrop": views.global_crop_scale[0] < 1,
        "RandomHorizontalFlip": views.flip_probability,
        "ColorJitter": views.jitter.probability,
        "RandomGrayscale": views.gray_probability,
        "GaussianBlur": any(views.global_crop_blur),
        "Solarize": any(views.global_crop_solarize),
    }
    return [name for name, chance in chances.items() if chance]


@cache
def _backbone(name: str, kwargs: tuple):
    with torch.device("meta"):
        return timm.create_model(name, **dict(kwargs))


def backbone(recipe: Recipe):
    return _backbone(recipe.model_config().backbone, tuple((recipe.model.get("backbone_kwargs") or {}).items()))


def schedule(recipe: Recipe) -> TrainingSchedule:
    return TrainingSchedule(recipe, recipe.data.images_per_epoch)


def shape(values: Callable[[int], float], first: int, last: int) -> str:
    """Of a schedule between two steps."""
    start, quarter, end = (values(round(first + (last - first) * part)) for part in (0, 0.25, 1))
    cosine = end + (start - end) * (1 + math.cos(math.pi / 4)) / 2
    return "cosine" if start != end and math.isclose(quarter, cosine, rel_tol=1e-3) else "other"


SETTINGS: dict[str, Callable[[Recipe], object]] = {
    "Base method": base_method,
    "Method": method,
    "Data": lambda recipe: data(recipe)[0],
    "Datasets": lambda recipe: data(recipe)[1],
    "Architecture": lambda recipe: ARCHITECTURES[recipe.model_config().backbone],
    "Base Model": lambda recipe: ARCHITECTURES[recipe.model_config().backbone].partition("-")[0],
    "Auxiliary Head": lambda recipe: "+".join(FAMILIES[name] for name in heads(recipe)) or "Baseline",
    "Depth": lambda recipe: recipe.model_config().auxiliary_depth,
    "The first shortcut": lambda r: "Preservation" if r.model_config().auxiliary_first_shortcut else "Removal",
    "Supervision": arrows,
    "Structure": lambda r: " + ".join(sorted(SUBLAYERS[name] for name in r.model_config().auxiliary_sublayers)),
    "Shared proj.": lambda recipe: recipe.model_config().shared_projection,
    "Connection": lambda recipe: recipe.model_config().auxiliary_connection if heads(recipe) else "baseline",
    "Image-level": lambda recipe: ("auxiliary", "base") in recipe.model_config().cls_arrows,
    "Patch-level": lambda recipe: ("auxiliary", "base") in recipe.model_config().patch_arrows,
    "Strategy": strategy,
    "Global crops": lambda recipe: f"{len(recipe.views.global_crop_blur)}×{recipe.views.global_crop_size}",
    "Local crops": lambda recipe: f"{n}×{recipe.views.local_crop_size}" if (n := recipe.views.num_local_crops) else "without",
    "The number of local crops": lambda recipe: recipe.views.num_local_crops,
    "Cropping ratio for global crops": lambda recipe: list(recipe.views.global_crop_scale),
    "Cropping ratio for local crops": lambda recipe: list(recipe.views.local_crop_scale),
    "Epochs": lambda recipe: recipe.optim.epochs,
    "Batch size": lambda recipe: recipe.optim.batch_size,
    "Optimizer": lambda recipe: type(build_optimizer(torch.nn.Linear(1, 1), recipe.optim.betas)).__name__,
    "Base learning rate": lambda r: r.optim.base_learning_rate * 256 / r.optim.base_batch_size,
    "Peak learning rate": lambda recipe: round(schedule(recipe).learning_rate(schedule(recipe).warmup_end), 9),
    "Learning rate schedule": lambda r: shape(schedule(r).learning_rate, schedule(r).warmup_end, schedule(r).steps),
    "Warmup epochs": lambda recipe: recipe.optim.warmup_epochs,
    "Weight decay": lambda recipe: recipe.optim.weight_decay[0] if len(set(recipe.optim.weight_decay)) == 1 else None,
    "Adam β": lambda recipe: list(recipe.optim.betas),
    "Gradient clip": lambda recipe: recipe.optim.max_grad_norm,
    "Drop path rate": lambda recipe: recipe.model_config().drop_path_rate,
    "EMA coeff": lambda recipe: recipe.optim.teacher_momentum[0],
    "EMA schedule": lambda recipe: shape(schedule(recipe).momentum, 0, schedule(recipe).steps),
    "Layers": lambda recipe: len(backbone(recipe).blocks),
    "Hidden size": lambda recipe: backbone(recipe).embed_dim,
    "FFN inner hidden size": lambda recipe: backbone(recipe).blocks[0].mlp.fc1.out_features,
    "Attention heads": lambda recipe: backbone(recipe).blocks[0].attn.num_heads,
    "Patch size": lambda recipe: "×".join(map(str, backbone(recipe).patch_embed.patch_size)),
    "Input resolution": lambda recipe: f"{recipe.views.global_crop_size}×{recipe.views.global_crop_size}",
    "Data augment": augmentations,
    "Mask strategy": lambda recipe: MASKS[recipe.masks.shape],
    "Mask ratio": lambda recipe: recipe.masks.ratios[0] if recipe.masks.fixed_count else None,
    "target type": lambda recipe: getattr(recipe.model_config(), "target", "feature"),
    "different views": lambda recipe: getattr(recipe.model_config(), "views", "different") == "different",
    "color aug": lambda recipe: {"ColorJitter", "RandomGrayscale"} <= set(augmentations(recipe)),
    "mask type": lambda recipe: MASKS[recipe.masks.shape],
    "BN/LN in proj & dec": head_norm,
    "loss norm": loss_norm,
    "loss type": lambda r: getattr(r.model_config(), "level", None) or ("dense" if r.model_config().patch_arrows else "global"),
}
