import math

import pytest
import torch
from torch import Tensor, nn

from tests.masks import random_mask
from videomac_mm.models import TokenDecoder
from videomac_mm.sparse import VisiblePatches

GRID = (2, 3, 3)
VISIBLE = 5


def build(**kwargs) -> TokenDecoder:
    """A decoder without a zero, or otherwise special, parameter."""
    args = dict(num_patches=18, in_channels=10, embed_dims=12, depth=2, num_heads=3, pred_dims=(8,))
    decoder = TokenDecoder(**{**args, **kwargs})
    for param in decoder.parameters():
        nn.init.normal_(param, std=0.4)
    return decoder.double()


def two(shared: bool, **kwargs) -> TokenDecoder:
    return build(pred_dims=(8, 5), shared=shared, **kwargs)


@pytest.fixture
def mask() -> Tensor:
    return random_mask(2, GRID, VISIBLE)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, VISIBLE, 10, dtype=torch.float64, requires_grad=True)


def in_place(decoder: TokenDecoder, x: Tensor, mask: Tensor) -> list[Tensor]:
    """The same predictions from maps on which every token stands in its place."""
    preds = []
    for trunk in decoder.decoders:
        maps = trunk.mask_token.repeat(*mask.flatten(1).shape, 1)
        maps[~mask.flatten(1)] = trunk.proj(x).flatten(0, 1)
        maps = maps + decoder.pos_embed
        for block in trunk.blocks:
            maps = block(maps)
        maps = trunk.norm(maps)
        for pred in trunk.preds:
            preds.append(pred(maps)[mask.flatten(1)].unflatten(0, (len(x), -1)))
    return preds


@pytest.mark.parametrize('shared', [True, False])
def test_predictions__are_those_of_tokens_in_their_places(shared, tokens, mask):
    decoder = two(shared)
    results = []
    for preds in (decoder(tokens, mask), in_place(decoder, tokens, mask)):
        assert [pred.shape for pred in preds] == [(2, 13, 8), (2, 13, 5)]
        loss = sum(pred.square().sum() for pred in preds)
        results.append([*preds, *torch.autograd.grad(loss, [tokens, *decoder.parameters()])])
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_predictions__depend_on_the_place_and_the_visible_tokens_only(tokens, mask):
    decoder = build()
    (pred,) = decoder(tokens, mask)
    distances = torch.cdist(pred[0], pred[0]) + torch.eye(13)
    assert distances.min() > 1e-3  # every place has its own
    for row, (alone, cover) in enumerate(zip(tokens, mask)):
        torch.testing.assert_close(decoder(alone[None], cover[None])[0][0], pred[row])

    # A token reaches all predictions of its own sample.
    for row, column in ((0, 0), (1, VISIBLE - 1)):
        other = tokens.detach().clone()
        other[row, column] += 1
        changes = (decoder(other, mask)[0] - pred).abs().amax(2)
        assert (changes[row] > 1e-6).all() and (changes[1 - row] < 1e-12).all()


def test_predictions__without_positions_are_all_the_same(tokens, mask):
    decoder = build()
    swapped = tokens.flip(1)
    assert (decoder(swapped, mask)[0] - decoder(tokens, mask)[0]).abs().max() > 1e-3
    decoder.pos_embed.zero_()
    (pred,) = decoder(tokens, mask)
    torch.testing.assert_close(pred, pred[:, :1].expand_as(pred))
    torch.testing.assert_close(decoder(swapped, mask)[0], pred)
    assert (pred[0] - pred[1]).abs().max() > 1e-3


def test_predictions__come_in_the_order_of_tokens(tokens, mask):
    # With the positions of two hidden places exchanged their predictions are, too.
    decoder = build()
    (pred,) = decoder(tokens[:1], mask[:1])
    hidden = VisiblePatches(mask[:1]).hidden
    first, last = hidden[0].item(), hidden[-1].item()
    decoder.pos_embed[:, [first, last]] = decoder.pos_embed[:, [last, first]]
    (other,) = decoder(tokens[:1], mask[:1])
    order = [12, *range(1, 12), 0]
    torch.testing.assert_close(other, pred[:, order])


def test_shared__decoder_learns_from_both_predictions(tokens, mask):
    decoder = two(shared=True)
    (trunk,) = decoder.decoders
    common = [param for name, param in trunk.named_parameters() if not name.startswith('preds')]
    for index, pred in enumerate(decoder(tokens, mask)):
        grads = torch.autograd.grad(pred.square().sum(), common, retain_graph=True)
        assert all(grad.abs().sum() > 0 for grad in grads)
        other = list(trunk.preds[1 - index].parameters())
        grads = torch.autograd.grad(
            pred.square().sum(), other, retain_graph=True, allow_unused=True
        )
        assert grads == (None, None)


def test_independent__decoders_learn_from_their_own_prediction_only(tokens, mask):
    decoder = two(shared=False)
    assert len(decoder.decoders) == 2
    for index, pred in enumerate(decoder(tokens, mask)):
        decoder.zero_grad()
        pred.square().sum().backward()
        for which, trunk in enumerate(decoder.decoders):
            for name, param in trunk.named_parameters():
                if which == index:
                    assert param.grad.abs().sum() > 0, name
                else:
                    assert param.grad is None, name


def test_independent__is_as_two_decoders(tokens, mask):
    both = two(shared=False)
    for index, dims in enumerate(both.pred_dims):
        one = build(pred_dims=(dims,))
        one.decoders[0].load_state_dict(both.decoders[index].state_dict())
        assert torch.equal(one(tokens, mask)[0], both(tokens, mask)[index])


def test_initialisation__is_the_official_one():
    decoder = TokenDecoder(18, 10, 64, 2, 4, (96, 48))
    decoder.init_weights()
    (trunk,) = decoder.decoders
    assert trunk.proj.bias is None
    proj_bound = 10**-0.5  # torch's; Xavier's would be (6 / 74) ** 0.5 = 0.28
    assert 0.3 < trunk.proj.weight.abs().max() <= proj_bound
    for name, module in [*trunk.blocks.named_modules(), *trunk.preds.named_modules()]:
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert 0.95 * bound < module.weight.abs().max() <= bound, name
            assert module.bias is None or not module.bias.any(), name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any(), name
    assert not trunk.blocks[0].attn.q_bias.any() and not trunk.blocks[0].attn.v_bias.any()
    token = trunk.mask_token
    assert 0.01 < token.abs().max() <= 0.02 and 0.008 < token.std() < 0.014


def test_positions__are_fixed_and_not_saved():
    decoder = build()
    names = [*decoder.state_dict(), *(name for name, _ in decoder.named_parameters())]
    assert not any('pos_embed' in name for name in names)
    # Sines and cosines of the place in the row of all tokens.
    table = decoder.pos_embed[0]
    assert table.shape == (18, 12)
    torch.testing.assert_close(table[7, :2], torch.tensor([math.sin(7), math.cos(7)]).double())
    slow = 7 / 10000 ** (10 / 12)
    torch.testing.assert_close(
        table[7, -2:], torch.tensor([math.sin(slow), math.cos(slow)]).double()
    )


@pytest.mark.parametrize('shared', [True, False])
def test_checkpointing__changes_no_gradient(shared, tokens, mask):
    plain, frugal = two(shared), two(shared, with_cp=True)
    frugal.load_state_dict(plain.state_dict())
    results = []
    for decoder in (plain, frugal):
        preds = decoder(tokens, mask)
        loss = sum(pred.square().sum() for pred in preds)
        results.append([*preds, *torch.autograd.grad(loss, [tokens, *decoder.parameters()])])
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_bad_arguments__are_named(tokens, mask):
    with pytest.raises(ValueError, match=r'at least one positive number, got \(\)'):
        build(pred_dims=())
    with pytest.raises(ValueError, match=r'at least one positive number, got \(8, 0\)'):
        build(pred_dims=(8, 0))
    with pytest.raises(ValueError, match='multiple of num_heads, got 12 and 5'):
        build(num_heads=5)
    with pytest.raises(ValueError, match=r'num_patches=18 .*\(2, 2, 3, 2\) has 12'):
        build()(tokens, random_mask(2, (2, 3, 2), VISIBLE))
    with pytest.raises(
        ValueError, match=r'shows 4 tokens of each of 2 samples, got .*\(2, 5, 10\)'
    ):
        build()(tokens, random_mask(2, GRID, 4))
    mask[0] = random_mask(1, GRID, VISIBLE + 1)
    with pytest.raises(ValueError, match=r'same number of patches, got \[6, 5\]'):
        build()(tokens, mask)
