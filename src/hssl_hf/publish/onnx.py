"""Exported transformers models as ONNX files."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, ViTModel

from hssl_hf.errors import UserError

HIDDEN = "hidden_states"


class _NamedOutputs(nn.Module):
    """Wrapper with a tuple of outputs, as the ONNX export needs it: pixels -> the outputs of these names.

    `hidden_states` is the last one, the tokens of the last block in front of the final norm.
    """

    def __init__(self, model: nn.Module, names: list[str]):
        super().__init__()
        self.model, self.names = model, names
        self.arguments = {"interpolate_pos_encoding": True} if isinstance(model, ViTModel) else {}
        if HIDDEN in names:
            self.arguments["output_hidden_states"] = True

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        output = self.model(pixel_values, **self.arguments)
        return tuple(output[name][-1] if name == HIDDEN else output[name] for name in self.names)


def save_onnx(folder: Path, image_size: int, num_channels: int, *, before_norm: bool = False) -> None:
    """Write the model of a folder as `onnx/model.onnx`, for any batch size, and any image size that the model allows.

    The input `pixel_values` has the axes batch, channels, height and width; the outputs are `last_hidden_state`,
    `pooler_output` and, with `before_norm`, `hidden_states`: the tokens in front of the final norm, for a model that was
    trained without it.

    Raises:
        UserError: if onnxruntime or onnxscript is not installed.
    """
    try:
        import onnxruntime  # noqa: F401 (needed by the parity check)
        import onnxscript  # noqa: F401 (needed by torch.onnx)
    except ImportError as error:
        raise UserError(f"the ONNX export needs onnxruntime and onnxscript: pip install 'hssl-hf[onnx]' ({error})") from error
    kind = AutoConfig.from_pretrained(folder).model_type
    attention = {"attn_implementation": "eager"} if kind == "swin" else {}  # ONNX has no form of its fused attention
    names = ["last_hidden_state", "pooler_output", *([HIDDEN] if before_norm else [])]
    model = _NamedOutputs(AutoModel.from_pretrained(folder, **attention), names).eval()
    axes, size = {0: "batch"}, image_size
    if kind in ("vit", "convnext", "resnet"):
        axes |= {2: "height", 3: "width"}
        size *= 2  # at the training size the traced graph would lack a ViT's interpolation of position embeddings
    pixels = torch.zeros(2, num_channels, size, size)
    program = torch.onnx.export(
        model, (pixels,), dynamo=True, verbose=False, dynamic_shapes={"pixel_values": axes},
        input_names=["pixel_values"], output_names=names,
    )  # fmt: skip
    for node in program.model.graph.all_nodes():  # where in which file of this machine each was made
        node.metadata_props.clear()
    (folder / "onnx").mkdir()
    program.save(folder / "onnx" / "model.onnx")
