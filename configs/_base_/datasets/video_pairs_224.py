# A folder of video files, searched with all folders below it. Point it at yours:
#   --cfg-options train_dataloader.dataset.data_root=/path/to/videos
_base_ = './pairs_224.py'

train_pipeline = _base_.train_pipeline
# ForEachClip: decoding a pair costs several times the step that it feeds
train_pipeline[3].repeats = 4
# not the paper's 0.2 to 1: a short run sees little, and should see it often
train_pipeline[3].transforms[0].area_range = (0.5, 1.0)

train_dataloader = dict(
    batch_size=4,  # with the repeats, 16 pairs; not the paper's 64 per GPU: for CPUs
    num_workers=1,
    pin_memory=False,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(data_root='data/videos', pipeline=train_pipeline),
)
