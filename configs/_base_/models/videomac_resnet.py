# VideoMAC with the modified ResNet-50, as the paper (arXiv 2402.19082).
model = dict(
    type='videomac_mm.VideoMAC',
    backbone=dict(
        type='videomac_mm.SparseResNet',
        depth=50,
        variant='videomac',
        # As the official code: std 1 (cut at 2) for the stem, 0.02 for the convs of the blocks.
        init_cfg=[
            dict(type='TruncNormal', layer='Conv2d', std=0.02),
            dict(
                type='videomac_mm.ByName',
                names='conv1',
                init=dict(type='TruncNormal', layer='Conv2d', std=1.0),
            ),
        ],
    ),
    neck=dict(
        type='videomac_mm.MaskTokenDecoder',
        in_channels=2048,
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
