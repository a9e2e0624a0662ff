"""What a model is, from its headers, and where two models differ. job.py puts the answer together."""
