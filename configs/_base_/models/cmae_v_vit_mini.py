# Not in the report: small enough for two CPU cores.
_base_ = './cmae_v_vit_base.py'
model = dict(
    backbone=dict(embed_dims=192, depth=4, num_heads=3),
    neck=dict(in_channels=192, embed_dims=192, depth=2, num_heads=3),
    projector=dict(in_channels=192, hid_channels=384, out_channels=64),
    contrast_head=dict(predictor=dict(in_channels=64, hid_channels=384, out_channels=64)),
)
