"""Everything torch: backbones, the fusion classifier, training, evaluation, the scoring engine, the registry."""
