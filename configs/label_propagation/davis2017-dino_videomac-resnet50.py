_base_ = [
    '../_base_/datasets/davis2017_dino.py',
    '../_base_/models/label_propagation_dino.py',
    '../_base_/backbones/videomac_resnet50.py',
    '../_base_/label_propagation_runtime.py',
]
model = dict(backbone=_base_.backbone)
