# ConvNeXt-V2-B.
_base_ = './upernet_convnextv2-tiny_8xb2-amp-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(arch='base'),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
