_base_ = '../../configs/_base_/default_runtime.py'
custom_imports = dict(imports=['videomac_mm', 'toy_parts'], allow_failed_imports=False)

model = dict(type='ToyModel')
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type='ToyData'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
)
test_dataloader = train_dataloader
test_evaluator = dict(type='ToyMetric')
test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
default_hooks = dict(logger=dict(interval=1))
