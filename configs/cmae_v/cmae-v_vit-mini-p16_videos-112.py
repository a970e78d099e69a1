# A folder of videos on two CPU cores, in ten minutes or so. Point it at yours:
#   --cfg-options train_dataloader.dataset.data_root=/path/to/videos
_base_ = [
    '../_base_/models/cmae_v_vit_mini.py',
    '../_base_/datasets/video_clips_112.py',
    '../_base_/schedules/cmae_v_cpu.py',
]
model = dict(
    backbone=dict(img_size=112, num_frames=8),
    neck=dict(num_patches=4 * 7 * 7),
    # not 0.9, which would leave 5 of 49 places: as VideoMAE on small data sets
    mask_generator=dict(mask_ratio=0.75),
)
train_dataloader = _base_.train_dataloader
train_dataloader.batch_size = 8  # videos to be told apart
train_dataloader.dataset.pipeline[1].max_shift = 8
optim_wrapper = dict(optimizer=dict(lr=1e-3))
max_iters = 600
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=max_iters),
]
