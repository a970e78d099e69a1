# DAVIS-2017, 30 validation videos, as CRW reads them: frames of native size (480 x 854;
# its option cropSize -1).
_base_ = './label_propagation.py'

test_pipeline = [
    dict(type='videomac_mm.LoadFrame'),
    dict(type='videomac_mm.PackFrame'),
]

test_dataloader = dict(
    dataset=dict(
        type='videomac_mm.DAVISDataset',
        data_root='data/davis2017',
        year=2017,
        pipeline=test_pipeline,
    ),
)
test_evaluator = dict(type='videomac_mm.DAVISMetric')
