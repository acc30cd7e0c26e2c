"""The stock model of a folder as an ONNX file."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, ViTModel

from hssl_hf.errors import UserError


class _TwoOutputs(nn.Module):
    """A stock model as ONNX knows it: pixels -> last_hidden_state, pooler_output."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.arguments = {"interpolate_pos_encoding": True} if isinstance(model, ViTModel) else {}

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values, **self.arguments)
        return output.last_hidden_state, output.pooler_output


def save_onnx(folder: Path, image_size: int) -> None:
    """Write the stock model of a folder as `onnx/model.onnx`, for any number of images, and any size where the model allows it.

    Raises:
        UserError: if the packages for it are not installed.
    """
    try:
        import onnxruntime  # noqa: F401 (the check needs it)
        import onnxscript  # noqa: F401 (torch needs it)
    except ImportError as error:
        raise UserError(f"ONNX needs more packages: pip install 'hssl-hf[onnx]' ({error})") from error
    kind = AutoConfig.from_pretrained(folder).model_type
    plain = {"attn_implementation": "eager"} if kind == "swin" else {}  # its fused attention cannot be written as ONNX
    model = _TwoOutputs(AutoModel.from_pretrained(folder, **plain)).eval()
    dynamic, size = {0: torch.export.Dim.DYNAMIC}, image_size
    if kind in ("vit", "convnext", "resnet"):
        dynamic |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        size *= 2  # at its own size the resampling of a ViT's positions would be left out
    program = torch.onnx.export(
        model, (torch.zeros(2, 3, size, size),), dynamo=True, verbose=False, dynamic_shapes={"pixel_values": dynamic},
        input_names=["pixel_values"], output_names=["last_hidden_state", "pooler_output"],
    )  # fmt: skip
    (folder / "onnx").mkdir()
    program.save(folder / "onnx" / "model.onnx")
