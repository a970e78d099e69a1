# VideoMAC with ConvNeXt-V2-T, as the paper (arXiv 2402.19082).
model = dict(
    type='videomac_mm.VideoMAC',
    backbone=dict(
        type='videomac_mm.SparseConvNeXt',
        arch='tiny',
        use_grn=True,
        # The official code pools over the whole batch ('batch'): features then depend on batch
        # mates and on the number of GPUs.
        grn_scope='sample',
        layer_scale_init_value=0.0,
        stage_norm='inline',
        # As the official code: std 1 (cut at 2) for the stem, depth-wise and linear layers, 0.02
        # for the down-sampling convs.
        init_cfg=[
            dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=1.0),
            dict(
                type='videomac_mm.ByName',
                names='downsample_layers.[1-9].1',
                init=dict(type='TruncNormal', layer='Conv2d', std=0.02),
            ),
        ],
    ),
    neck=dict(
        type='videomac_mm.MaskTokenDecoder',
        in_channels=768,
        embed_dims=512,
        depth=1,
        patch_size=32,
        # As the official code: std 1 for convs, torch's default for linear layers.
        init_cfg=[dict(type='TruncNormal', layer='Conv2d', std=1.0)],
    ),
    head=dict(type='videomac_mm.PixelHead', norm_pix=True, patch_size=32),
    mask_generator=dict(type='videomac_mm.RandomPatchMask', patch_size=32, mask_ratio=0.75),
    consistency_loss=dict(type='videomac_mm.ConsistencyLoss', loss_weight=1.0),
)
