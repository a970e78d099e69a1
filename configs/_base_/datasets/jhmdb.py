# JHMDB, 268 test videos of split 1, as CRW reads them: frames warped to a square of 320 (the
# aspect ratio is not kept), resized in float. Resize is mmcv's, in the root registry.
_base_ = './label_propagation.py'

test_pipeline = [
    dict(type='videomac_mm.LoadFrame', to_float32=True),
    dict(type='mmengine.Resize', scale=(320, 320), keep_ratio=False),
    dict(type='videomac_mm.PackFrame'),
]

test_dataloader = dict(
    dataset=dict(
        type='videomac_mm.JHMDBDataset',
        data_root='data/jhmdb',
        split=1,
        pipeline=test_pipeline,
    ),
)
test_evaluator = dict(type='videomac_mm.PCKMetric')
