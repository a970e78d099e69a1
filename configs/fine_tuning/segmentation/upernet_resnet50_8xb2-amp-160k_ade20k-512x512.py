# The modified ResNet-50 of VideoMAC, by the recipe of ConvNeXt-V2-T, which is about its size.
# For pre-trained weights: with biases of zero, as at the start, padded borders have no variance,
# and every LayerNorm multiplies their gradients by a thousand (a small network overflowed so).
_base_ = './upernet_convnextv2-tiny_8xb2-amp-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='videomac_mm.SparseResNet',
        depth=50,
        variant='videomac',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.2,
    ),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
