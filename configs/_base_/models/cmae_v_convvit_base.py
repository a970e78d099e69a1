# CMAE-V with ConvViT-B, ConvMAE's encoder (arXiv 2205.03892). The form for video is ours: its
# weights were announced, never its code.
_base_ = './cmae_v_vit_base.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='videomac_mm.ConvVisionTransformer',
        embed_dims=(256, 384, 768),
        depths=(2, 2, 11),
        num_heads=12,
        multi_scale_fusion=True,
        use_mean_pooling=False,
        init_cfg=_base_.model.backbone.init_cfg,
    ),
)
