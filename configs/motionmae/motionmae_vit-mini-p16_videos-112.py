# A folder of videos on two CPU cores, in ten minutes or so. Point it at yours:
#   --cfg-options train_dataloader.dataset.data_root=/path/to/videos
_base_ = [
    '../_base_/models/motionmae_vit_mini.py',
    '../_base_/datasets/video_clips_112_repeated.py',
    '../_base_/schedules/videomae_cpu.py',
]
model = dict(
    backbone=dict(img_size=112, num_frames=8),
    neck=dict(num_patches=4 * 7 * 7),
    # not 0.9, which would leave 5 of 49 places: as VideoMAE on small data sets
    mask_generator=dict(mask_ratio=0.75),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
