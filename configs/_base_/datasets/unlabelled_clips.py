# What pre-training data sets share, pairs of frames (clips of two) and longer clips alike.
data_preprocessor = dict(
    type='mmaction.ActionDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    format_shape='NCTHW',
)

train_dataloader = dict(
    num_workers=8,
    persistent_workers=True,  # set to False along with num_workers=0
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='videomac_mm.ResumableSampler', shuffle=True),
    # Written out, for the train tool of mmpretrain would put its own in place.
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(type='videomac_mm.UnlabelledVideoDataset', source='videos'),
)
