# Frozen features of VideoMAC's ResNet-50; all else as ConvNeXt's.
_base_ = './recognition_2d_convnext_frozen.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='videomac_mm.SparseResNet',
        depth=50,
        variant='videomac',
        frozen_stages=4,
    ),
    cls_head=dict(in_channels=2048),
)
