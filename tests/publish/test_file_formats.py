"""Files are what their names promise."""

import json
from io import BytesIO

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from hssl_hf.publish.file_formats import FormatError, require_format, require_formats
from tests.faults import refused


def png() -> bytes:
    content = BytesIO()
    Image.new("RGB", (4, 4), (200, 0, 0)).save(content, "PNG")
    return content.getvalue()


def jpeg() -> bytes:
    content = BytesIO()
    Image.new("RGB", (4, 4)).save(content, "JPEG")
    return content.getvalue()


GOOD = {
    "curves.png": png(), "model.safetensors": save({"a": torch.zeros(3)}), "config.json": b"{}", "facts.yaml": b"a: 1",
    "README.md": "# é".encode(), "onnx/model.onnx": b"\x08\x0a", "onnx/model.onnx.data": b"anything",
}  # fmt: skip
BAD = [
    ("curves.png", jpeg()), ("curves.png", b"-----BEGIN"), ("curves.png", b""), ("figures/a.png", png()[:40]),
    ("figures/a.png", png() + b"more"), ("curves.png", b"<svg/>"), ("model.safetensors", b"PK\3\4"),
    ("model.safetensors", b""), ("model.safetensors", save({"a": torch.zeros(3)})[:-1]),
    ("model.safetensors", save({"a": torch.zeros(3)}) + b"more"), ("model.safetensors", b"\xff" * 99),
    ("model.safetensors", (4).to_bytes(8, "little") + b"[{}]"), ("config.json", b"{"), ("config.json", b"\x80\x04"),
    ("facts.yaml", b"\xff\xd8\xff"), ("README.md", b"a\0b"), ("onnx/model.onnx", b"GIF89a"), ("onnx/model.onnx", b""),
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_exports_write_passes(name):
    require_format(name, BytesIO(GOOD[name]))


@pytest.mark.fault("files of other formats")
@pytest.mark.parametrize(("name", "content"), BAD)
def test_other_content_is_refused(name, content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with refused(name, f"not a {name.rpartition('.')[2]} file"):
        require_formats({name: tmp_path / "file"})
    with pytest.raises(FormatError):
        require_format(name, BytesIO(content))


def test_long_headers_are_not_read():
    header = json.dumps({"a": 1}).encode()
    with refused("no header of safetensors"):
        require_format("model.safetensors", BytesIO((2**62).to_bytes(8, "little") + header))
