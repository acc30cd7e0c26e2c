"""Evaluation of exported backbones. It reads an export or a Hub repository and does not depend on training.

The contract is an `Encoder`: normalized pixels (B, C, H, W) -> cls (B, D) and patches (B, h, w, D).
"""
