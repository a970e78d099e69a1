_base_ = [
    '../_base_/datasets/jhmdb.py',
    '../_base_/models/label_propagation_crw_jhmdb.py',
    '../_base_/label_propagation_runtime.py',
]
model = dict(
    backbone=dict(
        type='videomac_mm.SparseResNet',
        depth=50,
        variant='videomac',
        out_indices=(2,),
    ),
)
