_base_ = './videomae_vit_base.py'
model = dict(
    backbone=dict(embed_dims=384, num_heads=6),
    neck=dict(in_channels=384, embed_dims=192, num_heads=3),
)
