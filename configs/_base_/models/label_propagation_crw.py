# Label propagation as CRW (arXiv 2006.14613) does it on DAVIS-2017.
model = dict(
    type='videomac_mm.LabelPropagator',
    data_preprocessor=dict(
        type='mmengine.ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    codec=dict(type='videomac_mm.MaskCodec', label_resize='bilinear', min_max=False),
    stride=8,
    topk=10,
    temperature=0.05,  # of its README; the default of its code is 0.07
    radius=12,
    window_shape='disc',
    window_on_first=False,
    num_frames=20,
    pad_with_first=True,
    keep_ties=False,
)
