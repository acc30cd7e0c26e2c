"""DINO, iBOT and HSSL checkpoints -> `HSSLForPreTraining`: student, teacher, heads, prototypes and centers.

The names of tensors are those of the released DINO and iBOT code and of the authors' HSSL code, which follows iBOT.
"""

import torch
from torch import Tensor

from hssl_hf.convert.official_checkpoint import Checkpoint, ConversionError
from hssl_hf.convert.state_dict import BASE_NAMES, base_config, count, load_strict, rename, require_tensor, strip_prefix
from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.modeling_hssl import HSSLForPreTraining

LICENSES = {"dino": "apache-2.0", "ibot": "apache-2.0", "hssl": "cc-by-nc-sa-4.0"}
BACKBONE = {
    "masked_embed": "base.mask_token",
    **BASE_NAMES,
    "norm.": "base.norm.",
    "norm2.": "auxiliary.norm.",
    "conv_blocks.": "auxiliary.blocks.",
}
BLOCK = {"dwconv": "depthwise", "norm": "norm", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"}  # of the ConvNeXt head
HEAD = {
    "mlp.": "heads.projections.base.",
    "mlp2.": "heads.projections.auxiliary.",
    "last_layer.weight_v": "heads.prototypes.weight_v",
    "last_layer.weight_g": "heads.prototypes.weight_g",
    "last_layer.parametrizations.weight.original1": "heads.prototypes.weight_v",
    "last_layer.parametrizations.weight.original0": "heads.prototypes.weight_g",
}
OURS_TO_OFFICIAL = {
    f"{network}.{ours}": f"{network}.{module}.{name}"
    for network in ("student", "teacher")
    for module, table in (("backbone", BACKBONE), ("head", HEAD))
    for name, ours in reversed(table.items())  # where two names map to one of ours, error messages show the first
}


def from_distillation(checkpoint: Checkpoint, method: str, num_heads: int | None = None) -> HSSLForPreTraining:
    """A full checkpoint of student and teacher, to continue training.

    Args:
        checkpoint: tensors under `student.`, `teacher.` and `loss.`.
        method: dino, ibot, or hssl (iBOT with a ConvNeXt head).
        num_heads: attention heads of the encoder; None for one per 64 channels.
    Raises:
        ConversionError: if a tensor is missing, unexpected or of another shape, or the checkpoint has separate prototypes
            for patches (iBOT's `shared_head false`).
    """
    config = _config(checkpoint, method, num_heads)
    model = HSSLForPreTraining(config)
    state = {}
    for name, value in checkpoint.state.items():
        ours = _rename(name, method)
        if ours is None:
            _require_shared_prototypes(name, value, checkpoint.state)
        elif not (ours.endswith("prototypes.weight_g") and config.norm_last_layer):
            state[ours] = value.flatten() if ours.startswith("objective.") else value
    load_strict(model, state, OURS_TO_OFFICIAL)
    model.freeze()
    return model


def base_from_distillation(checkpoint: Checkpoint, method: str, num_heads: int | None = None) -> HSSLForPreTraining:
    """A file that contains the backbone only: weights of student and teacher, with newly initialized heads.

    Raises:
        ConversionError: if a tensor is missing, unexpected or of another shape.
    """
    config = HSSLConfig(**base_config(checkpoint.state, num_heads, method), **_objective("dino"), license=LICENSES[method])
    model = HSSLForPreTraining(config)
    ours = {rename(name, BACKBONE).removeprefix("base."): value for name, value in checkpoint.state.items()}
    for network in (model.student, model.teacher):
        load_strict(network.base, ours, {new.removeprefix("base."): old for old, new in BACKBONE.items()})
    return model


def _config(checkpoint: Checkpoint, method: str, num_heads: int | None) -> HSSLConfig:
    student = strip_prefix(checkpoint.state, "student.")
    backbone = strip_prefix(student, "backbone.")
    hidden = require_tensor(student, "head.mlp.0.weight", 2, method).shape[0]
    size = require_tensor(student, "head.mlp.4.weight", 2, method).shape[0]
    lengths, directions = (_prototypes(student, f"heads.prototypes.{name}") for name in ("weight_g", "weight_v"))
    if directions is None:
        raise ConversionError(
            f"expected a checkpoint of {method}, but 'head.last_layer.weight_v' is missing; set another --method"
        )
    arguments = checkpoint.arguments
    norm_last_layer = bool(arguments["norm_last_layer"] if "norm_last_layer" in arguments else (lengths == 1).all())
    objective = _objective(method)
    if method == "hssl":
        objective["auxiliary_depth"] = count(backbone, "conv_blocks")
    return HSSLConfig(
        **base_config(backbone, num_heads, method),
        **objective,
        projection_hidden_size=hidden,
        projection_size=size,
        num_prototypes=len(directions),
        norm_last_layer=norm_last_layer,
        drop_path_rate=float(arguments.get("drop_path_rate", arguments.get("drop_path", 0.1))),
        license=LICENSES[method],
    )


def _prototypes(student: dict[str, Tensor], name: str) -> Tensor | None:
    """Lengths or directions of the prototypes, under any of their official names."""
    official = [f"head.{old}" for old, new in HEAD.items() if new == name]
    return next((value for name, value in student.items() if name in official), None)


def _objective(method: str) -> dict:
    """Objective and auxiliary head in the released code of a method."""
    if method == "hssl":
        return {"objective": "ibot", "auxiliary": "convnext"}
    return {"objective": method, "auxiliary": None}


def _rename(name: str, method: str) -> str | None:
    """Our name of a tensor; None for copies of others; unknown names are returned unchanged."""
    network, _, rest = name.partition(".")
    if network == "loss":
        branch = "auxiliary" if method == "hssl" else "base"
        table = {"center": f"cls_centers.{branch}.value", "center2": "patch_centers.base.value"}
        return f"objective.{table[rest]}" if rest in table else name
    module, _, rest = rest.partition(".")
    if module == "head":
        if rest.startswith("last_layer2.") or rest == "last_layer.weight":  # a copy of the prototypes, or computed from them
            return None
        ours = rename(rest, HEAD)
        return name if ours == rest else f"{network}.{ours}"
    ours = rename(rest, BACKBONE)
    if ours.startswith("auxiliary.blocks."):
        _, _, number, layer, *tail = ours.split(".")
        ours = ".".join(["auxiliary.blocks", number, BLOCK.get(layer, layer), *tail])
    return f"{network}.{ours}" if module == "backbone" and ours != rest else name


def _require_shared_prototypes(name: str, value: Tensor, state: dict[str, Tensor]) -> None:
    """Raise a ConversionError if there are separate prototypes for patches."""
    twin = name.replace("last_layer2.", "last_layer.")
    if "last_layer2." in name and (twin not in state or not torch.equal(value, state[twin])):
        raise ConversionError(
            f"{name} differs from the prototypes of the class token (shared_head false); expected one set of prototypes"
        )
