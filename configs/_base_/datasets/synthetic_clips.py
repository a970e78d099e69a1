# Videos that are generated on the fly: no download, for demos and tests.
_base_ = './unlabelled_clips.py'

train_dataloader = dict(
    batch_size=4,  # not the paper's 32 per GPU: for CPUs
    num_workers=0,  # two cores are better spent on the model
    persistent_workers=False,
    pin_memory=False,
    dataset=dict(
        _delete_=True,
        type='videomac_mm.SyntheticVideoDataset',
        num_videos=4,  # few enough to learn within minutes
        num_frames=32,
        size=(96, 96),  # not the paper's 224: for CPUs
        pipeline=[
            # not the paper's interval of 4, nor its crops: they would be more to learn
            dict(type='videomac_mm.SampleClips', clip_len=16, frame_interval=1),
            dict(type='videomac_mm.RenderFrames'),
            dict(type='mmaction.FormatShape', input_format='NCTHW'),
            dict(type='mmaction.PackActionInputs'),
        ],
    ),
)
