# The first split of UCF101 as mmaction2 prepares it; all else as Kinetics-400.
_base_ = './recognition_k400.py'

num_classes = 101
data_preprocessor = dict(
    blending=dict(
        augments=[
            dict(type='mmaction.MixupBlending', alpha=0.8, num_classes=num_classes),
            dict(type='mmaction.CutmixBlending', alpha=1.0, num_classes=num_classes),
        ],
    ),
)

train_data = dict(
    data_root='data/ucf101',
    ann_file='ucf101_train_split_1_videos.txt',
    data_prefix=dict(video='videos'),
)
val_data = dict(
    data_root='data/ucf101',
    ann_file='ucf101_val_split_1_videos.txt',
    data_prefix=dict(video='videos'),
)
train_dataloader = dict(dataset=train_data)
val_dataloader = dict(dataset=val_data)
test_dataloader = dict(dataset=val_data)
