# Videos that are generated on the fly: no download, for demos and tests.
data_preprocessor = dict(
    type='mmaction.ActionDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    format_shape='NCTHW',
)

train_pipeline = [
    dict(type='videomac_mm.SampleFramePair', frame_interval=(1, 4)),
    dict(type='videomac_mm.RenderFrames'),
    dict(
        type='videomac_mm.ForEachClip',
        transforms=[
            dict(
                type='mmaction.RandomResizedCrop',
                # not the paper's 0.2 to 1: the shapes fill a large part of the frame
                area_range=(0.7, 1.0),
                aspect_ratio_range=(3 / 4, 4 / 3),
            ),
            dict(
                type='mmaction.Resize',
                scale=(160, 160),  # not the paper's 224: for CPUs
                keep_ratio=False,
                interpolation='bicubic',
            ),
            dict(type='mmaction.Flip', flip_ratio=0.5),
        ],
    ),
    dict(type='mmaction.FormatShape', input_format='NCTHW'),
    dict(type='mmaction.PackActionInputs'),
]

train_dataloader = dict(
    batch_size=16,  # not the paper's 64 per GPU: for CPUs
    num_workers=0,  # two cores are better spent on the model
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    # Written out, for the train tool of mmpretrain would put its own in place.
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='videomac_mm.SyntheticVideoDataset',
        num_videos=8,  # few enough to learn within minutes
        num_frames=32,
        size=(176, 176),
        pipeline=train_pipeline,
    ),
)
