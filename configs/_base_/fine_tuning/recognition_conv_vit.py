# As recognition_video_vit.py, with CMAE-V's second encoder (arXiv 2301.06018).
_base_ = './recognition_video_vit.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='videomac_mm.ConvVisionTransformer',
        embed_dims=(256, 384, 768),
        depths=(2, 2, 11),
        num_heads=12,
        num_frames=16,
        drop_path_rate=0.1,
        use_mean_pooling=True,
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=11))
