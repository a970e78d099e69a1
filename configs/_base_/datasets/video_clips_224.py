# A folder of video files, searched with all folders below it. Point it at yours:
#   --cfg-options train_dataloader.dataset.data_root=/path/to/videos
_base_ = './clips_224.py'

train_dataloader = dict(
    batch_size=4,  # not the paper's 32 per GPU: for CPUs
    num_workers=1,
    pin_memory=False,
    dataset=dict(data_root='data/videos'),
)
