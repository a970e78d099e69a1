_base_ = [
    '../_base_/datasets/davis2016_dino.py',
    '../_base_/models/label_propagation_dino.py',
    '../_base_/backbones/video_vit_mini_p16.py',
    '../_base_/label_propagation_runtime.py',
]
# A ViT has the stride of its patches.
model = dict(backbone=_base_.backbone, stride=16)
