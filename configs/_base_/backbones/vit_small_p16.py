# DeiT-S, its last tokens as a map.
backbone = dict(
    type='mmpretrain.VisionTransformer',
    arch='deit-small',
    img_size=224,
    patch_size=16,
    out_type='featmap',
)
