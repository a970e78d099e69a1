# Not in the paper: small enough for two CPU cores.
_base_ = './motionmae_vit_base.py'
model = dict(
    backbone=dict(embed_dims=192, depth=4, num_heads=3),
    neck=dict(in_channels=192, embed_dims=192, depth=2, num_heads=3),
)
