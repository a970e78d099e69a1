"""Each repair: the upstream problem is gone, and what upstream does well is untouched."""

import io
import multiprocessing
import os
import pickle
import subprocess
import sys
from importlib.machinery import PathFinder

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import AmpOptimWrapper

from videomac_mm import compat


def load(obj: object, replace: tuple = (b'', b'')) -> object:
    """Through a checkpoint file and back, with torch's default safety."""
    file = io.BytesIO()
    # The old format keeps the pickle in plain sight, for `replace`.
    torch.save(obj, file, _use_new_zipfile_serialization=False)
    return torch.load(io.BytesIO(file.getvalue().replace(*replace)))


class Call:
    """Pickles as the call ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------ imports


def test_import__loads_no_heavy_package():
    run_python(
        'import sys, videomac_mm\n'
        "heavy = {'mmpretrain', 'mmaction', 'mmcv', 'decord', 'mmengine.runner'}\n"
        'assert not heavy & set(sys.modules), heavy & set(sys.modules)'
    )


def test_mmaction_models__import_after_a_failed_first_import():
    run_python(
        'try:\n'
        '    import mmaction.models\n'
        'except ModuleNotFoundError:\n'
        '    pass\n'
        'import videomac_mm\n'
        'from mmaction.registry import MODELS\n'
        "assert MODELS.get('mmaction.TSNHead') is not None"
    )


def test_missing_drn__says_so_on_use():
    from mmaction.models.localizers import DRN
    from mmaction.registry import MODELS

    if DRN.__module__ == 'mmaction.models.localizers.drn.drn':
        pytest.skip('this mmaction2 has DRN')
    with pytest.raises(ImportError, match='DRN is missing from the released mmaction2 1.2.0'):
        MODELS.build(dict(type='mmaction.DRN'))


def test_stand_in__yields_to_a_real_module(tmp_path, monkeypatch):
    (tmp_path / 'videomac_mm_probe.py').write_text('real = True')
    monkeypatch.syspath_prepend(tmp_path)
    stand_ins = compat._StandIns()
    for name in ('videomac_mm_probe', 'videomac_mm_absent'):
        stand_ins.offer(name, lambda module: setattr(module, 'real', False))
    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path, stand_ins])
    import videomac_mm_absent
    import videomac_mm_probe

    assert videomac_mm_probe.real
    assert not videomac_mm_absent.real


@pytest.mark.parametrize('toolbox', ['mmseg', 'mmdet', 'mmpose'])
def test_mmcv_ops__stand_in_only_for(toolbox, tmp_path):
    import mmcv

    if PathFinder.find_spec('mmcv._ext', mmcv.__path__):
        pytest.skip('compiled mmcv')
    (tmp_path / f'{toolbox}.py').touch()
    run_python(
        f'import sys\n'
        f'sys.path.insert(0, {str(tmp_path)!r})\n'
        f'import pytest, torch, videomac_mm\n'
        # Heard before the toolbox came.
        f'from mmcv.cnn.bricks import transformer\n'
        f'with pytest.raises(ModuleNotFoundError):\n'
        f'    import mmcv.ops\n'
        f'import {toolbox}\n'
        f'from mmcv.ops import MultiScaleDeformableAttention, nms\n'
        f'with pytest.raises(ImportError, match="needs the compiled mmcv"):\n'
        f'    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\n'
        f'if {toolbox!r} == "mmdet":\n'
        f'    from mmcv.cnn.bricks.transformer import MultiScaleDeformableAttention as named\n'
        f'    assert named is MultiScaleDeformableAttention\n'
    )


def test_apply__twice_changes_nothing():
    from mmaction.models.heads import TSNHead

    before = list(sys.meta_path)
    compat.apply()
    assert sys.meta_path == before
    head = TSNHead(num_classes=3, in_channels=4)
    assert len(head._forward_hooks) == 1


# -------------------------------------------------------------------- checkpoints


def test_checkpoint__history_buffer_survives():
    hub = MessageHub.get_instance('compat')
    for value in (1.0, 2.0, 6.0):
        hub.update_scalar('train/loss', value)
    hub.update_info('best', np.float64(0.5))
    loaded = load(dict(message_hub=hub.state_dict()))['message_hub']
    buffer = loaded['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.mean() == 3.0
    assert buffer.statistics('current') == 6.0
    assert loaded['runtime_info']['best'] == 0.5


@pytest.mark.parametrize('dtype', ['bool', 'uint8', 'int32', 'int64', 'float32', 'float64'])
def test_checkpoint__arrays_of_every_numpy(dtype):
    saved = dict(array=np.ones(3, dtype), scalar=np.ones((), dtype)[()])
    for other in (b'numpy.core.multiarray', b'numpy._core.multiarray'):
        for own in (b'numpy.core.multiarray', b'numpy._core.multiarray'):
            loaded = load(saved, (own, other))
            assert loaded['array'].dtype == dtype
            assert loaded['array'].sum() == 3
            assert loaded['scalar'] == 1


@pytest.mark.parametrize(
    'payload',
    [
        Call(os.system, 'true'),
        Call(eval, '1'),
        Call(getattr, HistoryBuffer, '__init__'),
        Call(getattr, HistoryBuffer, '__subclasses__'),
        Call(getattr, np.ndarray, 'tofile'),
        Call(getattr, 'text', 'format'),
    ],
    ids=lambda payload: str(payload.call),
)
def test_checkpoint__other_calls_stay_refused(payload):
    with pytest.raises(pickle.UnpicklingError):
        load(payload)


# ----------------------------------------------------------------- training on CPU


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(compat, 'get_device', lambda: 'cpu')


def test_pytorch_launcher__opens_gloo_and_wraps_on_cpu(on_cpu, monkeypatch):
    from mmengine.dist import init_dist
    from mmengine.model import MMDistributedDataParallel

    environ = dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=0)
    for key, value in environ.items():
        monkeypatch.setenv(key, str(value))
    start_method = multiprocessing.get_start_method(allow_none=True)
    init_dist('pytorch', backend='nccl', timeout=60)
    try:
        assert torch.distributed.get_backend() == 'gloo'
        # What Runner.wrap_model passes.
        model = MMDistributedDataParallel(
            module=torch.nn.Linear(2, 1), device_ids=[0], broadcast_buffers=False
        )
        model(torch.ones(3, 2)).sum().backward()
        assert model.module.weight.grad.tolist() == [[3.0, 3.0]]
    finally:
        torch.distributed.destroy_process_group()
        multiprocessing.set_start_method(start_method, force=True)


@pytest.mark.parametrize('dtype', [None, 'float16', 'bfloat16'])
def test_amp_optim_wrapper__is_bfloat16_on_cpu(on_cpu, dtype):
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    wrapper = AmpOptimWrapper(
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        dtype=dtype,
        accumulative_counts=2,
        clip_grad=dict(max_norm=100.0),
    )
    wrapper.initialize_count_status(model, 0, 4)
    for _ in range(2):
        with wrapper.optim_context(model):
            output = model(torch.ones(1, 2))
        assert output.dtype == torch.bfloat16
        wrapper.update_params(output.float().sum())
    # One step on the mean of two gradients of ones.
    assert model.weight.tolist() == [[0.5, 0.5]]
    wrapper.load_state_dict(wrapper.state_dict())


def test_mmaction_head__scores_are_float_under_bfloat16():
    from mmaction.registry import MODELS
    from mmaction.structures import ActionDataSample

    head = MODELS.build(
        dict(type='mmaction.TSNHead', num_classes=3, in_channels=4, average_clips='prob')
    )
    samples = [ActionDataSample().set_gt_label(label) for label in (0, 2)]
    feats = torch.randn(2, 4, 7, 7)
    with torch.autocast('cpu', torch.bfloat16):
        losses = head.loss(feats, samples, num_segs=1)
        with torch.no_grad():
            predictions = head.predict(feats, samples, num_segs=1)
    assert losses['loss_cls'].isfinite()
    scores = np.stack([sample.pred_score.numpy() for sample in predictions])
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)


# ------------------------------------------------------------------- recognisers

RESNET18 = dict(type='videomac_mm.SparseResNet', depth=18)


def recognizer(backbone: dict, **kwargs) -> torch.nn.Module:
    from mmaction.registry import MODELS

    return MODELS.build(
        dict(
            type='Recognizer2D',
            backbone=backbone,
            cls_head=dict(type='TSNHead', num_classes=3, in_channels=512),
            data_preprocessor=dict(type='mmaction.ActionDataPreprocessor'),
            **kwargs,
        )
    )


@pytest.mark.parametrize(
    'backbone',
    [
        RESNET18,
        dict(type='videomac_mm.Sparsified', backbone=dict(type='mmpretrain.ResNet', depth=18)),
    ],
    ids=lambda backbone: backbone['type'],
)
def test_recognizer2d__unwraps_backbones_that_derive_from_mmpretrain(backbone):
    model = recognizer(backbone).eval()
    frames = torch.randn(2, 4, 3, 32, 32)
    unrepaired = type(model).extract_feat.__wrapped__
    with pytest.raises(AssertionError, match='x is tuple'):
        unrepaired(model, frames, stage='head')
    scores, _ = model.extract_feat(frames, stage='head')
    (maps,) = model.backbone(frames.flatten(0, 1))
    expected = model.cls_head.fc_cls(maps.mean((2, 3)).unflatten(0, (2, 4)).mean(1))
    torch.testing.assert_close(scores, expected)


def test_recognizer2d__other_backbones_stay_as_they_are():
    frames = torch.randn(1, 2, 3, 32, 32)
    own = recognizer(dict(type='mmaction.ResNet', depth=18, norm_eval=False)).eval()
    maps, _ = own.extract_feat(frames)
    assert torch.equal(maps, own.backbone(frames[0])) and own.backbone_from == 'mmaction2'
    # A neck takes all maps of all frames.
    pyramid = recognizer(
        dict(RESNET18, out_indices=(2, 3)),
        neck=dict(
            type='mmaction.TPN',
            in_channels=(256, 512),
            out_channels=32,
            spatial_modulation_cfg=dict(in_channels=(256, 512), out_channels=512),
            temporal_modulation_cfg=dict(downsample_scales=(1, 1)),
            upsample_cfg=dict(scale_factor=(1, 1, 1)),
            downsample_cfg=dict(downsample_scale=(1, 1, 1)),
            level_fusion_cfg=dict(
                in_channels=(32, 32),
                mid_channels=(32, 32),
                out_channels=64,
                downsample_scales=((1, 1, 1), (1, 1, 1)),
            ),
        ),
    ).eval()
    maps, _ = pyramid.extract_feat(frames, stage='backbone')
    assert [x.shape[1] for x in maps] == [256, 512]
    maps, _ = pyramid.extract_feat(frames)
    assert maps.shape[:2] == (1, 2048)


def test_recognizer2d__unwraps_where_videomac_mm_comes_last():
    """A whole mmaction2, which has its DRN, imports videomac_mm as it builds the backbone."""
    run_python(
        'import sys, types\n'
        'import torch, mmaction\n'
        "for name in ('drn', 'drn.drn'):\n"
        "    name = 'mmaction.models.localizers.' + name\n"
        '    sys.modules[name] = types.ModuleType(name)\n'
        'sys.modules[name].DRN = object\n'
        'from mmaction.registry import MODELS\n'
        "MODELS.get('Recognizer2D')\n"
        "assert 'videomac_mm' not in sys.modules\n"
        'model = MODELS.build(dict(\n'
        "    type='Recognizer2D',\n"
        "    backbone=dict(type='videomac_mm.SparseResNet', depth=18),\n"
        "    cls_head=dict(type='TSNHead', num_classes=3, in_channels=512),\n"
        "    data_preprocessor=dict(type='mmaction.ActionDataPreprocessor'),\n"
        '))\n'
        "scores, _ = model.extract_feat(torch.rand(1, 2, 3, 32, 32), stage='head')\n"
        'assert scores.shape == (1, 3)'
    )


# --------------------------------------------------------------------- hue jitter


def test_mmcv_hue__turns_both_ways():
    import mmcv

    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 2] = 255
    for backend in ('cv2', 'pillow'):
        towards_green = mmcv.adjust_hue(red, 1 / 3, backend=backend)
        towards_blue = mmcv.adjust_hue(red, -1 / 3, backend=backend)
        np.testing.assert_allclose(towards_green[0, 0], [0, 255, 0], atol=6)
        np.testing.assert_allclose(towards_blue[0, 0], [255, 0, 0], atol=6)


@pytest.mark.parametrize('shift', [-0.5, -0.1, 0.0, 0.1])
def test_mmaction_hue__shifts_modulo_180(shift):
    from mmaction.datasets.transforms import ColorJitter

    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    hue = int(shift * 255) % 180
    expected = cv2.cvtColor(np.uint8([[[hue, 255, 255]]]), cv2.COLOR_HSV2RGB)[0, 0]
    shifted = ColorJitter.adjust_hue(red.astype(np.float32), shift)
    np.testing.assert_array_equal(shifted[0, 0], expected)


def test_hue_factor__is_a_shift_modulo_256():
    for factor in np.linspace(-0.5, 0.5, 101):
        shift = compat._HueFactor(factor) * 255
        assert shift == int(factor * 255) % 256
        assert 0 <= shift < 256
