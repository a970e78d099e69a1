_base_ = [
    '../_base_/datasets/jhmdb.py',
    '../_base_/models/label_propagation_crw_jhmdb.py',
    '../_base_/backbones/resnet50.py',
    '../_base_/label_propagation_runtime.py',
]
model = dict(backbone=_base_.backbone)
