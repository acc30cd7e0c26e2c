"""Configuration of `HeadSearchForPreTraining`: an HSSL model with several candidates for its auxiliary head."""

from huggingface_hub.dataclasses import strict

from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.configuration_two_branch import FAMILIES, require_family


@strict
class HeadSearchConfig(HSSLConfig):
    """As `HSSLConfig`, with several heads at once.

    Args:
        candidates: families of auxiliary heads, at least two; `auxiliary` is not used.
    Raises:
        ValueError: for families that do not exist, and for what `HSSLConfig` refuses.
    """

    model_type = "hssl_search"

    candidates: list[str] | tuple[str, ...] = FAMILIES

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in self.candidates:
            require_family(name)
        if len(set(self.candidates)) < 2 or len(set(self.candidates)) < len(self.candidates):
            raise ValueError(f"expected at least two different candidates, got {list(self.candidates)}")
        if self.shared_projection:
            raise ValueError("in a search base and candidate need projections of their own; set shared_projection to false")

    def describe(self) -> tuple[str, str]:
        heads = ", ".join(self.candidates)
        return "head search", f"a search among auxiliary heads: {self.objective} with {heads} at once"

    def heads_described_in(self) -> list[str]:
        return ["auxiliary/head", *(f"auxiliary/{family}" for family in self.candidates)]
