_base_ = [
    '../_base_/datasets/davis2016_crw.py',
    '../_base_/models/label_propagation_crw.py',
    '../_base_/label_propagation_runtime.py',
]
model = dict(
    backbone=dict(
        type='mmpretrain.ResNet',
        depth=50,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
    ),
)
