_base_ = [
    '../_base_/datasets/synthetic_labels_parts.py',
    '../_base_/models/label_propagation_crw_vip.py',
    '../_base_/backbones/videomac_convnextv2_atto.py',
    '../_base_/label_propagation_runtime.py',
]
model = dict(backbone=_base_.backbone)
