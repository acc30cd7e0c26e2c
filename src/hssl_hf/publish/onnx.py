"""Exported transformers models as ONNX files."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, ViTModel

from hssl_hf.errors import UserError


class _TwoOutputs(nn.Module):
    """Wrapper with a tuple of outputs, as the ONNX export needs it: pixels -> last_hidden_state, pooler_output."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.arguments = {"interpolate_pos_encoding": True} if isinstance(model, ViTModel) else {}

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values, **self.arguments)
        return output.last_hidden_state, output.pooler_output


def save_onnx(folder: Path, image_size: int, num_channels: int) -> None:
    """Write the model of a folder as `onnx/model.onnx`, for any batch size, and any image size that the model allows.

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
    model = _TwoOutputs(AutoModel.from_pretrained(folder, **attention)).eval()
    dynamic, size = {0: torch.export.Dim.DYNAMIC}, image_size
    if kind in ("vit", "convnext", "resnet"):
        dynamic |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        size *= 2  # at the training size the traced graph would lack a ViT's interpolation of position embeddings
    pixels = torch.zeros(2, num_channels, size, size)
    program = torch.onnx.export(
        model, (pixels,), dynamo=True, verbose=False, dynamic_shapes={"pixel_values": dynamic},
        input_names=["pixel_values"], output_names=["last_hidden_state", "pooler_output"],
    )  # fmt: skip
    for node in program.model.graph.all_nodes():  # where in which file of this machine each was made
        node.metadata_props.clear()
    (folder / "onnx").mkdir()
    program.save(folder / "onnx" / "model.onnx")
