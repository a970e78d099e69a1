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
                area_range=(0.4, 1.0),
                aspect_ratio_range=(3 / 4, 4 / 3),
            ),
            dict(
                type='mmaction.Resize',
                scale=(128, 128),  # not the paper's 224: for CPUs
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
    num_workers=1,
    persistent_workers=True,  # set to False along with num_workers=0
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='videomac_mm.SyntheticVideoDataset',
        num_videos=1024,
        num_frames=32,
        size=(160, 160),
        pipeline=train_pipeline,
    ),
)
