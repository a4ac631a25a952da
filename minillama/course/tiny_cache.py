"""A cache of keys and values in its plainest form, which lesson 04 lets a reader write.

Left out, and had from `model.KVCache`: padding, positions, and memory taken at once.
"""

import torch


class TinyCache:
    """Keys and values of all tokens so far, layer by layer; no text has padding."""

    def __init__(self):
        self.kept = {}  # from a layer to its keys and values, two of (B, K, S, E)

    def store(self, layer, keys, values):
        """Append a layer's new keys and values (B, K, T, E); return all (B, K, S, E).

        A layer that has nothing yet is started.
        """
        if layer in self.kept:
            old_keys, old_values = self.kept[layer]
            keys = torch.cat((old_keys, keys), dim=2)
            values = torch.cat((old_values, values), dim=2)
        self.kept[layer] = keys, values
        return keys, values
