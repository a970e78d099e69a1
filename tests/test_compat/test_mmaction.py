"""Each repair of mmaction2: the problem is gone, and what is sound is untouched."""

import cv2
import numpy as np
import pytest
import torch

RESNET18 = dict(type='videomac_mm.SparseResNet', depth=18)


def test_mmaction_models__import_after_a_failed_first_import(run_python):
    run_python(
        'try:\n'
        '    import mmaction.models\n'
        'except Exception:\n'
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


def test_recognizer2d__unwraps_where_videomac_mm_comes_last(run_python):
    """A whole mmaction2, which has its DRN, imports videomac_mm as it builds the backbone."""
    run_python(
        'import sys, types\n'
        'import torch, mmaction.utils.dependency, mmpretrain.utils.dependency\n'
        # Whatever `transformers` is installed.
        'for toolbox in (mmaction, mmpretrain):\n'
        '    toolbox.utils.dependency.WITH_MULTIMODAL = False\n'
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


@pytest.mark.parametrize('shift', [-0.5, -0.1, 0.0, 0.1])
def test_mmaction_hue__shifts_modulo_180(shift):
    from mmaction.datasets.transforms import ColorJitter

    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    hue = int(shift * 255) % 180
    expected = cv2.cvtColor(np.uint8([[[hue, 255, 255]]]), cv2.COLOR_HSV2RGB)[0, 0]
    shifted = ColorJitter.adjust_hue(red.astype(np.float32), shift)
    np.testing.assert_array_equal(shifted[0, 0], expected)
