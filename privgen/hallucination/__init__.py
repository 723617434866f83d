"""Make models hallucinate less: amplify the score, learn the variance, find and reject hallucinated samples."""
