_base_ = [
    '../_base_/datasets/davis2016_crw.py',
    '../_base_/models/label_propagation_crw.py',
    '../_base_/label_propagation_runtime.py',
]
model = dict(
    backbone=dict(
        type='mmpretrain.VisionTransformer',
        arch='deit-small',
        img_size=224,
        patch_size=16,
        out_type='featmap',
    ),
    stride=16,  # a ViT has that of its patches
)
