# A folder of video files, searched with all folders below it. Point it at yours:
#   --cfg-options train_dataloader.dataset.data_root=/path/to/videos
data_root = 'data/videos'

data_preprocessor = dict(
    type='mmaction.ActionDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    format_shape='NCTHW',
)

train_pipeline = [
    dict(type='videomac_mm.OpenVideo'),
    # Files have any frame rate: the time between two stored frames of YouTube-VOS
    # (6 per second), the paper's data, rather than a number of frames.
    dict(type='videomac_mm.SampleFramePair', frame_interval=1 / 6, unit='seconds'),
    dict(type='mmaction.DecordDecode'),
    dict(
        type='videomac_mm.ForEachClip',
        repeats=4,  # decoding a pair costs several times the step that it feeds
        transforms=[
            dict(
                type='mmaction.RandomResizedCrop',
                # not the paper's 0.2 to 1: a short run sees little, and should see it often
                area_range=(0.5, 1.0),
                aspect_ratio_range=(3 / 4, 4 / 3),
            ),
            dict(
                type='mmaction.Resize',
                scale=(224, 224),
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
    batch_size=4,  # with the repeats, 16 pairs; not the paper's 64 per GPU: for CPUs
    num_workers=1,
    persistent_workers=True,  # set to False along with num_workers=0
    drop_last=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    # Written out, for the train tool of mmpretrain would put its own in place.
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='videomac_mm.FramePairDataset',
        data_root=data_root,
        source='videos',
        pipeline=train_pipeline,
    ),
)
