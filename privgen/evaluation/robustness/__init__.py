"""What survives attacks, beside the baselines?"""
