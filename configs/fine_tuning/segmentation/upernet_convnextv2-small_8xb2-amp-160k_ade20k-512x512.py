# ConvNeXt-V2-S; drop path of mmsegmentation's ConvNeXt-S.
_base_ = './upernet_convnextv2-tiny_8xb2-amp-160k_ade20k-512x512.py'
model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
