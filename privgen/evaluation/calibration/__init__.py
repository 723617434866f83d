"""Whether p-values are what they say: how often keys are found by chance in images without a mark."""
