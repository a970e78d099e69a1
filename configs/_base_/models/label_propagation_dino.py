# Label propagation as DINO (arXiv 2104.14294) does it on DAVIS-2017.
model = dict(
    type='videomac_mm.LabelPropagator',
    data_preprocessor=dict(
        type='mmengine.ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.14, 57.12, 57.375],  # red: 0.228 * 255, as in DINO's code; 0.229 elsewhere
        bgr_to_rgb=True,
    ),
    codec=dict(type='videomac_mm.MaskCodec', label_resize='nearest', min_max=True),
    stride=8,
    topk=5,
    temperature=0.1,
    radius=12,  # cells: 96 pixels at a stride of 8, 192 at one of 16
    window_shape='square',
    window_on_first=True,
    num_frames=7,
    pad_with_first=False,
    keep_ties=True,
)
