"""The page of `privgen app`: marks, verifies, attacks and protects pictures in a browser on this computer."""
