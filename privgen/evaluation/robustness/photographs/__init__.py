"""What marks of photographs survive at the photographs' own sizes, beside the baselines."""
