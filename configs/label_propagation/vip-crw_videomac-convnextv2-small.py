_base_ = [
    '../_base_/datasets/vip.py',
    '../_base_/models/label_propagation_crw_vip.py',
    '../_base_/backbones/videomac_convnextv2_small.py',
    '../_base_/label_propagation_runtime.py',
]
model = dict(backbone=_base_.backbone)
