"""One full step of the official VideoMAC code, reproduced from its weights and inputs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from videomac_mm.models import SparseResNet, VideoMAC
from videomac_mm.models.backbones.sparse_resnet import SparseBasicBlock, SparseBottleneck
from videomac_mm.weights import from_videomac

FOLDER = (
    Path(os.environ.get('VIDEOMAC_MM_FIXTURES', Path(__file__).parents[3] / 'shared' / 'fixtures'))
    / 'videomac'
)
NAMES = sorted(path.stem for path in FOLDER.glob('*.npz') if not path.stem.endswith('_f64'))
# The official float32 run is itself only reproducible to about 3e-6.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9}

pytestmark = pytest.mark.skipif(
    not NAMES, reason=f'no official outputs in {FOLDER}; set VIDEOMAC_MM_FIXTURES'
)


class Step:
    """A step of the official code, and the same step of ours.

    Inputs and weights come from ``name.npz``; in float64 the expected outputs come from
    ``name_f64.npz``.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.inputs = np.load(FOLDER / f'{name}.npz')
        double = dtype == torch.float64
        self.wanted = np.load(FOLDER / f'{name}_f64.npz') if double else self.inputs
        self.meta = json.loads(str(self.inputs['meta']))
        self.dtype = dtype

        self.model = build(self.meta).to(dtype)
        target = {f'target.{k}': v for k, v in self.weights('target/', self.inputs).items()}
        self.model.load_state_dict({**self.weights('online/', self.inputs), **target})

        frames = [self.tensor(self.inputs, f'frame{i}') for i in (1, 2)]
        self.clips = torch.stack(frames, 2)[:, None]  # (B, 1, C, 2, H, W)
        patch = self.model.mask_generator.patch_size
        grid = tuple(size // patch for size in frames[0].shape[-2:])
        self.mask = torch.from_numpy(self.inputs['mask']).bool().unflatten(1, grid)

    def tensor(self, source, key: str) -> Tensor:
        return torch.from_numpy(source[key]).to(self.dtype)

    def weights(self, prefix: str, source) -> dict[str, Tensor]:
        """Weights, or gradients, under our names."""
        keys = [key for key in source.files if key.startswith(prefix)]
        return from_videomac({key[len(prefix) :]: self.tensor(source, key) for key in keys})

    def target_after(self, grads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The target after SGD and EMA; in float64 from the official gradients."""
        if self.dtype == torch.float32:
            return self.weights('target_after/', self.inputs)
        momentum, lr = self.meta['momentum'], self.meta['lr']
        online = self.weights('online/', self.inputs)
        return {
            name: momentum * old + (1 - momentum) * (online[name] - lr * grads[name])
            for name, old in self.weights('target/', self.inputs).items()
        }

    def check(self, got: Tensor, want: Tensor, what: str) -> None:
        error = (got - want).abs().max() / want.abs().max()
        assert error <= TOLERANCE[self.dtype], f'{what}: relative error {error:.2e}'


def build(meta: dict) -> VideoMAC:
    cfg = meta['cfg']
    if cfg['mode'].startswith('ConvNeXt'):
        backbone = dict(
            type='videomac_mm.SparseConvNeXt',
            arch=dict(depths=cfg['depths'], channels=cfg['dims']),
            use_grn=cfg['mode'].endswith('V2'),
            grn_scope='batch',
            layer_scale_init_value=0.0,
            stage_norm='inline',
        )
    else:
        basic = cfg['mode'] in ('ResNet18', 'ResNet34')
        block = SparseBasicBlock if basic else SparseBottleneck

        class ShallowResNet(SparseResNet):
            arch_settings = {0: (block, tuple(cfg['depths']))}

        backbone = ShallowResNet(
            0, variant='videomac', stem_channels=cfg['base'], base_channels=cfg['base']
        )
    patch_size = cfg.get('patch_size', 32)
    neck = dict(
        type='videomac_mm.MaskTokenDecoder',
        in_channels=cfg['dims'][-1],
        embed_dims=cfg['decoder_embed_dim'],
        depth=cfg.get('decoder_depth', 1),
        patch_size=patch_size,
    )
    return VideoMAC(
        backbone,
        neck,
        dict(
            type='videomac_mm.PixelHead',
            patch_size=patch_size,
            norm_pix=meta['norm_pix_loss'],
        ),
        mask_generator=dict(
            type='videomac_mm.RandomPatchMask',
            patch_size=patch_size,
            mask_ratio=cfg['mask_ratio'],
        ),
        consistency_loss=dict(type='videomac_mm.ConsistencyLoss', loss_weight=meta['gamma']),
        data_preprocessor=dict(type='mmaction.ActionDataPreprocessor'),
    )


@pytest.fixture(params=[torch.float32, torch.float64], ids=['float32', 'float64'])
def dtype(request):
    return request.param


@pytest.fixture(params=NAMES)
def step(request, dtype):
    if dtype == torch.float64 and not (FOLDER / f'{request.param}_f64.npz').exists():
        pytest.skip(f'{request.param} has no float64 outputs')
    return Step(request.param, dtype)


def test_features_and_predictions(step):
    frames = step.clips.flatten(0, 1).unbind(2)
    networks = step.model, step.model.target
    for network, frame, name in zip(networks, frames, ('online', 'target')):
        features = network.backbone(frame, step.mask)[-1]
        step.check(features, step.tensor(step.wanted, f'enc_{name}'), f'features of {name}')
        pred = network.neck(features, step.mask)  # (B, L, P)
        want = step.tensor(step.wanted, f'pred_{name}').flatten(2).transpose(1, 2)
        step.check(pred, want, f'prediction of {name}')


def test_losses_gradients_and_target_after_the_step(step):
    model = step.model
    losses = model.loss(step.clips, mask=step.mask)
    total, _ = model.parse_losses(losses)
    official = dict(
        loss_online='loss_o', loss_target='loss_t', loss_consistency='loss_c', total='loss_total'
    )
    for ours, theirs in official.items():
        got = total if ours == 'total' else losses[ours]
        weight = step.meta['gamma'] if ours == 'loss_consistency' else 1.0
        step.check(got, weight * step.tensor(step.wanted, theirs), ours)

    total.backward()
    assert not any(weight.requires_grad for weight in model.target.buffers())
    grads = step.weights('grad/', step.wanted)
    online = dict(model.named_parameters())
    assert set(grads) == set(online)
    for name, param in online.items():
        step.check(param.grad, grads[name], f'gradient of {name}')

    torch.optim.SGD(online.values(), lr=step.meta['lr']).step()
    model.target.follow(model, step.meta['momentum'])
    for name, value in step.target_after(grads).items():
        step.check(model.target.state_dict()[name], value, f'target after the step: {name}')
