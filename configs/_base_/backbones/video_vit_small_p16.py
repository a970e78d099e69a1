# The ViT-S of VideoMAE, MotionMAE and CMAE-V, all its tokens as a map. A frame stands still
# for one tubelet; positions are interpolated to its size.
backbone = dict(
    type='videomac_mm.VideoVisionTransformer',
    embed_dims=384,
    depth=12,
    num_heads=6,
    use_mean_pooling=False,
    return_feat_map=True,
)
