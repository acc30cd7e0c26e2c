"""Checkpoints in the official layouts with random values, and the outputs of the official networks for them.

Implemented from the published descriptions with plain torch and timm, without our modules.
"""

import argparse
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

WIDTH, PATCH, SIZE, HIDDEN, BOTTLENECK, K = 64, 8, 32, 40, 24, 30


def vit(seed: int, heads: int = 1) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=heads, num_classes=0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn_like(p) + (p.ndim == 1) * 0.5)
    return model.eval()


def mlp(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, BOTTLENECK)]
    return nn.Sequential(*layers)


def under(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value.clone() for name, value in module.state_dict().items()}


def logits(projection: nn.Module, g: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
    """Outputs of the weight-normalized last layer: lengths g times directions v."""
    return F.normalize(projection(tokens), dim=-1) @ (g * v / v.norm(dim=1, keepdim=True)).T


class Head(nn.Module):
    """The authors' ConvNeXt head of two blocks, which receives the tokens before the final norm."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.conv_blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "dwconv": nn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH),
                    "norm": nn.LayerNorm(WIDTH),
                    "pwconv1": nn.Linear(WIDTH, 4 * WIDTH),
                    "pwconv2": nn.Linear(4 * WIDTH, WIDTH),
                }
            )
            for _ in range(2)
        )
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 1 + N, C) -> normed (B, 1 + N, C): the mean of the map, and the map."""
        side = int(tokens.shape[1] ** 0.5)
        x = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        for number, block in enumerate(self.conv_blocks):
            y = block["norm"](block["dwconv"](x).permute(0, 2, 3, 1))
            y = block["pwconv2"](F.gelu(block["pwconv1"](y))).permute(0, 3, 1, 2)
            x = y if number == 0 else x + y
        return self.norm2(torch.cat([x.mean((2, 3))[:, None], x.flatten(2).transpose(1, 2)], dim=1))


def distillation(method: str) -> tuple[dict, dict]:
    """A checkpoint of DINO, iBOT or HSSL, and its modules by network."""
    networks, content = {}, {"epoch": 7, "args": argparse.Namespace(drop_path_rate=0.0, norm_last_layer=False)}
    content["optimizer"] = {"param_groups": [{"lr": np.float64(0.001)}]}  # schedules in numpy leave such values
    for seed, network in ((10, "student"), (20, "teacher")):
        torch.manual_seed(seed)
        modules = {"vit": vit(seed), "mlp": mlp(seed + 1), "g": torch.rand(K, 1) + 0.5, "v": torch.randn(K, BOTTLENECK)}
        state = under("backbone.", modules["vit"]) | under("head.mlp.", modules["mlp"])
        state |= {"head.last_layer.weight_g": modules["g"], "head.last_layer.weight_v": modules["v"]}
        if method != "dino":
            state |= {name.replace("last_layer", "last_layer2"): state[name] for name in list(state) if "last_layer" in name}
            if network == "student":
                state["backbone.masked_embed"] = torch.randn(1, WIDTH)
        if method == "hssl":
            modules |= {"head": Head(seed + 2), "mlp2": mlp(seed + 3)}
            state |= under("backbone.", modules["head"]) | under("head.mlp2.", modules["mlp2"])
            state["head.last_layer.weight"] = torch.randn(K, BOTTLENECK)  # computed from the others, and saved too
        networks[network] = modules
        prefix = "module." if network == "student" and method != "hssl" else ""
        content[network] = {prefix + name: value for name, value in state.items()}
    centers = {"center": torch.randn(1, K)} | ({} if method == "dino" else {"center2": torch.randn(1, 1, K)})
    content[{"dino": "dino_loss", "ibot": "ibot_loss", "hssl": "pretrain_loss"}[method]] = centers
    return content, networks


def moco_v3() -> tuple[dict, dict]:
    """A checkpoint of MoCo v3, and its encoders, projectors and predictor."""

    def layers(*sizes: int) -> nn.Sequential:
        modules = []
        for number, (a, b) in enumerate(pairwise(sizes)):
            last = number == len(sizes) - 2
            modules += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b, affine=not last), *([] if last else [nn.ReLU()])]
        return nn.Sequential(*modules)

    state, networks, positions = {}, {}, None
    for seed, network in ((30, "base_encoder"), (40, "momentum_encoder")):
        encoder, head = vit(seed, heads=2), layers(WIDTH, HIDDEN, HIDDEN, BOTTLENECK)
        positions = encoder.pos_embed if positions is None else positions
        encoder.pos_embed = nn.Parameter(positions.detach().clone())
        state |= under(f"module.{network}.", encoder) | under(f"module.{network}.head.", head)
        networks[network] = (encoder, head)
    networks["predictor"] = layers(BOTTLENECK, HIDDEN, BOTTLENECK)
    state |= under("module.predictor.", networks["predictor"])
    return {"epoch": 300, "arch": "vit_small", "state_dict": state, "optimizer": {}, "scaler": {}}, networks
