"""Adapters: small files that say how the weights of a model change (LoRA and its kin).

`names` finds the tensors a name means, `algebra` knows what factors make what product, `adapters` reads a
file by its header and holds it to a base, `summary` says what a file is without one. `deltas` computes a
change from its factors, `lowrank` joins, compresses and extracts them.
"""
