# The ViT-B of VideoMAE, MotionMAE and CMAE-V, all its tokens as a map. A frame stands still
# for one tubelet; positions are interpolated to its size.
backbone = dict(
    type='videomac_mm.VideoVisionTransformer',
    embed_dims=768,
    depth=12,
    num_heads=12,
    use_mean_pooling=False,
    return_feat_map=True,
)
