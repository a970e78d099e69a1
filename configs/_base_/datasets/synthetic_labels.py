# Videos that are generated on the fly, with masks of objects as in DAVIS: no download, for
# demos and tests. Frames of native size, a multiple of 32.
test_dataloader = dict(
    batch_size=1,
    num_workers=0,  # drawing a frame takes milliseconds
    persistent_workers=False,
    sampler=dict(type='videomac_mm.VideoSampler'),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='videomac_mm.SyntheticLabelDataset',
        form='masks',
        num_videos=4,
        num_frames=8,
        size=(128, 192),
        num_objects=3,
        pipeline=[dict(type='videomac_mm.PackFrame')],
    ),
)
test_evaluator = dict(type='videomac_mm.DAVISMetric')
test_cfg = dict()
