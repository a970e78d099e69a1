# VideoMAE with ViT-B, as the paper (arXiv 2203.12602).
model = dict(
    type='videomac_mm.VideoMAE',
    backbone=dict(
        type='videomac_mm.VideoVisionTransformer',
        embed_dims=768,
        depth=12,
        num_heads=12,
        use_mean_pooling=False,  # the final norm belongs to pre-training
        # As the official code, which leaves the embedding of tubelets to torch.
        init_cfg=[
            dict(type='Xavier', layer='Linear', distribution='uniform', bias=0.0),
            dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
        ],
    ),
    neck=dict(
        type='videomac_mm.TokenDecoder',
        num_patches=8 * 14 * 14,
        in_channels=768,
        embed_dims=384,
        depth=4,
        num_heads=6,
        pred_dims=[2 * 16 * 16 * 3],
    ),
    head=dict(type='videomac_mm.VideoPixelHead', norm='channel'),
    mask_generator=dict(type='videomac_mm.TubeMask', mask_ratio=0.9),
)
