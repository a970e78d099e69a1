"""The official CMAE for images, of which CMAE-V takes over the contrast: loss and gradients."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import Tensor, nn

from videomac_mm.models import VideoPixelHead
from videomac_mm.registry import MODELS

ROOT = Path(__file__).parents[2]
FOLDER = (
    Path(os.environ.get('VIDEOMAC_MM_FIXTURES', ROOT.parent / 'shared' / 'fixtures')) / 'video_vit'
)
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f'no official outputs in {FOLDER}; set VIDEOMAC_MM_FIXTURES'
)
TOLERANCE = 1e-5


def check(got: Tensor, want: np.ndarray, what: str = '') -> None:
    want = torch.as_tensor(want)
    assert got.shape == want.shape, what
    error = (got.double() - want.double()).abs().max() / want.double().abs().max()
    assert error <= TOLERANCE, f'{what}: relative error {error:.2e}'


def contrast_head(arrays: np.lib.npyio.NpzFile, norm: str | None = None) -> nn.Module:
    """Our config's head, in the size and with the weights of the arrays."""
    cfg = Config.fromfile(ROOT / 'configs' / '_base_' / 'models' / 'cmae_v_vit_base.py')
    head = cfg.model.contrast_head
    hidden, channels = arrays['param/predictor.fc0.weight'].shape
    head.predictor.update(in_channels=channels, hid_channels=hidden, out_channels=channels)
    if norm is not None:
        head.predictor.norm_cfg.type = norm
    if 'temperature' in arrays:
        assert head.temperature == arrays['temperature']
    head = MODELS.build(head)
    weights = {
        key[len('param/') :]: torch.from_numpy(arrays[key])
        for key in arrays.files
        if key.startswith('param/')
    }
    head.load_state_dict(weights, strict=False)
    assert {name for name, _ in head.named_parameters()} == set(weights)
    return head


def step(head: nn.Module, proj_s: np.ndarray, proj_t: np.ndarray) -> tuple[Tensor, Tensor]:
    """The loss and its gradient for the online vectors; those of the head are kept there."""
    online = torch.from_numpy(proj_s).requires_grad_()
    loss = head.loss(online.flatten(1), torch.from_numpy(proj_t).flatten(1))
    loss.backward()
    return loss.detach(), online.grad


def test_contrast__loss_and_gradients():
    arrays = np.load(FOLDER / 'cmae_head_world1.npz')
    head = contrast_head(arrays)
    loss, grad = step(head, arrays['proj_s'], arrays['proj_t'])
    check(loss, arrays['loss_ct'], 'loss')
    check(grad, arrays['grad_proj_s'], 'gradient of the online vectors')
    for name, param in head.named_parameters():
        check(param.grad, arrays[f'grad/{name}'], f'gradient of {name}')


def share_of_a_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    arrays = np.load(FOLDER / 'cmae_head_world2.npz')
    # There the official SyncBN was replaced by a batch norm of each process's own vectors.
    head = contrast_head(arrays, norm='BN1d')
    share = (arrays[f'rank{rank}/{name}'] for name in ('proj_s', 'proj_t'))
    torch.save(step(head, *share), f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason='torch without gloo')
def test_contrast__takes_the_keys_of_both_processes(tmp_path):
    torch.multiprocessing.spawn(share_of_a_process, (str(tmp_path),), nprocs=2)
    arrays = np.load(FOLDER / 'cmae_head_world2.npz')
    for rank in (0, 1):
        loss, grad = torch.load(tmp_path / f'{rank}.pth')
        assert torch.isfinite(loss)
        check(loss, arrays[f'rank{rank}/loss_ct'], f'loss of process {rank}')
        check(grad, arrays[f'rank{rank}/grad_proj_s'], f'gradient of process {rank}')


def test_pixels__normalised_jointly_give_the_loss_of_mae():
    arrays = np.load(FOLDER / 'cmae_head_world1.npz')
    patch = int(arrays['patch_size'])
    images = torch.from_numpy(arrays['x'])
    mask = torch.from_numpy(arrays['mask']).bool()
    grid = 1, images.shape[2] // patch, images.shape[3] // patch
    pred = torch.from_numpy(arrays['pred_pixel']).requires_grad_()  # of all patches
    head = VideoPixelHead(patch, tubelet_size=1, norm='joint')
    # These masks hide more of one image than of another: one after the other, then the mean.
    total = sum(
        cover.sum() * loss
        for row, image, cover in zip(pred, images, mask)
        for loss in head.loss(
            [row[None, cover]], image[None, :, None], cover.view(1, *grid)
        ).values()
    )
    loss = total / mask.sum()
    check(loss.detach(), arrays['loss_rc'], 'loss')
    loss.backward()
    check(pred.grad, arrays['grad_pred_pixel'], 'gradient')
