# Videos that are generated on the fly: no download, for demos and tests.
_base_ = './pairs_224.py'

train_pipeline = [
    dict(type='videomac_mm.SampleFramePair', frame_interval=(1, 4)),
    dict(type='videomac_mm.RenderFrames'),
    *_base_.train_pipeline[3:],
]
# not the paper's 0.2 to 1: the shapes fill a large part of the frame
train_pipeline[2].transforms[0].area_range = (0.7, 1.0)
train_pipeline[2].transforms[1].scale = (160, 160)  # not the paper's 224: for CPUs

train_dataloader = dict(
    batch_size=16,  # not the paper's 64 per GPU: for CPUs
    num_workers=0,  # two cores are better spent on the model
    persistent_workers=False,
    pin_memory=False,
    dataset=dict(
        _delete_=True,
        type='videomac_mm.SyntheticVideoDataset',
        num_videos=8,  # few enough to learn within minutes
        num_frames=32,
        size=(176, 176),
        pipeline=train_pipeline,
    ),
)
