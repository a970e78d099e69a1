# The small ViT of the short runs, all its tokens as a map. A frame stands still
# for one tubelet; positions are interpolated to its size.
backbone = dict(
    type='videomac_mm.VideoVisionTransformer',
    img_size=112,
    num_frames=8,
    embed_dims=192,
    depth=4,
    num_heads=3,
    use_mean_pooling=False,
    return_feat_map=True,
)
