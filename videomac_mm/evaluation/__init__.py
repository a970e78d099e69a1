from videomac_mm.evaluation.metrics import DAVISMetric, PCKMetric, VIPMetric

__all__ = ['DAVISMetric', 'PCKMetric', 'VIPMetric']
