"""ConvMAE's official image encoder, reproduced by the video one of a single frame."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videomac_mm.models.backbones.conv_vit import ConvBlock, ConvVisionTransformer
from videomac_mm.models.backbones.video_vit import FusedBlock

# Of the encoder and of the decoder; the arrays do not tell.
NUM_HEADS = 4
PATCH_SIZE = 16
TOLERANCE = 1e-5

# (pattern of the official name, our name); all that match are taken, one after another.
NAMES = [
    (r'blocks3\.', 'blocks.'),
    (r'patch_embed4\.', 'patch_embed.linear.'),
    (r'patch_embed(\d)\.proj\.', r'patch_embed.projections.\1.'),
    (r'patch_embed(\d)\.norm\.', r'patch_embed.norms.\1.'),
    (r'blocks([12])\.(\d+)\.attn\.', r'patch_embed.stages.\1.\2.depthwise_conv.'),
    (r'blocks([12])\.(\d+)\.(?:mlp\.)?', r'patch_embed.stages.\1.\2.'),
    (r'stage(\d)_output_decode\.', r'patch_embed.fusion.\1.'),
    (r'(.*blocks\.\d+\.mlp\.)fc1\.', r'\1layers.0.0.'),
    (r'(.*blocks\.\d+\.mlp\.)fc2\.', r'\1layers.1.'),
]


def our_name(name: str) -> str:
    for pattern, ours in NAMES:
        name = re.sub('^' + pattern, ours, name)
    # Stages count from 1 there.
    counted = r'(patch_embed\.(?:projections|norms|stages|fusion)\.)(\d)'
    return re.sub(counted, lambda found: f'{found[1]}{int(found[2]) - 1}', name)


def our_weights(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights, or gradients, under our names."""
    weights = {}
    for name, value in official.items():
        name = our_name(name)
        if name.endswith('qkv.bias'):
            # The bias of the keys adds the same to all scores of a query: softmax drops it.
            stem = name[: -len('qkv.bias')]
            weights[stem + 'q_bias'], _, weights[stem + 'v_bias'] = value.chunk(3)
        elif name == 'patch_embed.projections.0.weight':
            weights[name] = value.unsqueeze(2)  # a clip of one frame
        else:
            weights[name] = value
    return weights


def num_blocks(params: dict[str, Tensor], stage: str) -> int:
    return len({name.split('.')[1] for name in params if name.startswith(f'{stage}.')})


class Autoencoder(nn.Module):
    """ConvMAE: our encoder, and MAE's decoder, which predicts every patch."""

    def __init__(self, params: dict[str, Tensor], **kwargs) -> None:
        super().__init__()
        num_tokens, channels = params['decoder_pos_embed'].shape[1:]
        depth = num_blocks(params, 'decoder_blocks')
        self.backbone = build(params, **kwargs)
        self.decoder_embed = nn.Linear(*params['decoder_embed.weight'].T.shape)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.register_buffer('decoder_pos_embed', torch.zeros(1, num_tokens, channels))
        self.decoder_blocks = nn.ModuleList(FusedBlock(channels, NUM_HEADS) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(channels, eps=1e-6)
        self.decoder_pred = nn.Linear(*params['decoder_pred.weight'].T.shape)
        decoder = {
            name: value for name, value in our_weights(params).items() if name in self.state_dict()
        }
        self.load_state_dict({**decoder, **self.backbone.state_dict(prefix='backbone.')})

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, H, W) images, (B, 1, h, w) mask -> (B, h*w, P)."""
        latent = self.decoder_embed(self.backbone(images[:, :, None], mask))
        x = self.mask_token.repeat(len(latent), self.decoder_pos_embed.shape[1], 1)
        x[~mask.flatten(1)] = latent.flatten(0, 1)
        x = x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))


def build(params: dict[str, Tensor], **kwargs) -> ConvVisionTransformer:
    """The backbone for a single frame with the official weights."""
    weights = our_weights(params)
    num_tokens = params['pos_embed'].shape[1]
    backbone = ConvVisionTransformer(
        img_size=PATCH_SIZE * int(num_tokens**0.5),
        embed_dims=[len(params[f'patch_embed{stage}.proj.bias']) for stage in (1, 2, 3)],
        depths=[num_blocks(params, f'blocks{stage}') for stage in (1, 2, 3)],
        num_heads=NUM_HEADS,
        conv_kernel=(1, *params['blocks1.0.attn.weight'].shape[2:]),
        num_frames=1,
        tubelet_size=1,
        **kwargs,
    )
    names = backbone.state_dict()
    backbone.load_state_dict({name: value for name, value in weights.items() if name in names})
    return backbone


class Official:
    """What the official code computed, and from what."""

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        self.arrays = arrays
        self.images = arrays['img'].float()
        self.params = self.group('param/')
        side = self.images.shape[-1] // PATCH_SIZE
        self.mask = arrays['mask'].bool().view(-1, 1, side, side)

    def group(self, prefix: str) -> dict[str, Tensor]:
        found = {name: value for name, value in self.arrays.items() if name.startswith(prefix)}
        return {name[len(prefix) :]: value for name, value in found.items()}

    def check(self, got: Tensor, want: Tensor, name: str) -> None:
        assert got.shape == want.shape, name
        error = (got - want).abs().max() / want.abs().max()
        assert error <= TOLERANCE, f'{name}: relative error {error:.2e}'


@pytest.fixture(scope='module')
def official(fixtures_dir) -> Official:
    path = fixtures_dir / 'video_vit' / 'convmae2d_tiny.npz'
    if not path.exists():
        pytest.skip(f'no {path}')
    return Official({name: torch.from_numpy(value) for name, value in np.load(path).items()})


@pytest.fixture
def autoencoder(official) -> Autoencoder:
    return Autoencoder(official.params, use_mean_pooling=False, multi_scale_fusion=True)


@torch.no_grad()
def test_visible_tokens(official, autoencoder):
    latent = autoencoder.backbone(official.images[:, :, None], official.mask)
    # Ours are in the order of the image.
    order = official.arrays['ids_keep'].argsort(1)[..., None].expand_as(latent)
    official.check(latent, official.arrays['latent'].gather(1, order), 'tokens')


@torch.no_grad()
def test_stages(official, autoencoder):
    """Means over whole maps, which only exist without a mask: it is put before the convs."""
    means = []

    def hide(conv: nn.Module, args: tuple) -> tuple:
        factor = args[0].shape[-1] // official.mask.shape[-1]
        mask = official.mask.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        return args[0] * ~mask, *args[1:]

    for stage in autoencoder.backbone.patch_embed.stages:
        for block in stage:
            assert isinstance(block, ConvBlock)
            block.depthwise_conv.register_forward_pre_hook(hide)
        stage[-1].register_forward_hook(lambda block, args, out: means.append(out.mean((2, 3))))
    autoencoder.backbone(official.images)
    official.check(means[0], official.arrays['stage1_mean'], 'stage 1')
    official.check(means[1], official.arrays['stage2_mean'], 'stage 2')


def test_predictions_loss_and_gradients(official, autoencoder):
    preds = autoencoder(official.images, official.mask)
    first = official.arrays['pred_first8']
    official.check(preds[:, : first.shape[1]], first, 'predictions')

    # MAE's target: patches, normalised over all pixels and channels together.
    patches = F.unfold(official.images, PATCH_SIZE, stride=PATCH_SIZE).transpose(1, 2)
    target = patches.unflatten(2, (3, -1)).transpose(2, 3).flatten(2)  # channel fastest
    variance, mean = torch.var_mean(target, 2, keepdim=True)
    target = (target - mean) / (variance + 1e-6).sqrt()
    loss = (preds - target).square()[official.mask.flatten(1)].mean()
    official.check(loss, official.arrays['loss'], 'loss')

    loss.backward()
    grads = our_weights(official.group('grad/'))
    assert grads
    params = dict(autoencoder.backbone.named_parameters())
    for name, grad in grads.items():
        official.check(params[name].grad, grad, name)


@torch.no_grad()
def test_fine_tuned_feature(official):
    backbone = build({**official.params, **official.group('ft/')}, use_mean_pooling=True)
    for inputs in (official.images, official.images[:, :, None]):
        official.check(backbone(inputs), official.arrays['finetune_pooled'], 'feature')
