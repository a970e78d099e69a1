# A folder of video files, searched with all folders below it. Point it at yours:
#   --cfg-options train_dataloader.dataset.data_root=/path/to/videos
_base_ = './pairs_224.py'

train_pipeline = _base_.train_pipeline
# Pairs drawn from a video when it is read, not the paper's 1: decoding on to the eighth costs about
# as much again as decoding up to the first. spread_pairs puts them into different batches.
train_pipeline[1].pairs_per_video = 8
# Crops out of the codec's own planes: the same boxes in less time, two grey levels off on average.
train_pipeline[2].planar = True
# not the paper's 0.2 to 1: a short run sees little, and should see it often
train_pipeline[3].transforms[0].area_range = (0.5, 1.0)

train_dataloader = dict(
    batch_size=16,  # not the paper's 64 per GPU: for CPUs
    num_workers=1,
    pin_memory=False,
    dataset=dict(data_root='data/videos', spread_pairs=True, pipeline=train_pipeline),
)
