# CMAE-V with ViT-B (arXiv 2301.06018); a re-implementation, for no code was published. What the
# report leaves open is that of VideoMAE (decoder, pixels) and of CMAE for images (contrast).
_base_ = './videomae_vit_base.py'
norm_cfg = dict(type='videomac_mm.GatheredBatchNorm1d', eps=1e-6)
mlp = dict(
    type='mmpretrain.NonLinearNeck',
    hid_channels=1536,
    out_channels=256,
    with_bias=True,
    with_last_bn=False,
    with_avg_pool=False,
    norm_cfg=norm_cfg,
)
temperature = 0.07
model = dict(
    type='videomac_mm.CMAEV',
    projector=dict(mlp, in_channels=768),
    contrast_head=dict(
        type='videomac_mm.ContrastHead',
        predictor=dict(mlp, in_channels=256),
        temperature=temperature,
        loss=dict(type='mmpretrain.CrossEntropyLoss', loss_weight=2 * temperature),
    ),
)
