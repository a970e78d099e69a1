# VIP, 50 validation videos, as CRW reads them: frames warped to a square of 560 (the aspect
# ratio is not kept), resized in float. Resize is mmcv's, in the root registry.
_base_ = './label_propagation.py'

test_pipeline = [
    dict(type='videomac_mm.LoadFrame', to_float32=True),
    dict(type='mmengine.Resize', scale=(560, 560), keep_ratio=False),
    dict(type='videomac_mm.PackFrame'),
]

test_dataloader = dict(
    dataset=dict(
        type='videomac_mm.VIPDataset',
        data_root='data/vip',
        pipeline=test_pipeline,
    ),
)
test_evaluator = dict(type='videomac_mm.VIPMetric')
