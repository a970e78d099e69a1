# The ConvViT-B of CMAE-V, its tokens as a map. A frame stands still for one tubelet; positions
# are interpolated to its size.
backbone = dict(
    type='videomac_mm.ConvVisionTransformer',
    embed_dims=(256, 384, 768),
    depths=(2, 2, 11),
    num_heads=12,
    multi_scale_fusion=True,  # as in pre-training
    use_mean_pooling=False,
    return_feat_map=True,
)
