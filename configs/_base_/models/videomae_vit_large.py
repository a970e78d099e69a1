_base_ = './videomae_vit_base.py'
model = dict(
    backbone=dict(embed_dims=1024, depth=24, num_heads=16),
    neck=dict(in_channels=1024, embed_dims=512, depth=12, num_heads=8),
)
