_base_ = './videomae_vit_base.py'
model = dict(
    backbone=dict(embed_dims=1280, depth=32, num_heads=16, with_cp=True),
    neck=dict(in_channels=1280, embed_dims=640, depth=12, num_heads=8, with_cp=True),
)
