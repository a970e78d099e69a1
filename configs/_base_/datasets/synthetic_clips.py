# Videos that are generated on the fly: no download, for demos and tests.
_base_ = './unlabelled_clips.py'

train_dataloader = dict(
    batch_size=8,  # not the paper's 32 per GPU: for CPUs
    num_workers=0,  # two cores are better spent on the model
    persistent_workers=False,
    pin_memory=False,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        _delete_=True,
        type='videomac_mm.SyntheticVideoDataset',
        num_videos=8,  # few enough to learn within minutes
        num_frames=48,
        size=(112, 112),
        pipeline=[
            dict(type='videomac_mm.SampleClips', clip_len=16, frame_interval=2),
            dict(type='videomac_mm.RenderFrames'),
            dict(
                type='mmaction.MultiScaleCrop',
                input_size=96,  # not the paper's 224: for CPUs
                scales=(1, 0.875, 0.75, 0.66),
                max_wh_scale_gap=1,
                random_crop=False,
                num_fixed_crops=13,
            ),
            dict(type='mmaction.Resize', scale=(96, 96), keep_ratio=False),
            dict(type='mmaction.FormatShape', input_format='NCTHW'),
            dict(type='mmaction.PackActionInputs'),
        ],
    ),
)
