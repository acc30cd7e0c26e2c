"""Configuration of `HeadSearchForPreTraining`: an HSSL model with several candidates for its auxiliary head."""

from typing import Annotated

from hssl_hf.fields import Distinct, FieldError, Length
from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.models.configuration_two_branch import FAMILIES, Family


class HeadSearchConfig(HSSLConfig):
    """As `HSSLConfig`, with several heads at once.

    Args:
        candidates: families of auxiliary heads, at least two; `auxiliary` is not used.
    Raises:
        FieldError: for families that do not exist, and for what `HSSLConfig` refuses.
    """

    model_type = "hssl_search"

    candidates: Annotated[tuple[Family, ...], Length(2, len(FAMILIES)), Distinct()] = FAMILIES

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.shared_projection:
            raise FieldError(
                "shared_projection: expected false, since in a search base and candidate need their own projections"
            )
        if not any("auxiliary" in arrow for arrow in self.cls_arrows):
            arrows = list(self.cls_supervision)
            raise FieldError(
                f"cls_supervision: expected an arrow of the auxiliary head, by which a search compares, got {arrows}"
            )

    def describe(self) -> tuple[str, str]:
        heads = ", ".join(self.candidates)
        return "head search", f"a search among auxiliary heads: {self.objective} with {heads} at once"

    def heads_described_in(self) -> list[str]:
        return ["auxiliary/head", *(f"auxiliary/{family}" for family in self.candidates)]
