"""A model for pictures of another size: positions resampled as timm does, everything else as it was."""

import pytest
import timm
import torch

from moce.errors import UserError
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.resize import resize, resize_encoder

SHAPE = AutoencoderShape("test_vit", (24, 16), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2)


def new_model() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(SHAPE).eval()


@pytest.mark.parametrize("size", [(16, 24), (48, 32), (16, 16), (24, 16)])
def test_an_encoder_of_another_size_is_what_timm_makes_of_its_weights(size: tuple[int, int]) -> None:
    model, twin = new_model(), new_model()
    arguments = {"num_classes": 0, "global_pool": "avg", "fc_norm": False, "patch_size": 8}
    timms = timm.create_model(
        "test_vit",
        pretrained=True,
        img_size=size,
        pretrained_cfg={"state_dict": twin.encoder.state_dict(), "input_size": (3, 24, 16), "num_classes": 0},
        **arguments,
    ).eval()
    resize(model, size)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert (model.tokens(images) - timms.forward_features(images)).abs().max() <= 1e-5
        output = model(images, torch.rand(2, model.shape.num_patches))
    assert output.loss.isfinite() and model.shape.image_size == size


def test_only_positions_change_and_none_where_the_size_stays() -> None:
    before, model = new_model().state_dict(), new_model()
    resize(model, (24, 16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    resize(model, (32, 16))
    changed = {
        n
        for n, t in model.state_dict().items()
        if t.shape != before[n].shape or not torch.equal(t, before[n])
    }
    assert changed == {"encoder.pos_embed", "decoder_pos_embed"}
    assert model.encoder.pos_embed.shape[1] == model.decoder_pos_embed.shape[1] == 1 + 4 * 2
    assert not model.encoder.pos_embed.requires_grad and not model.decoder_pos_embed.requires_grad
    assert torch.equal(model.encoder.pos_embed[:, :1], before["encoder.pos_embed"][:, :1])


def test_a_turned_grid_with_as_many_patches_is_resampled_too() -> None:
    model = new_model()
    before = model.encoder.pos_embed.clone()
    resize_encoder(model.encoder, (16, 24))
    assert model.encoder.pos_embed.shape == before.shape and not torch.equal(model.encoder.pos_embed, before)


def test_patches_must_fill_the_pictures() -> None:
    with pytest.raises(UserError, match="--image-size 20x16 is not a multiple of --patch-size 8"):
        resize(new_model(), (20, 16))
