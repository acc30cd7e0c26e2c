"""Evaluation of backbones. It reads an export, a repository of the Hub or a model of timm, and does not depend on training.

The contract is an `Encoder`: normalized pixels (B, C, H, W) -> cls (B, D) and patches (B, h, w, D), of the end or of any block.
"""
