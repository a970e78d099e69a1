"""Our ConvNets in stock configs of the toolboxes, by a change of the backbone's dict alone."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT
from mmengine.registry import init_default_scope
from torch import Tensor, nn

import videomac_mm  # noqa: F401  repairs what the toolboxes import
from videomac_mm.models import SparseConvNeXt, SparseResNet

CONVNEXT, RESNET = 'videomac_mm.SparseConvNeXt', 'videomac_mm.SparseResNet'
ATTO = dict(type=CONVNEXT, arch='atto', use_grn=True, layer_scale_init_value=0.0)
ATTO |= dict(stage_norm='inline', out_indices=(0, 1, 2, 3))
ATTO_DIMS = [40, 80, 160, 320]


def stock_model(package: str, path: str) -> Config:
    """The model of a toolbox's own config, without weights from elsewhere."""
    toolbox = pytest.importorskip(package, reason=f'needs {package}')
    pytest.importorskip(f'{package}.models', reason=f'needs all that {package} imports')
    init_default_scope(package)
    model = Config.fromfile(Path(toolbox.__file__).parent / '.mim' / 'configs' / path).model
    model.backbone.pop('init_cfg', None)
    replace_sync_bn(model)
    return model


def replace_sync_bn(cfg: Config | list) -> None:
    for part in cfg.values() if isinstance(cfg, dict) else cfg:
        if isinstance(part, dict | list):
            replace_sync_bn(part)
    if isinstance(cfg, dict) and cfg.get('type') == 'SyncBN':  # needs a GPU
        cfg.type = 'BN'


def build(model: Config) -> nn.Module:
    torch.manual_seed(0)
    built = ROOT.build(model)
    assert isinstance(built.backbone, SparseConvNeXt | SparseResNet)
    return built


def check_loss(model: nn.Module, inputs: Tensor | list[Tensor], samples: list) -> None:
    """One training step's worth: a finite loss, and gradients in all of the backbone."""
    model.train()
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=samples), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    for name, param in model.backbone.named_parameters():
        if param.requires_grad:
            assert param.grad is not None and param.grad.isfinite().all(), name
    moved = [p.grad.abs().sum() > 0 for p in model.backbone.parameters() if p.requires_grad]
    assert np.mean(moved) > 0.9


def predict(model: nn.Module, inputs: Tensor | list[Tensor], samples: list) -> list:
    model.eval()
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=samples), training=False)
    with torch.no_grad():
        return model(**data, mode='predict')


def images(number: int = 2, size: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (3, size, size), generator=generator) for _ in range(number)]


# --------------------------------------------------------------------- mmpretrain


@pytest.mark.parametrize(
    ('path', 'ours'),
    [
        ('convnext/convnext-tiny_32xb128_in1k.py', CONVNEXT),
        ('resnet/resnet50_8xb32_in1k.py', RESNET),
    ],
)
def test_mmpretrain__the_type_alone_gives_the_same_network(path, ours):
    from mmpretrain.structures import DataSample

    stock = stock_model('mmpretrain', path)
    stock.pop('train_cfg', None)  # mixup and the like
    theirs = ROOT.build(stock).eval()
    stock.backbone.type = ours
    model = build(stock).eval()
    assert model.state_dict().keys() == theirs.state_dict().keys()
    # Norms, running statistics, biases and layer scales away from the start, alike in all layers.
    state = {
        k: v + 0.1 * torch.rand_like(v) if v.is_floating_point() and v.ndim == 1 else v
        for k, v in theirs.state_dict().items()
    }
    theirs.load_state_dict(state)
    model.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, features = theirs.extract_feat(x)[-1], model.extract_feat(x)[-1]
    scale = expected.std().item()
    assert scale > 0
    torch.testing.assert_close(features / scale, expected / scale, rtol=1e-5, atol=1e-5)
    samples = [DataSample().set_gt_label(label) for label in (3, 7)]
    check_loss(model, torch.stack(images()), samples)
    assert predict(model, torch.stack(images()), samples)[0].pred_score.shape == (1000,)


# ----------------------------------------------------------------- mmsegmentation


def segmented(size: int, num_classes: int) -> list:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        labels = PixelData(data=torch.randint(num_classes, (1, size, size)))
        info = dict(ori_shape=(size, size), img_shape=(size, size))
        samples.append(SegDataSample(gt_sem_seg=labels, metainfo=info))
    return samples


@pytest.mark.parametrize(
    ('path', 'changes'),
    [
        ('convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py', dict(type=CONVNEXT)),
        (
            'fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
            dict(
                _delete_=True,
                type=RESNET,
                depth=50,
                out_indices=(0, 1, 2, 3),
                dilations=(1, 1, 2, 4),
                strides=(1, 2, 1, 1),
            ),
        ),
    ],
    ids=['type', 'dilated'],
)
def test_mmseg__trains_and_predicts(path, changes):
    stock = stock_model('mmseg', path)
    stock.pop('pretrained', None)
    stock.data_preprocessor.size = (64, 64)
    stock.test_cfg = dict(mode='whole')
    swap(stock, changes)
    model = build(stock)
    num_classes = stock.decode_head.num_classes
    samples = segmented(64, num_classes)
    check_loss(model, images(), samples)
    model.data_preprocessor.test_cfg = None
    result = predict(model, images(), samples)[0]
    assert result.seg_logits.data.shape == (num_classes, 64, 64)
    if changes['type'] == RESNET:
        assert model.backbone(torch.zeros(1, 3, 64, 64))[-1].shape == (1, 2048, 8, 8)


def swap(model: Config, changes: dict) -> None:
    """Write another backbone's dict into a stock model."""
    changes = dict(changes)
    if changes.pop('_delete_', False):
        model.backbone = changes
    else:
        model.backbone.update(changes)


# ------------------------------------------------------------ mmdet and mmpose


RESNET_FPN = dict(_delete_=True, type=RESNET, depth=50, out_indices=(0, 1, 2, 3), frozen_stages=1)


@pytest.mark.parametrize(
    ('path', 'changes', 'in_channels', 'predicts'),
    [
        ('retinanet/retinanet_r50_fpn_1x_coco.py', RESNET_FPN, None, False),
        ('retinanet/retinanet_r50_fpn_1x_coco.py', dict(ATTO, _delete_=True), ATTO_DIMS, False),
        ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', RESNET_FPN, None, False),
        ('detr/detr_r50_8xb2-150e_coco.py', dict(RESNET_FPN, out_indices=(3,)), None, True),
    ],
    ids=['retinanet-resnet', 'retinanet-convnext', 'fcos-resnet', 'detr-resnet'],
)
def test_mmdet__trains(path, changes, in_channels, predicts):
    stock = stock_model('mmdet', path)
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    swap(stock, changes)
    if in_channels:
        stock.neck.in_channels = in_channels
    samples = []
    for _ in range(2):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(128, 128),
                ori_shape=(128, 128),
                batch_input_shape=(128, 128),
                scale_factor=(1.0, 1.0),
            )
        )
        boxes = torch.tensor([[10.0, 10.0, 60.0, 70.0], [50.0, 40.0, 120.0, 110.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 5]))
        samples.append(sample)
    model = build(stock)
    check_loss(model, images(size=128), samples)
    if predicts or compiled_ops():  # most detectors end in NMS, a compiled op
        scores = predict(model, images(size=128), samples)[0].pred_instances.scores
        assert ((scores >= 0) & (scores <= 1)).all()


def compiled_ops() -> bool:
    extension = importlib.import_module('mmcv._ext')
    return extension.__spec__.origin != 'videomac_mm.compat'


@pytest.mark.parametrize(
    ('changes', 'in_channels'),
    [
        (dict(_delete_=True, type=RESNET, depth=50), 2048),
        (dict(ATTO, _delete_=True, out_indices=(3,)), 320),
    ],
    ids=['resnet', 'convnext'],
)
def test_mmpose__trains_and_predicts(changes, in_channels):
    path = 'body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py'
    stock = stock_model('mmpose', path)
    from mmengine.structures import InstanceData, PixelData
    from mmpose.structures import PoseDataSample

    swap(stock, changes)
    stock.head.in_channels = in_channels
    samples = []
    for _ in range(2):
        sample = PoseDataSample(
            metainfo=dict(
                input_size=(96, 128),
                input_center=np.array([48.0, 64.0]),
                input_scale=np.array([96.0, 128.0]),
                flip_indices=list(range(17)),
            )
        )
        sample.gt_fields = PixelData(heatmaps=torch.rand(17, 32, 24))
        sample.gt_instance_labels = InstanceData(keypoint_weights=torch.ones(1, 17))
        sample.gt_instances = InstanceData(
            bboxes=np.array([[0.0, 0.0, 96.0, 128.0]]), bbox_scores=np.ones(1)
        )
        samples.append(sample)
    stock.head.decoder.update(input_size=(96, 128), heatmap_size=(24, 32))
    model = build(stock)
    people = [torch.randint(256, (3, 128, 96)) for _ in range(2)]
    check_loss(model, people, samples)
    found = predict(model, people, samples)[0].pred_instances.keypoints
    assert found.shape == (1, 17, 2)
