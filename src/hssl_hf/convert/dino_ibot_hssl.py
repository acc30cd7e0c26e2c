"""DINO, iBOT and HSSL checkpoints -> `HSSLForPreTraining`: student, teacher, heads, prototypes and centers.

The names of tensors are those of the released DINO and iBOT code and of the authors' HSSL code, which follows iBOT.
"""

import torch

from hssl_hf.convert.official_checkpoint import Checkpoint, ConversionError
from hssl_hf.convert.state_dict import ENCODER, base_config, count, load_base, load_strict, rename, require_tensor, strip_prefix
from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.modeling_hssl import HSSLForPreTraining

LICENSES = {"dino": "apache-2.0", "ibot": "apache-2.0", "hssl": "cc-by-nc-sa-4.0"}
BACKBONE = {"masked_embed": "base.mask_token", **ENCODER, "norm2.": "auxiliary.norm."}
BLOCK = {"dwconv": "depthwise", "norm": "norm", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"}  # of the ConvNeXt head
LENGTHS = ("last_layer.weight_g", "last_layer.parametrizations.weight.original0")  # of the prototypes
DIRECTIONS = ("last_layer.weight_v", "last_layer.parametrizations.weight.original1")
HEAD = {
    "mlp.": "heads.projections.base.",
    "mlp2.": "heads.projections.auxiliary.",
    **dict.fromkeys(LENGTHS, "heads.prototypes.weight_g"),
    **dict.fromkeys(DIRECTIONS, "heads.prototypes.weight_v"),
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
    redundant = (".last_layer.weight", *(LENGTHS if config.norm_last_layer else ()))  # computed from the others, or fixed
    state = {}
    for name, value in checkpoint.state.items():
        if ".head.last_layer2." in name:
            shared = checkpoint.state.get(name.replace("last_layer2.", "last_layer."))
            if shared is None or not torch.equal(value, shared):
                raise ConversionError(
                    f"{name} differs from the prototypes of the class token (shared_head false); expected one set of prototypes"
                )
        elif not name.endswith(redundant):
            state[name] = value.flatten() if name.startswith("loss.") else value
    load_strict(model, state, _table(config, method))
    model.freeze()
    return model


def base_from_distillation(checkpoint: Checkpoint, method: str, num_heads: int | None = None) -> HSSLForPreTraining:
    """A file that contains the backbone only: weights of student and teacher, with newly initialized heads.

    Raises:
        ConversionError: if a tensor is missing, unexpected or of another shape.
    """
    base = base_config(checkpoint.state, num_heads, method)
    model = HSSLForPreTraining(HSSLConfig(**base, objective="dino", auxiliary=None, license=LICENSES[method]))
    for network in (model.student, model.teacher):
        load_base(network.base, checkpoint.state)
    return model


def _config(checkpoint: Checkpoint, method: str, num_heads: int | None) -> HSSLConfig:
    student = strip_prefix(checkpoint.state, "student.")
    backbone = strip_prefix(student, "backbone.")
    head = {rename(name, HEAD): value for name, value in strip_prefix(student, "head.").items()}
    lengths, directions = head.get("heads.prototypes.weight_g"), head.get("heads.prototypes.weight_v")
    if directions is None or (lengths is None and checkpoint.flag("norm_last_layer") is None):
        missing = "weight_v" if directions is None else "weight_g"
        raise ConversionError(
            f"expected a checkpoint of {method}, but 'head.last_layer.{missing}' is missing; set another --method"
        )
    if directions.ndim != 2:
        raise ConversionError(f"head.last_layer.weight_v: expected 2 axes, got {tuple(directions.shape)}")
    norm_last_layer = checkpoint.flag("norm_last_layer")
    objective = {"objective": method, "auxiliary": None}
    if method == "hssl":
        if not (depth := count(backbone, "conv_blocks")):
            raise ConversionError("expected a checkpoint of hssl, but there is no 'backbone.conv_blocks'; set another --method")
        objective = {"objective": "ibot", "auxiliary": "convnext", "auxiliary_depth": depth}
    return HSSLConfig(
        **base_config(backbone, num_heads, method),
        **objective,
        projection_hidden_size=require_tensor(student, "head.mlp.0.weight", 2, method).shape[0],
        projection_size=require_tensor(student, "head.mlp.4.weight", 2, method).shape[0],
        num_prototypes=len(directions),
        norm_last_layer=bool((lengths == 1).all()) if norm_last_layer is None else norm_last_layer,
        drop_path_rate=checkpoint.number("drop_path_rate", "drop_path", default=0.1),
        license=LICENSES[method],
    )


def _table(config: HSSLConfig, method: str) -> dict[str, str]:
    """Official names -> ours."""
    blocks = {
        f"conv_blocks.{number}.{name}.": f"auxiliary.blocks.{number}.{ours}."
        for number in range(config.auxiliary_depth)
        for name, ours in BLOCK.items()
    }
    names = {
        f"{network}.{module}.{name}": f"{network}.{ours}"
        for network in ("student", "teacher")
        for module, table in (("backbone", BACKBONE | blocks), ("head", HEAD))
        for name, ours in table.items()
    }
    branch = "auxiliary" if method == "hssl" else "base"
    centers = {"center": f"cls_centers.{branch}.value", "center2": "patch_centers.base.value"}
    return names | {f"loss.{name}": f"objective.{ours}" for name, ours in centers.items()}
