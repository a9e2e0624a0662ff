"""The script everyone writes first: loads both files whole, blends the floats, saves.

python tests/benchmarks/naive.py A B ALPHA OUT
"""

import sys

from safetensors.torch import load_file, save_file

path_a, path_b, alpha, out = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
a, b = load_file(path_a), load_file(path_b)
merged = {}
for key, tensor in a.items():
    merged[key] = (1 - alpha) * tensor + alpha * b[key] if tensor.is_floating_point() else tensor
save_file(merged, out)
