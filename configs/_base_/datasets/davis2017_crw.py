# DAVIS-2017, 30 validation videos, as CRW reads them: frames of native size (480 x 854;
# its option cropSize -1).
_base_ = './davis2017_dino.py'

test_pipeline = [
    dict(type='videomac_mm.LoadFrame'),
    dict(type='videomac_mm.PackFrame'),
]

test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
