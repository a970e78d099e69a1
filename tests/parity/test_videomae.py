"""The official VideoMAE: model, target, loss, gradients, masks, schedule, parameter groups."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmaction.registry import MODELS as MMACTION_MODELS
from mmengine.config import Config
from mmengine.optim import CosineAnnealingLR, LinearLR, build_optim_wrapper
from torch import Tensor, nn

from videomac_mm.models import (
    RandomTubeletMask,
    TokenDecoder,
    TubeMask,
    VideoMAE,
    VideoPixelHead,
    VideoVisionTransformer,
)
from videomac_mm.models.masking import pick
from videomac_mm.models.pixels import to_pixels
from videomac_mm.sparse import VisiblePatches
from videomac_mm.weights import from_videomae

ROOT = Path(__file__).parents[2]
FOLDER = (
    Path(os.environ.get('VIDEOMAC_MM_FIXTURES', ROOT.parent / 'shared' / 'fixtures')) / 'video_vit'
)
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f'no official outputs in {FOLDER}; set VIDEOMAC_MM_FIXTURES'
)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
TOLERANCE = 1e-5


def check(got: Tensor, want: np.ndarray | Tensor, what: str = '') -> None:
    want = torch.as_tensor(want)
    assert got.shape == want.shape, what
    error = (got.double() - want.double()).abs().max() / want.double().abs().max()
    assert error <= TOLERANCE, f'{what}: relative error {error:.2e}'


class Official:
    """Inputs, weights and outputs of ``videomae_tiny.npz``; all sizes come from the arrays."""

    def __init__(self) -> None:
        self.arrays = np.load(FOLDER / 'videomae_tiny.npz')
        proj = self.arrays['param/encoder.patch_embed.proj.weight']
        self.width, _, self.tubelet, self.patch, _ = proj.shape
        self.video = torch.from_numpy(self.arrays['video_u8'])
        _, _, num_frames, height, width = self.video.shape
        self.grid = num_frames // self.tubelet, height // self.patch, width // self.patch
        mask = torch.from_numpy(self.arrays['mask']).bool()
        self.mask = mask.unflatten(1, self.grid)

    def weights(self, prefix: str) -> dict[str, Tensor]:
        keys = [key for key in self.arrays.files if key.startswith(prefix)]
        return from_videomae({k[len(prefix) :]: torch.from_numpy(self.arrays[k]) for k in keys})

    def encoder(self) -> dict:
        return dict(
            img_size=self.video.shape[-1],
            patch_size=self.patch,
            embed_dims=self.width,
            depth=self.depth('encoder'),
            num_heads=4,
            num_frames=self.video.shape[2],
            tubelet_size=self.tubelet,
            use_mean_pooling=False,
        )

    def depth(self, part: str) -> int:
        pattern = rf'param/{part}\.blocks\.\d+\.norm1\.weight'
        return sum(bool(re.fullmatch(pattern, key)) for key in self.arrays.files)

    def model(self, norm: str | None = 'channel') -> VideoMAE:
        preds, embed_dims = self.arrays['param/decoder.head.weight'].shape
        model = VideoMAE(
            VideoVisionTransformer(**self.encoder()),
            TokenDecoder(
                self.mask[0].numel(), self.width, embed_dims, self.depth('decoder'), 4, (preds,)
            ),
            VideoPixelHead(self.patch, self.tubelet, norm=norm),
            dict(
                type='videomac_mm.TubeMask',
                patch_size=self.patch,
                tubelet_size=self.tubelet,
            ),
            dict(
                type='mmaction.ActionDataPreprocessor',
                mean=MEAN,
                std=STD,
                format_shape='NCTHW',
            ),
        )
        missing, unexpected = model.load_state_dict(self.weights('param/'), strict=False)
        assert (missing, unexpected) == (['backbone.pos_embed'], [])
        return model

    def inputs(self, model: VideoMAE) -> Tensor:
        data = dict(inputs=[clip[None] for clip in self.video], data_samples=None)
        return model.data_preprocessor(data)['inputs']


@pytest.fixture(scope='module')
def official() -> Official:
    return Official()


def test_step__features_predictions_target_loss_and_every_gradient(official):
    model, arrays = official.model(), official.arrays
    inputs = official.inputs(model)
    check(model.backbone.pos_embed, arrays['pos_embed_enc'], 'positions of the encoder')
    check(model.neck.pos_embed, arrays['pos_embed_dec'], 'positions of the decoder')
    tokens = model.backbone(inputs[:, 0], official.mask)
    check(tokens, arrays['encoder_latent'], 'tokens')
    (pred,) = model.neck(tokens, official.mask)
    check(pred, arrays['pred'], 'prediction')

    losses = model.loss(inputs, mask=official.mask)
    assert list(losses) == ['loss_pixel']
    check(losses['loss_pixel'], arrays['loss'], 'loss')
    losses['loss_pixel'].backward()
    grads = official.weights('grad/')
    params = dict(model.named_parameters())
    assert set(grads) == set(params)
    for name, param in params.items():
        check(param.grad, grads[name], f'gradient of {name}')


def test_target__is_the_official_one(official):
    # The mean square of a prediction that is short of the target by 1 everywhere is 1.
    model = official.model()
    pixels = to_pixels(official.inputs(model)[:, 0], model.data_preprocessor)
    target = torch.from_numpy(official.arrays['target'])
    same = model.head.loss([target], pixels, official.mask)['loss_pixel']
    assert same <= (TOLERANCE * target.abs().max()) ** 2
    one_off = model.head.loss([target - 1], pixels, official.mask)['loss_pixel']
    check(one_off, torch.tensor(1.0))


def test_raw_target__loss_and_values(official):
    arrays = np.load(FOLDER / 'videomae_rawtarget.npz')
    model = official.model(norm=None)
    loss = model.loss(official.inputs(model), mask=official.mask)['loss_pixel']
    check(loss, arrays['loss'])
    want = torch.from_numpy(arrays['target'])
    pixels = to_pixels(official.inputs(model)[:1, 0], model.data_preprocessor)
    hidden = VisiblePatches(official.mask[:1]).hidden
    got = pick(model.head._cubes(pixels, 'pixel').flatten(2), hidden)
    check(got[:, : want.shape[1]], want)


def test_tokens__have_the_official_order():
    arrays = np.load(FOLDER / 'videomae_patch_order.npz')
    last = int(arrays['last4'][-1, -1])  # its code says where the clip ends
    sizes = (
        n + 1 for n in (last // 1_000_000, last // 10_000 % 100, last // 100 % 100, last % 100)
    )
    c, t, y, x = torch.meshgrid(*map(torch.arange, sizes), indexing='ij')
    clip = (c * 1e6 + t * 1e4 + y * 100 + x).double()[None]
    cubes = VideoPixelHead()._cubes(clip, 'pixel').flatten(2)[0]
    assert torch.equal(cubes[0], torch.from_numpy(arrays['token0']).double())
    assert torch.equal(cubes[:, :8], torch.from_numpy(arrays['first8']))
    assert torch.equal(cubes[:, -4:], torch.from_numpy(arrays['last4']))


@pytest.mark.parametrize('pools', [False, True])
def test_backbone__loads_into_recognizer3d_with_the_same_features(official, pools):
    pretrained = official.model()
    state = pretrained.state_dict()
    recognizer = MMACTION_MODELS.build(
        dict(
            type='mmaction.Recognizer3D',
            backbone=dict(
                official.encoder(), type='mmaction.VisionTransformer', use_mean_pooling=pools
            ),
            cls_head=dict(
                type='mmaction.TimeSformerHead', num_classes=3, in_channels=official.width
            ),
            data_preprocessor=dict(type='mmaction.ActionDataPreprocessor'),
        )
    )
    state = {key: value for key, value in state.items() if key.startswith('backbone.')}
    missing, unexpected = recognizer.load_state_dict(state, strict=False)
    missing = {key for key in missing if not key.startswith('cls_head.')}
    norms = {f'backbone.{{}}.{name}' for name in ('weight', 'bias')}
    assert missing == ({key.format('fc_norm') for key in norms} if pools else set())
    assert set(unexpected) == ({key.format('norm') for key in norms} if pools else set())

    clips = official.inputs(pretrained)[:, 0]
    theirs = recognizer.backbone.eval()
    ours = VideoVisionTransformer(**{**official.encoder(), 'use_mean_pooling': pools}).eval()
    ours.load_state_dict(theirs.state_dict())
    check(ours(clips), theirs(clips).detach())
    if not pools:
        theirs.return_feat_map = pretrained.backbone.return_feat_map = True
        check(pretrained.backbone(clips), theirs(clips).detach())


def test_sinusoid__of_the_official_size():
    want = json.loads((FOLDER / 'videomae_sinusoid_1568x768.json').read_text())
    size = want['n_position'], want['d_hid']
    backbone = VideoVisionTransformer(embed_dims=size[1], depth=0)
    table = backbone.pos_embed[0].double()
    assert tuple(table.shape) == size
    check(table[0, :8], np.array(want['row0']))
    check(table[1, :8], np.array(want['row1']))
    check(table[-1, -8:], np.array(want['row1567_last8']))
    check(table.sum(), np.array(want['sum']))
    check(table.abs().sum(), np.array(want['abs_sum']))


def official_masks() -> list[dict]:
    path = FOLDER / 'videomae_tube_masks.json'
    return json.loads(path.read_text()) if path.exists() else []


@pytest.mark.parametrize('wanted', official_masks(), ids=lambda wanted: str(wanted['idx']))
def test_masks__hide_as_many_in_each_slot_and_the_same_in_all(wanted):
    t, h, w = wanted['grid']
    arrays = np.load(FOLDER / 'videomae_tube_masks.npz')
    official = torch.from_numpy(arrays[f'mask{wanted["idx"]}']).bool().view(1, t, h, w)
    assert wanted['same_every_frame'] and (official == official[:, :1]).all()
    clips = torch.empty(1, 1, 1, 1, 1).expand(3, 3, 2 * t, 16 * h, 16 * w)
    for kind in (TubeMask, RandomTubeletMask):
        generator = kind(mask_ratio=wanted['ratio'])
        mask = generator(clips).mask
        assert (mask.sum((2, 3)) == wanted['masked_per_frame']).all()
        assert mask[0].sum() == wanted['total_masks'] == official.sum()
        assert (mask == mask[:, :1]).all() == (kind is TubeMask)
        assert torch.equal(generator.check(official, clips[:1]).mask, official)


def test_optimizer__decays_the_same_parameters_and_starts_alike(official):
    wanted = json.loads((FOLDER / 'videomae_optim.json').read_text())
    cfg = Config.fromfile(ROOT / 'configs' / '_base_' / 'schedules' / 'videomae_800e.py')
    model = official.model()
    optimizer = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=cfg.optim_wrapper.optimizer,
            paramwise_cfg=cfg.optim_wrapper.paramwise_cfg,
        ),
    ).optimizer
    decay = {
        id(param): group['weight_decay']
        for group in optimizer.param_groups
        for param in group['params']
    }
    got = {name: decay[id(param)] for name, param in model.named_parameters()}
    groups = wanted['pretrain_param_groups'].values()
    weights = {
        name: torch.tensor(g['weight_decay'], dtype=torch.float64)
        for g in groups
        for name in g['params']
    }
    assert got == {name: value.item() for name, value in from_videomae(weights).items()}
    defaults = wanted['pretrain_defaults']
    assert list(optimizer.defaults['betas']) == defaults['betas']
    assert optimizer.defaults['eps'] == defaults['eps']
    assert optimizer.defaults['lr'] == defaults['lr'] * cfg.auto_scale_lr.base_batch_size / 256


def test_schedule__is_the_official_one():
    wanted = json.loads((FOLDER / 'videomae_optim.json').read_text())['cosine_scheduler']
    args = wanted['args']
    epochs, warm_up = args['epochs'], args['warmup_epochs']
    cfg = Config.fromfile(ROOT / 'configs' / '_base_' / 'schedules' / 'videomae_800e.py')
    first, second = cfg.param_scheduler
    assert (first.end, second.begin, second.end, second.T_max) == (40, 40, 800, 760)
    first.update(end=warm_up)
    second.update(begin=warm_up, end=epochs, T_max=epochs - warm_up)
    second.update(eta_min_ratio=args['final'] / args['base'])

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args['base'])
    kinds = dict(LinearLR=LinearLR, CosineAnnealingLR=CosineAnnealingLR)
    schedulers = [
        kinds[cfg.pop('type')].build_iter_from_epoch(
            optimizer, **_pop(cfg), epoch_length=args['niter_per_ep']
        )
        for cfg in (first, second)
    ]
    rates = []
    for _ in wanted['values']:
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    np.testing.assert_allclose(rates, wanted['values'], rtol=1e-9, atol=1e-11)


def _pop(cfg: dict) -> dict:
    assert cfg.pop('convert_to_iter_based')
    return cfg
