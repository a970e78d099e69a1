# Generated videos with 15 key-points as in JHMDB.
_base_ = './synthetic_labels.py'

test_dataloader = dict(dataset=dict(form='keypoints'))
test_evaluator = dict(_delete_=True, type='videomac_mm.PCKMetric')
