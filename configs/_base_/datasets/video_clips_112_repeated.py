# As video_clips_112.py, with four crops of each clip: decoding costs more than the step that it
# feeds.
_base_ = './video_clips_112.py'

train_dataloader = _base_.train_dataloader
train_dataloader.dataset.pipeline[3:5] = [
    dict(
        type='videomac_mm.ForEachClip',
        repeats=4,
        transforms=train_dataloader.dataset.pipeline[3:5],
    )
]
