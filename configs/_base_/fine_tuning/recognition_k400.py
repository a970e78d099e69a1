# Kinetics-400 as mmaction2 prepares it. Augmentation as VideoMAE's code (arXiv 2203.12602); every
# frame of a clip is treated alike. What differs is listed in the README of action_recognition.
num_classes = 400

data_preprocessor = dict(
    type='mmaction.ActionDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    format_shape='NCTHW',
    # One of the two for every batch, with equal probability.
    blending=dict(
        type='mmaction.RandomBatchAugment',
        augments=[
            dict(type='mmaction.MixupBlending', alpha=0.8, num_classes=num_classes),
            dict(type='mmaction.CutmixBlending', alpha=1.0, num_classes=num_classes),
        ],
    ),
)

# rand-m7-n4-mstd0.5-inc1 of timm. The scope is mmpretrain's, for its operations are found there.
rand_augment = dict(
    type='TransformBroadcaster',
    mapping=dict(img='imgs'),
    auto_remap=True,
    share_random_params=True,
    transforms=[
        dict(
            type='RandAugment',
            _scope_='mmpretrain',
            policies='timm_increasing',
            num_policies=4,
            magnitude_level=7,
            magnitude_std=0.5,
            hparams=dict(pad_val=128, interpolation='bicubic'),
        ),
    ],
)
# Normal noise of the mean and deviation that the data preprocessor takes away.
random_erasing = dict(
    type='mmaction.RandomErasing',
    erase_prob=0.25,
    mode='rand',
    fill_color=data_preprocessor['mean'],
    fill_std=data_preprocessor['std'],
)

# A video that is too short repeats its last frame.
sample_frames = dict(
    type='mmaction.SampleFrames', clip_len=16, frame_interval=4, out_of_bound_opt='repeat_last'
)

train_pipeline = [
    # RepeatAugDataset opens, samples and decodes with the first three steps.
    dict(type='videomac_mm.OpenVideo'),
    sample_frames,
    dict(type='videomac_mm.DecodeFrames'),
    rand_augment,
    dict(
        type='mmaction.RandomResizedCrop',
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
    ),
    dict(type='mmaction.Resize', scale=(224, 224), keep_ratio=False),
    dict(type='mmaction.Flip', flip_ratio=0.5),
    random_erasing,
    dict(type='mmaction.FormatShape', input_format='NCTHW'),
    dict(type='mmaction.PackActionInputs'),
]
# One clip from the middle, one crop.
val_pipeline = [
    dict(type='videomac_mm.OpenVideo'),
    dict(sample_frames, test_mode=True),
    dict(type='videomac_mm.DecodeFrames'),
    dict(type='mmaction.Resize', scale=(-1, 224)),
    dict(type='mmaction.CenterCrop', crop_size=224),
    dict(type='mmaction.FormatShape', input_format='NCTHW'),
    dict(type='mmaction.PackActionInputs'),
]
# Five clips, three crops of each.
test_pipeline = [
    dict(type='videomac_mm.OpenVideo'),
    dict(sample_frames, num_clips=5, test_mode=True),
    dict(type='videomac_mm.DecodeFrames'),
    dict(type='mmaction.Resize', scale=(-1, 224)),
    dict(type='mmaction.ThreeCrop', crop_size=224),
    dict(type='mmaction.FormatShape', input_format='NCTHW'),
    dict(type='mmaction.PackActionInputs'),
]

train_data = dict(
    data_root='data/kinetics400',
    ann_file='kinetics400_train_list_videos.txt',
    data_prefix=dict(video='videos_train'),
)
val_data = dict(
    data_root='data/kinetics400',
    ann_file='kinetics400_val_list_videos.txt',
    data_prefix=dict(video='videos_val'),
)
train_dataloader = dict(
    batch_size=6,
    num_workers=8,
    persistent_workers=True,  # set to False along with num_workers=0
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='repeat_pseudo_collate'),
    dataset=dict(
        type='videomac_mm.RepeatAugDataset',
        # The same frames, decoded once and augmented twice: a batch has twice as many clips.
        num_repeats=2,
        sample_once=True,
        pipeline=train_pipeline,
        **train_data,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    # Written out, for the train tool of mmpretrain would put its own in place.
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(type='mmaction.VideoDataset', pipeline=val_pipeline, test_mode=True, **val_data),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(type='mmaction.VideoDataset', pipeline=test_pipeline, test_mode=True, **val_data),
)
val_evaluator = dict(type='mmaction.AccMetric')
test_evaluator = val_evaluator
