# A folder of videos on two CPU cores. Point it at yours:
#   --cfg-options train_dataloader.dataset.data_root=/path/to/videos
_base_ = [
    '../_base_/models/cmae_v_vit_tiny.py',
    '../_base_/datasets/video_clips_112.py',
    '../_base_/schedules/cmae_v_cpu.py',
]
model = dict(backbone=dict(img_size=112), neck=dict(num_patches=8 * 7 * 7))
train_dataloader = _base_.train_dataloader
train_dataloader.dataset.pipeline[1].max_shift = 2 * 4
