import pytest
import torch

from hssl_hf.modules.decoder import Decoder, Projector, make_blocks
from hssl_hf.modules.position_embeddings import relative_geometry, relative_positions
from hssl_hf.modules.projection_heads import TokenBatchNorm
from tests.conftest import siamese_views


def decoder(seed: int = 0, **changes) -> Decoder:
    torch.manual_seed(seed)
    arguments = {"relative": True, "predict_positions": True, "final_norm": False, "norm": "batch", **changes}
    norm = arguments.pop("norm")
    made = Decoder((4, 4), 16, 2, 2, norm, 24, **arguments)
    if made.mask_token is not None:
        torch.nn.init.normal_(made.mask_token)
    return made


@pytest.fixture
def geometry() -> torch.Tensor:
    return relative_geometry(*siamese_views()["crop_boxes"])


def test_projected_components_equal_the_linear_map_of_all_positions(geometry):
    made = decoder()
    rows, columns, scale = relative_positions(geometry, (4, 4), 16)
    components = rows[:, :, None].expand(-1, -1, 4, -1), columns[:, None].expand(-1, 4, -1, -1)
    positions = torch.cat([*components, scale[:, None, None].expand(-1, 4, 4, -1)], dim=-1).flatten(1, 2)
    torch.testing.assert_close(made.project_positions(geometry), made.position_projection(positions), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_predictions_equal_those_of_complete_blocks(geometry, norm):
    """The last block leaves out tokens that are not predicted; its statistics are still those of all."""
    made = decoder(norm=norm).train()
    tokens, kept = torch.randn(4, 7, 16), torch.arange(6).expand(4, -1)
    stream = torch.cat(
        [tokens[:, :1], tokens[:, 1:] + made.positions[kept], made.mask_token + made.project_positions(geometry)], dim=1
    )
    for block in made.blocks:
        stream = block(stream)
    torch.testing.assert_close(made(tokens, kept, None, geometry), made.prediction(stream[:, 7:]), atol=1e-5, rtol=1e-5)


def test_mask_queries_of_the_same_view_have_the_fixed_positions():
    """For patches 3 and 9 the decoder returns predictions in that order."""
    made = decoder(relative=False).eval()
    tokens, kept = torch.randn(2, 4, 16), torch.tensor([[0, 5, 7]]).expand(2, -1)
    predictions = [made(tokens, kept, torch.tensor([order]).expand(2, -1)) for order in ([3, 9], [9, 3])]
    torch.testing.assert_close(predictions[0], predictions[1].flip(1), atol=1e-5, rtol=1e-5)
    assert made.position_projection is None and not torch.allclose(predictions[0][:, 0], predictions[0][:, 1])


def test_without_mask_queries_the_class_token_is_predicted():
    made = decoder(predict_positions=False)
    assert made.mask_token is None and made.position_projection is None
    assert made(torch.randn(3, 5, 16), torch.arange(4).expand(3, -1)).shape == (3, 1, 24)


def test_token_batch_norm_is_over_batch_and_tokens():
    tokens = torch.randn(5, 7, 16) * 3 + 2
    normed = TokenBatchNorm(16)(tokens)
    torch.testing.assert_close(normed.mean((0, 1)), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.var((0, 1), unbiased=False), torch.ones(16), atol=1e-4, rtol=0)


def test_projector_without_blocks_is_linear():
    projector, x, y = Projector(8, 16, 0, 2, "layer"), torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    torch.testing.assert_close(projector(x + y) + projector(torch.zeros(2, 3, 8)), projector(x) + projector(y))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="to divide the width 16 of the decoder, got 5; set decoder_num_attention_heads"):
        make_blocks(16, 1, 5, "batch")
