"""Label propagation on two tiny generated videos."""

_base_ = '../../configs/_base_/default_runtime.py'

model = dict(
    type='LabelPropagator',
    backbone=dict(
        type='SparseConvNeXt',
        arch=dict(depths=[1, 1], channels=[8, 16]),
        gap_before_final_norm=False,
    ),
    radius=4,
    num_frames=2,
    data_preprocessor=dict(
        type='mmengine.ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='VideoSampler'),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='SyntheticLabelDataset',
        num_videos=2,
        num_frames=4,
        size=(35, 51),
        pipeline=[dict(type='ResizeShortSide', size=48, divisor=16), dict(type='PackFrame')],
    ),
)
test_evaluator = dict(type='DAVISMetric')
test_cfg = dict()
log_level = 'ERROR'
