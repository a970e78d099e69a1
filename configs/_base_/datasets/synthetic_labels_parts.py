# Generated videos with classes as in VIP.
_base_ = './synthetic_labels.py'

test_dataloader = dict(dataset=dict(form='parts'))
test_evaluator = dict(_delete_=True, type='videomac_mm.VIPMetric')
