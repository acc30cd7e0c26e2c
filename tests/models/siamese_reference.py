"""SiameseIM once more, written from its formulas alone on a plain dictionary of tensors under official names.

It shares no code with the package: attention by matrix products, batch norm by means and variances, positions patch by patch
from the official six numbers of the geometry, the loss by its M × M matrix, and the step in the official order.
"""

import math

import torch

BATCH_NORMED = ("projector_decoder_blocks", "predictor_decoder_blocks")


def random_state(width=16, depth=2, projector=1, decoder=2, patch=8, side=4, seed=0) -> dict[str, torch.Tensor]:
    """A pre-training checkpoint in the official layout with random values, the teacher a little off the student."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=0.15):
        return torch.randn(*shape, generator=generator) * scale

    def block(name, batch_norm):
        state = {}
        for norm in ("norm1", "norm2"):
            prefix = f"{name}.{norm}.bn" if batch_norm else f"{name}.{norm}"
            state |= {f"{prefix}.weight": 1 + draw(width), f"{prefix}.bias": draw(width)}
            if batch_norm:
                state |= {f"{prefix}.running_mean": torch.zeros(width), f"{prefix}.running_var": torch.ones(width)}
                state[f"{prefix}.num_batches_tracked"] = torch.tensor(0)
        for layer, rows, columns in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            state[f"{name}.{layer}.weight"] = draw(rows * width, columns * width)
            state[f"{name}.{layer}.bias"] = draw(rows * width)
        return state

    table = torch.cat(
        [torch.zeros(1, width), torch.stack([grid_position(u, v, width) for u in range(side) for v in range(side)])]
    )
    state = {"cls_token": draw(1, 1, width), "mask_token": draw(1, 1, width)}
    state |= {"pos_embed": table[None].clone(), "decoder_pos_embed": table[None].clone()}
    state |= {"patch_embed.proj.weight": draw(width, 3, patch, patch), "patch_embed.proj.bias": draw(width)}
    for i in range(depth):
        state |= block(f"blocks.{i}", False)
    for i in range(projector):
        state |= block(f"projector_decoder_blocks.{i}", True)
    for i in range(decoder):
        state |= block(f"predictor_decoder_blocks.{i}", True)
    for name, columns in (("decoder_embed", 1), ("decoder_pred", 1), ("decoder_pos_mlp", 2)):
        state |= {f"{name}.weight": draw(width, columns * width), f"{name}.bias": draw(width)}
    twins = ("cls_token", "mask_token", "patch_embed", "blocks", "decoder_embed", "projector_decoder_blocks")
    copies = {f"mm_{name}": value.clone() for name, value in state.items() if name.startswith(twins)}
    return state | {k: v if "patch_embed" in k or not v.is_floating_point() else v * 1.05 for k, v in copies.items()}


def sines(value: float, width: int) -> torch.Tensor:
    angles = [value * 10000 ** (-k / (width // 2)) for k in range(width // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])


def grid_position(u: float, v: float, width: int) -> torch.Tensor:
    return torch.cat([sines(u, width // 2), sines(v, width // 2)])


def relative(geometry, side: int, width: int) -> torch.Tensor:
    """(6,) di, dj, dh, dw, flip, fj -> (side * side, 2 * width)."""
    di, dj, dh, dw, flip, fj = map(float, geometry)
    scale = torch.cat([sines(10 * math.log(dh), width // 2), sines(10 * math.log(dw), width // 2)])
    rows = []
    for u in range(side):
        for v in range(side):
            y = dh * (u + 0.5) + side * di - 0.5
            x = side * fj - dw * (v + 0.5) - 0.5 if flip else dw * (v + 0.5) + side * dj - 0.5
            rows.append(torch.cat([grid_position(y, x, width), scale]))
    return torch.stack(rows)


def norm(x, state, name):
    if f"{name}.bn.weight" in state:
        mean, variance = x.mean((0, 1)), x.var((0, 1), unbiased=False)
        return (x - mean) / (variance + 1e-5).sqrt() * state[f"{name}.bn.weight"] + state[f"{name}.bn.bias"]
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def block(x, state, name, heads):
    batch, count, width = x.shape
    qkv = linear(norm(x, state, f"{name}.norm1"), state, f"{name}.attn.qkv").view(batch, count, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mixed = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1) @ v
    x = x + linear(mixed.transpose(1, 2).reshape(batch, count, width), state, f"{name}.attn.proj")
    hidden = linear(norm(x, state, f"{name}.norm2"), state, f"{name}.mlp.fc1")
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(hidden, state, f"{name}.mlp.fc2")


def stack(x, state, name, heads):
    for i in range(len({key.split(".")[1] for key in state if key.startswith(f"{name}.")})):
        x = block(x, state, f"{name}.{i}", heads)
    return x


def encode(images, kept, state, prefix, heads, decoder_num_attention_heads):
    """Through encoder and projector; kept (B, K) positions or None for all."""
    weight = state[f"{prefix}patch_embed.proj.weight"]
    patches = torch.nn.functional.conv2d(images, weight, state[f"{prefix}patch_embed.proj.bias"], stride=weight.shape[-1])
    patches = patches.flatten(2).transpose(1, 2) + state["pos_embed"][:, 1:]
    if kept is not None:
        patches = torch.stack([row[index] for row, index in zip(patches, kept, strict=True)])
    x = torch.cat([state[f"{prefix}cls_token"].expand(len(images), -1, -1), patches], 1)
    x = linear(stack(x, state, f"{prefix}blocks", heads), state, f"{prefix}decoder_embed")
    return stack(x, state, f"{prefix}projector_decoder_blocks", decoder_num_attention_heads)


def loss_of(state, student_view, teacher_view, bool_masked_pos, geometry, heads, decoder_num_attention_heads, weight=0.02):
    """bool_masked_pos (B, h, w) bool, geometry (B, 6)."""
    side, width = bool_masked_pos.shape[1], state["cls_token"].shape[-1]
    kept = [(~mask.flatten()).nonzero().flatten() for mask in bool_masked_pos]
    x = encode(student_view, kept, state, "", heads, decoder_num_attention_heads)
    visible = torch.stack([row + state["decoder_pos_embed"][0, 1:][index] for row, index in zip(x[:, 1:], kept, strict=True)])
    queries = torch.stack([linear(relative(g, side, width), state, "decoder_pos_mlp") for g in geometry]) + state["mask_token"]
    x = stack(torch.cat([x[:, :1], visible, queries], 1), state, "predictor_decoder_blocks", decoder_num_attention_heads)
    prediction = linear(x, state, "decoder_pred")[:, -side * side :].flatten(0, 1)
    with torch.no_grad():
        target = encode(teacher_view, None, state, "mm_", heads, decoder_num_attention_heads)[:, 1:].flatten(0, 1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    covariance = target.T @ target / len(target)
    negative = (prediction @ covariance @ prediction.T).diagonal().mean()
    return ((prediction - target).square().sum(1).mean() + weight * negative) / width


def train(
    state, batches, momenta, heads, decoder_num_attention_heads, lr=1e-3, decay=0.05, largest=1.0
) -> tuple[dict, list[float]]:
    """The teacher moves, then forward, backward, clipping of the global norm, and AdamW."""
    state = {name: value.clone() for name, value in state.items()}
    frozen = ("mm_", "patch_embed", "pos_embed", "decoder_pos_embed")
    learned = {
        n: v.requires_grad_()
        for n, v in state.items()
        if v.is_floating_point() and not n.startswith(frozen) and "running" not in n
    }
    groups = [
        {"params": [v for n, v in learned.items() if v.ndim > 1], "weight_decay": decay},
        {"params": [v for n, v in learned.items() if v.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer, losses = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95)), []
    for batch, momentum in zip(batches, momenta, strict=True):
        with torch.no_grad():
            for name, value in state.items():
                if name.startswith("mm_") and value.is_floating_point() and "running" not in name:
                    value.mul_(momentum).add_(state[name[3:]] * (1 - momentum))
        loss = loss_of(state, *batch, heads, decoder_num_attention_heads)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(learned.values()), largest)
        optimizer.step()
        losses.append(loss.item())
    return {name: value.detach() for name, value in state.items()}, losses
