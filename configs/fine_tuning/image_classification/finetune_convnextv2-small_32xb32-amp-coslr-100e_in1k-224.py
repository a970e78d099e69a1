# No recipe of ConvNeXt V2 names this size: that of V2-B, which is as deep.
_base_ = './finetune_convnextv2-base_32xb32-amp-coslr-100e_in1k-224.py'
model = dict(backbone=dict(arch='small'), head=dict(in_channels=768))
