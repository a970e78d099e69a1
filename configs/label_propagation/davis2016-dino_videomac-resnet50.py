_base_ = [
    '../_base_/datasets/davis2016_dino.py',
    '../_base_/models/label_propagation_dino.py',
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
