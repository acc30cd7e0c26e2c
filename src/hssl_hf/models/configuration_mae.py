"""Configuration of `HSSLMAEForPreTraining`: masked image modeling with and without an auxiliary head."""

from typing import Annotated, Literal

from hssl_hf.fields import Depth, FieldError, Range, Width
from hssl_hf.models.configuration_base import check_decoder
from hssl_hf.models.configuration_two_branch import TwoBranchConfig
from hssl_hf.publish.citations import CITATIONS


class HSSLMAEConfig(TwoBranchConfig):
    """Masked image modeling of one base model with one auxiliary head: MAE + HSSL, or MAE where `auxiliary` is None.

    The head reconstructs the pixels of the masked patches, the base the head's representation of them, each by its own decoder.

    Args:
        (those of `TwoBranchConfig`)
        auxiliary_mask_fill: what fills the masked patches in the map that the head reads: a learned token, or zero.
        norm_pix_loss: mean 0 and variance 1 within every patch of pixels.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads: of the decoder for pixels.
        representation_decoder_depth: blocks of the decoder for representations, as wide as the other.
        representation_target: whose representation the base predicts: teacher, head and base as momentum networks on the full
            image; student, the same networks without momentum and gradient; decoder, the last hidden states of the decoder for
            pixels, which cost nothing.
        representation_weight: of the loss of the representations beside that of the pixels.
    Raises:
        FieldError: for combinations that do not exist.
    Source: HSSL, appendix D; MAE, arXiv 2111.06377.
    Differs: one sentence of the paper defines who reconstructs what. How the head gets a dense map, whose representation is
        predicted, the size of the second decoder and the weights are choices of this package, and values of this configuration.
    """

    model_type = "hssl_mae"

    drop_path_rate: Annotated[float, Range(0, below=1)] = 0.0
    sincos_position_embeddings: bool = True
    auxiliary_mask_fill: Literal["token", "zero"] = "token"
    norm_pix_loss: bool = True
    decoder_hidden_size: Width = 512
    decoder_num_hidden_layers: Depth = 8
    decoder_num_attention_heads: Width = 16
    representation_decoder_depth: Depth = 2
    representation_target: Literal["teacher", "student", "decoder"] = "teacher"
    representation_weight: Annotated[float, Range(0, 1000)] = 1.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.auxiliary_connection != "serial":
            raise FieldError(
                "auxiliary_connection: expected 'serial', since in masked image modeling the head follows the base"
            )
        check_decoder(self.decoder_hidden_size, self.decoder_num_attention_heads)

    @property
    def citation(self) -> str:
        return CITATIONS[self.describe()[0]]

    def describe(self) -> tuple[str, str]:
        if self.auxiliary is None:
            return "MAE", "masked autoencoding (MAE, arXiv 2111.06377)"
        return "HSSL", f"heterogeneous self-supervised learning: masked autoencoding with {self.describe_heads()}"

    def described_in(self) -> list[str]:
        return ["models/configuration_mae", *self.heads_described_in(), "objectives/reconstruction", "engine/optim"]
