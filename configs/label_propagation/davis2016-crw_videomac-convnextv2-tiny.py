_base_ = [
    '../_base_/datasets/davis2016_crw.py',
    '../_base_/models/label_propagation_crw.py',
    '../_base_/backbones/videomac_convnextv2_tiny.py',
    '../_base_/label_propagation_runtime.py',
]
model = dict(backbone=_base_.backbone)
