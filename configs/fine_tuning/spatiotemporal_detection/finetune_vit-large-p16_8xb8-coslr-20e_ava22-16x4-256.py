# ViT-L; learning rate and its decay as mmaction2's configs/detection/videomae.
_base_ = './finetune_vit-base-p16_8xb8-coslr-20e_ava22-16x4-256.py'
model = dict(
    backbone=dict(embed_dims=1024, depth=24, num_heads=16),
    roi_head=dict(bbox_head=dict(in_channels=1024)),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3 * 64 / 256),
    paramwise_cfg=dict(decay_rate=0.8, num_layers=24),
)
