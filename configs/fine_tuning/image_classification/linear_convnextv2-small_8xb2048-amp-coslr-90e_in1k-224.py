# As MAE's linear probing (arXiv 2111.06377).
_base_ = '../../_base_/fine_tuning/classification_linear.py'
model = dict(backbone=dict(arch='small'))
