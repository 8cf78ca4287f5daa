"""What every engine needs of a model's folder beside its weights. Knows no engine."""
