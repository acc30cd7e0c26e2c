"""iBOT as others write it, for comparison: straight from the paper in plain PyTorch, and of lightly's modules."""

from collections.abc import Iterable

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROTOTYPES, HIDDEN, BOTTLENECK = 8192, 2048, 256
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, MOMENTUM, CLIP = 0.1, 0.04, 0.996, 3.0


def make_views(images: int) -> tuple[Tensor, Tensor, Tensor]:
    """2 global and 10 local views, and masks with a block of 8×7 patches on every second global view."""
    generator = torch.Generator().manual_seed(0)
    globals_ = torch.randn(2, images, 3, 224, 224, generator=generator)
    locals_ = torch.randn(10, images, 3, 96, 96, generator=generator)
    masks = torch.zeros(2, images, 14, 14, dtype=torch.bool)
    masks[0, ::2, 3:11, 2:9] = masks[1, 1::2, 5:13, 6:13] = True
    return globals_, locals_, masks


class Head(nn.Module):
    """DINO's projection head: three layers, then weight-normalized prototypes."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, BOTTLENECK)
        )
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(BOTTLENECK, PROTOTYPES, bias=False))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(F.normalize(self.mlp(tokens), dim=-1))


class Network(nn.Module):
    """A timm ViT and one head for class and patch tokens, which runs on every token."""

    def __init__(self, drop_path: float):
        super().__init__()
        self.vit = timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path)
        self.head = Head(self.vit.num_features)
        self.mask_token = nn.Parameter(torch.zeros(self.vit.num_features))

    def forward(self, pixels: Tensor, masks: Tensor | None = None) -> Tensor:
        patches = self.vit.patch_embed(pixels)
        if masks is not None:
            patches = torch.where(masks[..., None], self.mask_token.to(patches.dtype), patches)
        return self.head(self.vit.norm(self.vit.blocks(self.vit._pos_embed(patches))))


def straightforward_step(images: int, drop_path: float, autocast):
    """A training step of iBOT: heads on all tokens, one cross-entropy per pair of views, loops over parameters."""
    student, teacher = Network(drop_path), Network(0.0)
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    globals_, locals_, masks = make_views(images)
    centers = {"cls": torch.zeros(PROTOTYPES), "patch": torch.zeros(PROTOTYPES)}

    def step() -> None:
        with autocast():
            with torch.no_grad():
                teacher_out = teacher(globals_.flatten(0, 1))
            global_out = student(globals_.flatten(0, 1), masks.flatten(0, 1))
            local_out = student(locals_.flatten(0, 1))
        teacher_out, global_out, local_out = teacher_out.float(), global_out.float(), local_out.float()
        loss = _all_pairs(teacher_out, global_out, local_out, masks, centers)
        optimizer.zero_grad()
        loss.backward()
        clip_in_a_loop(p.grad for p in student.parameters() if p.grad is not None)
        optimizer.step()
        update_teacher_in_a_loop(zip(student.parameters(), teacher.parameters(), strict=True))
        for name, batch in (("cls", teacher_out[:, 0].mean(0)), ("patch", teacher_out[:, 1:].mean((0, 1)))):
            centers[name] = centers[name] * 0.9 + batch * 0.1

    return step


def _all_pairs(teacher_out: Tensor, global_out: Tensor, local_out: Tensor, masks: Tensor, centers: dict) -> Tensor:
    cls_targets = F.softmax((teacher_out[:, 0] - centers["cls"]) / TEACHER_TEMPERATURE, dim=-1).chunk(2)
    patch_targets = F.softmax((teacher_out[:, 1:] - centers["patch"]) / TEACHER_TEMPERATURE, dim=-1).chunk(2)
    cls_logits = (torch.cat([global_out[:, 0], local_out[:, 0]]) / STUDENT_TEMPERATURE).chunk(12)
    patch_logits = (global_out[:, 1:] / STUDENT_TEMPERATURE).chunk(2)
    cls_loss, patch_loss, pairs = 0.0, 0.0, 0
    for query, target in enumerate(cls_targets):
        for view, logits in enumerate(cls_logits):
            if view == query:
                entropies = -(patch_targets[query] * F.log_softmax(patch_logits[view], dim=-1)).sum(-1)
                masked = masks[view].flatten(1).float()
                patch_loss = patch_loss + ((entropies * masked).sum(-1) / masked.sum(-1).clamp(min=1)).mean() / 2
            else:
                cls_loss = cls_loss - (target * F.log_softmax(logits, dim=-1)).sum(-1).mean()
                pairs += 1
    return cls_loss / pairs + patch_loss


def clip_in_a_loop(gradients: Iterable[Tensor]) -> None:
    """Clip one gradient after the other; the host waits for each norm."""
    for gradient in gradients:
        scale = CLIP / (gradient.norm(2).item() + 1e-6)
        if scale < 1:
            gradient.mul_(scale)


@torch.no_grad()
def update_teacher_in_a_loop(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Move each parameter of the teacher towards the student's."""
    for source, target in pairs:
        target.mul_(MOMENTUM).add_(source, alpha=1 - MOMENTUM)


def lightly_step(images: int, drop_path: float, autocast):
    """A training step of iBOT built from lightly's modules, with its head on class tokens and masked patches only."""
    from lightly.loss import DINOLoss, IBOTPatchLoss
    from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM
    from lightly.models.utils import update_momentum

    def network(drop_path: float) -> tuple[nn.Module, nn.Module]:
        vit = timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path)
        head = DINOProjectionHead(vit.num_features, HIDDEN, BOTTLENECK, PROTOTYPES, norm_last_layer=False)
        return MaskedVisionTransformerTIMM(vit, antialias=False), head

    (student, student_head), (teacher, teacher_head) = network(drop_path), network(0.0)
    for source, target in ((student, teacher), (student_head, teacher_head)):
        target.load_state_dict(source.state_dict())
        target.requires_grad_(False)
    parameters = [*student.parameters(), *student_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    cls_loss, patch_loss = DINOLoss(PROTOTYPES), IBOTPatchLoss(PROTOTYPES)
    globals_, locals_, masks = make_views(images)
    grid = masks.flatten(0, 1)
    mask = torch.cat([torch.zeros(len(grid), 1, dtype=torch.bool), grid.flatten(1)], dim=1)

    def step() -> None:
        update_momentum(student, teacher, m=MOMENTUM)
        update_momentum(student_head, teacher_head, m=MOMENTUM)
        with autocast():
            with torch.no_grad():
                teacher_tokens = teacher.encode(globals_.flatten(0, 1))
                teacher_cls, teacher_patches = teacher_head(teacher_tokens[:, 0]), teacher_head(teacher_tokens[mask])
            tokens = student.encode(globals_.flatten(0, 1), mask=mask)
            local_cls = student_head(student.encode(locals_.flatten(0, 1))[:, 0])
            student_cls, student_patches = student_head(tokens[:, 0]), student_head(tokens[mask])
        views = [*student_cls.float().chunk(2), *local_cls.float().chunk(10)]
        loss = cls_loss(list(teacher_cls.float().chunk(2)), views)
        loss = loss + patch_loss(teacher_patches.float(), student_patches.float(), grid)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()

    return step
