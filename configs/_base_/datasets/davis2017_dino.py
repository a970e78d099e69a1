# DAVIS-2017, 30 validation videos, as DINO reads them: short side 480, long side rounded
# down to a multiple of 64 (480 x 832), resized as uint8. Its data preprocessor divides the
# red channel by 58.14 (.228), not by the usual 58.395.
_base_ = './label_propagation.py'

test_pipeline = [
    dict(type='videomac_mm.LoadFrame'),
    dict(type='videomac_mm.ResizeShortSide', size=480, divisor=64),
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
