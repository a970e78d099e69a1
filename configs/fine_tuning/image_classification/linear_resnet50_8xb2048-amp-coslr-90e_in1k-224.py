# As MAE's linear probing (arXiv 2111.06377).
_base_ = '../../_base_/fine_tuning/classification_linear.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='videomac_mm.SparseResNet',
        depth=50,
        variant='videomac',
        frozen_stages=4,
    ),
    neck=[_base_.model.neck[0], dict(_base_.model.neck[1], input_features=2048)],
    head=dict(in_channels=2048),
)
