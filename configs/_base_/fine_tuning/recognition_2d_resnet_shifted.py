# VideoMAC's ResNet-50 with the shift of TSM; all else as ConvNeXt's.
_base_ = './recognition_2d_convnext_shifted.py'

model = dict(
    backbone=dict(
        backbone=dict(_delete_=True, type='videomac_mm.SparseResNet', depth=50, variant='videomac'),
    ),
    cls_head=dict(in_channels=2048),
)
